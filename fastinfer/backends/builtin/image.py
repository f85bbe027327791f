"""The image workers: ``invert_image``, ``base64_decode`` and ``base64_encode``.

Images are UINT8 [height, width, 3], red first. One that would decode to more than a request's body may hold is refused
by its header, before anything is decoded: a few KiB of PNG can claim gigabytes.
"""

from __future__ import annotations

import binascii
import io
from typing import Literal

import numpy as np
from PIL import Image, ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from typing_extensions import Buffer

from fastinfer.backends.builtin.item import GivenUpError, Item
from fastinfer.base import limits
from fastinfer.base.budget import Budget
from fastinfer.base.errors import ApiError
from fastinfer.tensor.signature import Signature
from fastinfer.tensor.tensor import Tensor, TensorSpec

MAX_PIXELS = limits.MAX_BODY_BYTES // 3
"""Of an image that is decoded: as many as fit a request's body."""

MAX_SCANS = 100
"""Of a JPEG image: encoders write about ten, and each is a pass over all pixels, in a few bytes of the file."""

_PNG = b"\x89PNG"
_START_OF_SCAN = b"\xff\xda"
_BLOCK_BYTES = 4096  # of a file that Pillow decodes at once; between them an image can be given up
_PILLOW_BYTES = 10  # a pixel: 4 of the image, as many converted, and rows on their way out
_MAX_SIDE = {"png": 2**31 - 1, "jpeg": 65_500}  # libpng's and libjpeg's limits
_PIXELS = "UINT8", (-1, -1, 3)
_TEXT = "BYTES", (1,)


class _File(io.BytesIO):
    """A file in memory that is read and written only as long as somebody waits for the image."""

    def __init__(self, item: Item, content: bytes = b"") -> None:
        super().__init__(content)
        self._item = item

    def read(self, size: int | None = -1, /) -> bytes:
        self._item.check()
        return super().read(size)

    def write(self, data: Buffer, /) -> int:
        self._item.check()
        return super().write(data)


class InvertImage:
    """Each colour to its opposite: 255 - x."""

    platform = "invert_image"
    inline = False
    signature = Signature([TensorSpec("input", *_PIXELS)], [TensorSpec("output", *_PIXELS)], positional=True)

    def __init__(self, budget: Budget | None = None) -> None:
        self._budget = budget

    def compute(self, inputs: list[Tensor], item: Item | None = None) -> list[Tensor]:  # noqa: ARG002
        output = Tensor.empty("output", "UINT8", inputs[0].shape, self._budget)
        np.invert(inputs[0].numpy(), out=output.fill())
        return [output]


class Base64Decode:
    """Base64 text of a JPEG or PNG file to pixels; transparency is dropped, orientation tags are not applied."""

    platform = "base64_decode"
    inline = False
    signature = Signature(
        [TensorSpec("input", *_TEXT)], [TensorSpec("output", *_PIXELS)], positional=True, takes_base64=True
    )

    def __init__(self, budget: Budget | None = None) -> None:
        self._budget = budget or Budget()

    def compute(self, inputs: list[Tensor], item: Item | None = None) -> list[Tensor]:
        text: bytes = inputs[0].numpy()[0]
        try:
            file = binascii.a2b_base64(text, strict_mode=True)
        except ValueError as error:
            raise ApiError(400, "inputs[0].data[0] is not base64 text") from error
        return [decode_image(file, item or Item(), self._budget)]


class Base64Encode:
    """Pixels to base64 text of a PNG or JPEG file."""

    platform = "base64_encode"
    inline = False
    signature = Signature([TensorSpec("input", *_PIXELS)], [TensorSpec("output", *_TEXT)], positional=True)

    def __init__(self, file_format: Literal["png", "jpeg"]) -> None:
        self._format = file_format

    def compute(self, inputs: list[Tensor], item: Item | None = None) -> list[Tensor]:
        pixels = inputs[0].numpy()
        height, width, _ = pixels.shape
        if pixels.size == 0:
            raise ApiError(400, f"inputs[0]: an image of {height} x {width} pixels is empty")
        if max(height, width) > _MAX_SIDE[self._format]:
            most = _MAX_SIDE[self._format]
            raise ApiError(400, f"inputs[0]: an image in {self._format.upper()} has at most {most} pixels a side")
        file = _File(item or Item())
        Image.fromarray(pixels).save(file, self._format)
        text = np.array([binascii.b2a_base64(file.getbuffer(), newline=False)], object)
        return [Tensor.from_numpy("output", text, "BYTES")]


def decode_image(file: bytes, item: Item, budget: Budget) -> Tensor:
    """The pixels of a JPEG or PNG file, as ``output``.

    Args:
        file: the file.
        item: the work that this is; ended in time, it is given up.
        budget: where the pixels count; also those that Pillow holds meanwhile.

    Raises:
        ApiError: 400 where it is neither, is damaged, is larger than :data:`MAX_PIXELS`, or has too many scans.
        GivenUpError: nobody waits any more.
        MemoryError: there is none, or the budget is spent.
    """
    if file.count(_START_OF_SCAN) > MAX_SCANS and not file.startswith(_PNG):
        raise ApiError(400, f"inputs[0].data[0]: a JPEG image of more than {MAX_SCANS} scans")
    # The two formats by themselves: Pillow's open() would try others as well, and warns where we refuse.
    reader: type[ImageFile.ImageFile] = PngImageFile if file.startswith(_PNG) else JpegImageFile
    try:
        with reader(_File(item, file)) as image:
            image.decodermaxblock = _BLOCK_BYTES
            pixels = image.width * image.height
            if pixels > MAX_PIXELS:
                raise ApiError(400, f"inputs[0].data[0]: an image of {pixels} pixels, at most {MAX_PIXELS} are decoded")
            reserved = pixels * _PILLOW_BYTES
            if not budget.reserve(reserved):
                raise MemoryError("the budget for requests is spent")
            try:
                output = Tensor.empty("output", "UINT8", (image.height, image.width, 3), budget)
                output.fill()[...] = np.asarray(image.convert("RGB"))
            finally:
                budget.release(reserved)
            return output
    except (ApiError, MemoryError, GivenUpError):
        raise
    except Exception as error:  # Pillow raises a dozen different ones for damaged files
        raise ApiError(400, "inputs[0].data[0] is not the base64 text of a whole JPEG or PNG image") from error
