"""The built-in workers: what each computes, what it refuses, and the parameters of their loads."""

from __future__ import annotations

import asyncio
import base64
import io
import random
import struct
import threading
import time
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastinfer.backends.builtin import workers
from fastinfer.backends.builtin.echo import Echo, EchoMulti
from fastinfer.backends.builtin.fake import MAX_DELAY_MS, Delay
from fastinfer.backends.builtin.image import MAX_PIXELS, Base64Decode, Base64Encode, InvertImage
from fastinfer.backends.builtin.item import GivenUpError, Item, ItemWorker, WorkerContext
from fastinfer.base.budget import Budget
from fastinfer.base.errors import ApiError
from fastinfer.schedule.backend import Outcome
from fastinfer.tensor.message import BatchResult, InferRequest
from fastinfer.tensor.tensor import Tensor

PIXELS = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)


def u32(*values: int) -> Tensor:
    return Tensor.from_numpy("x", np.array(values, np.uint32))


def texts(*values: bytes) -> Tensor:
    return Tensor.from_numpy("x", np.array(values, object), "BYTES")


def refusal(call: Any, *arguments: Any) -> ApiError:
    with pytest.raises(ApiError) as raised:
        call(*arguments)
    return raised.value


async def run(worker: Any, *items: list[Tensor]) -> BatchResult:
    """The result of a batch of requests with these inputs."""
    result: asyncio.Future[BatchResult] = asyncio.get_running_loop().create_future()
    worker.start([InferRequest(inputs) for inputs in items], result.set_result)
    return await result


def load(name: str, parameters: Mapping[str, object], *items: list[Tensor]) -> list[Outcome]:
    """Loads a worker and runs a batch."""

    async def main() -> list[Outcome]:
        kind, parsed = workers.resolve(name, parameters)
        worker = kind.factory(parsed, WorkerContext(asyncio.get_running_loop(), Budget()))
        result = await run(worker, *items)
        worker.close()
        return list(result.outputs)

    return asyncio.run(main())


def arrays(outcome: Outcome) -> list[Any]:
    assert isinstance(outcome, list)
    return [tensor.numpy().tolist() for tensor in outcome]


# --- Echoes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("given", "expected"), [(0, 1), (41, 42), (2**32 - 1, 0)])
def test_echo(given: int, expected: int) -> None:
    (output,) = Echo().compute([u32(given)])
    assert (output.name, output.datatype, output.numpy().tolist()) == ("output", "UINT32", [expected])


def test_echo_multi_cycles_its_three_values() -> None:
    outputs = EchoMulti().compute([u32(3), u32(2, 7)])
    assert [output.name for output in outputs] == ["output0", "output1", "output2"]
    assert [output.numpy().tolist() for output in outputs] == [[3], [2, 7, 3, 2], [7, 3, 2]]


def test_items_of_a_batch_are_computed_one_by_one() -> None:
    assert [arrays(outcome) for outcome in load("echo", {}, [u32(1)], [u32(2)], [u32(3)])] == [[[2]], [[3]], [[4]]]


# --- Images -----------------------------------------------------------------------------------------------------------


def image_file(kind: str, pixels: Any = PIXELS, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def decode(file: bytes) -> Any:
    return Base64Decode().compute([texts(base64.b64encode(file))])[0].numpy()


def test_invert() -> None:
    (output,) = InvertImage().compute([Tensor.from_numpy("x", PIXELS)])
    np.testing.assert_array_equal(output.numpy(), 255 - PIXELS)


def test_png_there_and_back() -> None:
    (text,) = Base64Encode("png").compute([Tensor.from_numpy("x", PIXELS)])
    assert (text.datatype, text.shape) == ("BYTES", (1,))
    (pixels,) = Base64Decode().compute([text])
    np.testing.assert_array_equal(pixels.numpy(), PIXELS)


def test_jpeg_there_and_back_is_nearly_the_same() -> None:
    even = np.full((16, 24, 3), (200, 100, 50), np.uint8)
    (outcome,) = load("base64_encode", {"format": "JPEG"}, [Tensor.from_numpy("x", even)])
    assert isinstance(outcome, list)
    file = base64.b64decode(outcome[0].numpy()[0])
    assert file.startswith(b"\xff\xd8\xff")
    assert np.abs(decode(file).astype(int) - even).max() <= 3


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "I;16"])
def test_every_kind_of_png_becomes_rgb(mode: str) -> None:
    file = io.BytesIO()
    Image.new(mode, (5, 4)).save(file, "png")
    pixels = decode(file.getvalue())
    assert (pixels.shape, pixels.dtype) == ((4, 5, 3), np.uint8)


@pytest.mark.parametrize(
    "text", [b"", b"!", b"abc", b"QUJD\n", b"QU JD", b"=QUJ", b"\xff", b"data:image/png;base64,QUJD"]
)
def test_what_is_not_base64_or_no_image(text: bytes) -> None:
    error = refusal(Base64Decode().compute, [texts(text)])
    assert error.status == 400
    assert "base64 text" in error.message


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_cut_images_are_refused(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    file = image_file(kind, noise)
    for size in (1, 3, 8, 20, len(file) // 2):
        assert refusal(decode, file[:size]).status == 400


@pytest.mark.parametrize("kind", ["gif", "bmp", "tiff"])
def test_other_formats_are_refused(kind: str) -> None:
    assert refusal(decode, image_file(kind)).message == (
        "inputs[0].data[0] is not the base64 text of a whole JPEG or PNG image"
    )


def test_a_bomb_is_refused_by_its_header() -> None:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )
    error = refusal(decode, bomb)
    assert error.status == 400
    assert error.message.endswith(f"an image of 2500000000 pixels, at most {MAX_PIXELS} are decoded")


@pytest.mark.parametrize(("kind", "shape"), [("png", (0, 5, 3)), ("png", (5, 0, 3)), ("jpeg", (65_501, 1, 3))])
def test_images_that_cannot_be_encoded(kind: Any, shape: tuple[int, ...]) -> None:
    error = refusal(Base64Encode(kind).compute, [Tensor.from_numpy("x", np.zeros(shape, np.uint8))])
    assert error.status == 400
    assert error.message.startswith("inputs[0]: an image ")


def test_an_item_that_fails_fails_alone() -> None:
    good, bad = texts(base64.b64encode(image_file("png"))), texts(b"?")
    first, second, third = load("base64_decode", {}, [good], [bad], [good])
    assert arrays(first) == arrays(third) == [PIXELS.tolist()]
    assert isinstance(second, ApiError)
    assert second.status == 400


class Broken(Echo):
    """Fails as a bug would."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def compute(self, inputs: list[Tensor], item: Item | None = None) -> list[Tensor]:  # noqa: ARG002
        raise self.error


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ValueError("cannot read /etc/secret/file.txt"), "the worker failed: cannot read file.txt"),
        (KeyError(), "the worker failed: no reason was given"),
    ],
)
def test_a_bug_is_a_500_without_paths(error: Exception, sentence: str) -> None:
    async def main() -> BatchResult:
        return await run(ItemWorker(Broken(error), WorkerContext(asyncio.get_running_loop(), Budget())), [u32(1)])

    (outcome,) = asyncio.run(main()).outputs
    assert isinstance(outcome, ApiError)
    assert (outcome.status, outcome.message) == (500, sentence)


def test_a_batch_that_nobody_waits_for_is_cut_short() -> None:
    begun = threading.Event()

    class Slow(Echo):
        inline = False

        def compute(self, inputs: list[Tensor], item: Item | None = None) -> list[Tensor]:  # noqa: ARG002
            assert item is not None
            begun.set()
            while True:  # until it is given up
                item.check()
                time.sleep(0.001)

    async def main() -> BatchResult:
        loop = asyncio.get_running_loop()
        result: asyncio.Future[BatchResult] = loop.create_future()
        worker = ItemWorker(Slow(), WorkerContext(loop, Budget()))
        batch = worker.start([InferRequest([u32(1)])] * 2, result.set_result)
        assert batch is not None
        await asyncio.to_thread(begun.wait, 30)
        batch.terminate()
        return await asyncio.wait_for(result, 30)

    assert [outcome.status for outcome in asyncio.run(main()).outputs if isinstance(outcome, ApiError)] == [503, 503]


# --- The fake ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (0, Delay(0, 0)),
        (1.5, Delay(1.5, 1.5)),
        ("2", Delay(2, 2)),
        ("lognormal(10,40)", Delay(10, 40)),
        (" lognormal( 1.5 , 1.5 ) ", Delay(1.5, 1.5)),
        (MAX_DELAY_MS, Delay(MAX_DELAY_MS, MAX_DELAY_MS)),
    ],
)
def test_delays(given: object, expected: Delay) -> None:
    assert Delay.parse(given) == expected


@pytest.mark.parametrize(
    "given",
    [-1, 60_001, "nan", "inf", True, None, "", "x", "lognormal(10)", "lognormal(0,1)", "lognormal(2,1)",
     "lognormal(1,60001)", "lognormal(.,1)", "lognormal(1,2,3)"],
)  # fmt: skip
def test_wrong_delays(given: object) -> None:
    with pytest.raises(ValueError, match=r"should be a number from 0 to 60000, or lognormal\(median,p99\)"):
        Delay.parse(given)


def test_a_lognormal_delay_has_its_median_and_its_p99() -> None:
    source = random.Random(1)
    drawn = sorted(Delay(10, 40).draw(source) for _ in range(20_000))
    assert drawn[10_000] == pytest.approx(10, rel=0.05)
    assert drawn[19_800] == pytest.approx(40, rel=0.1)


def test_fake_gives_back_what_it_gets() -> None:
    tensors = [u32(1, 2), texts(b"\x00", b"x")]
    for delay in (0, 0.01, "lognormal(0.01,0.02)"):
        (outcome,) = load("fake", {"delay_ms": delay}, tensors)
        assert outcome == tensors


def test_a_fake_fails_the_same_requests_again_with_the_same_seed() -> None:
    def failed(**parameters: object) -> list[bool]:
        return [isinstance(outcome, ApiError) for outcome in load("fake", parameters, *[[u32(1)]] * 200)]

    assert failed(error_rate=0.3, seed=7) == failed(error_rate="0.3", seed="7") != failed(error_rate=0.3, seed=8)
    assert 30 < sum(failed(error_rate=0.3, seed=7)) < 90
    assert not any(failed(error_rate=0))
    assert all(failed(error_rate=1))


def test_a_fake_that_nobody_waits_for_ends_at_once() -> None:
    async def main() -> BatchResult:
        loop = asyncio.get_running_loop()
        kind, parsed = workers.resolve("fake", {"delay_ms": 60_000})
        result: asyncio.Future[BatchResult] = loop.create_future()
        waiting = kind.factory(parsed, WorkerContext(loop, Budget())).start([InferRequest([u32(1)])], result.set_result)
        assert waiting is not None
        waiting.terminate()
        waiting.terminate()
        return await result

    assert len(asyncio.run(main()).outputs) == 1


# --- Names and parameters ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*workers.KINDS, "ECHO", "Echo_Multi"])
def test_names_in_any_case(name: str) -> None:
    kind, _ = workers.resolve(name, {})
    assert kind.name == name.lower()
    assert kind.description.endswith(".")
    assert kind.instances >= 1


def test_cplusplus_stands_for_another_worker() -> None:
    given: dict[str, object] = {"model": "Base64_Encode", "format": "jpeg"}
    kind, parameters = workers.resolve("cplusplus", given)
    assert (kind.name, parameters.model_dump()["format"]) == ("base64_encode", "jpeg")
    assert "model" in given  # what was given counts for the identity, and stays as it was


def test_parameters_are_read() -> None:
    _, parameters = workers.resolve("echo", {"share": False, "batch": "8", "timeout": 2, "next": "a.b", "other": "x"})
    assert (parameters.share, parameters.batch_size, parameters.timeout, parameters.next) == (False, 8, 2.0, "a.b")
    assert parameters.instances is None


@pytest.mark.parametrize(
    ("worker", "parameters", "sentence"),
    [
        ("nope", {}, "unknown worker 'nope': it is none of base64_decode, "),
        ("cplusplus", {}, "worker 'cplusplus' needs the parameter 'model', the name of a built-in worker"),
        ("cplusplus", {"model": 1}, "worker 'cplusplus' needs the parameter 'model'"),
        ("cplusplus", {"model": "cplusplus"}, "unknown worker 'cplusplus'"),
        ("echo", {"x": [1]}, "parameter 'x' should be a string, a boolean or a number"),
        ("echo", {"x": None}, "parameter 'x' should be a string, a boolean or a number"),
        ("echo", {"batch_size": 0}, "parameter 'batch_size' should be greater than or equal to 1"),
        ("echo", {"batch_size": True}, "parameter 'batch_size' should be a number"),
        ("echo", {"batch": 1, "batch_size": 2}, "'batch' and 'batch_size' are two names of one parameter"),
        ("echo", {"timeout": "soon"}, "parameter 'timeout' should be a valid number"),
        ("echo", {"timeout": float("nan")}, "parameter 'timeout' should be a finite number"),
        ("echo", {"instances": 1025}, "parameter 'instances' should be less than or equal to 1024"),
        ("echo", {"next": "../x"}, "parameter 'next' should be a name: 1 to 128 letters"),
        ("echo", {"share": "perhaps"}, "parameter 'share' should be a valid boolean"),
        ("base64_encode", {"format": "gif"}, "parameter 'format' should be 'png' or 'jpeg'"),
        ("fake", {"delay_ms": "long"}, "parameter 'delay_ms' should be a number from 0 to 60000, or lognormal"),
        ("fake", {"error_rate": 1.1}, "parameter 'error_rate' should be less than or equal to 1"),
        ("fake", {"seed": "x"}, "parameter 'seed' should be a valid integer"),
    ],
)
def test_refused_loads(worker: str, parameters: Mapping[str, object], sentence: str) -> None:
    error = refusal(workers.resolve, worker, parameters)
    assert error.status == 400
    assert error.message.startswith(sentence)


def progressive(scans: int) -> bytes:
    """A JPEG file of 256 x 256 pixels whose last scan comes again and again."""
    file = io.BytesIO()
    Image.new("RGB", (256, 256)).save(file, "jpeg", progressive=True)
    content = file.getvalue()
    last = content.rindex(b"\xff\xda")
    before = content.count(b"\xff\xda") - 1
    return content[:last] + content[last:-2] * (scans - before) + content[-2:]


def test_a_jpeg_image_may_have_a_hundred_scans() -> None:
    assert decode(progressive(100)).shape == (256, 256, 3)
    with pytest.raises(ApiError, match="a JPEG image of more than 100 scans"):
        decode(progressive(101))


@pytest.mark.parametrize("after", [0, 1, 5])
def test_an_image_that_nobody_waits_for_is_given_up(after: int) -> None:
    class Impatient(Item):
        checks = 0

        def check(self) -> None:
            self.checks += 1
            self.terminated = self.checks > after
            super().check()

    file = io.BytesIO()
    Image.effect_noise((256, 256), 90).save(file, "jpeg", quality=95)
    budget = Budget(16 << 20)
    with pytest.raises(GivenUpError):
        Base64Decode(budget).compute([texts(base64.b64encode(file.getvalue()))], Impatient())
    with pytest.raises(GivenUpError):
        Base64Encode("png").compute([Tensor.from_numpy("x", PIXELS)], Impatient())
    assert budget.used == 0


def test_pixels_are_reserved_before_they_are_decoded() -> None:
    file = io.BytesIO()
    Image.new("RGB", (1000, 1000)).save(file, "png")
    text = texts(base64.b64encode(file.getvalue()))
    budget = Budget(12_000_000)
    with pytest.raises(MemoryError):
        Base64Decode(budget).compute([text])
    assert (budget.used, budget.refused) == (0, 1)
    budget = Budget(13_000_000)
    (pixels,) = Base64Decode(budget).compute([text])
    assert budget.used == 3_000_000
    del pixels
    assert budget.used == 0
