"""Models that come, go, fail, are damaged, and are many."""

from __future__ import annotations

import http.client
import json
import random
import shutil
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
from onnx import helper, numpy_helper

from bench.load import loadgen
from bench.load.growth import copies, named
from bench.load.scenarios import SIMPLE
from bench.peers import Models
from tests import onnx_models
from tests.fault.clients import answers, connect, post
from tests.fault.load import Kind, half_of_peak, infer, neighbours, simple
from tests.fault.subject import Subject, repository_of, subject, wait_for
from tests.fault.trial import CORES, Trial
from tests.support import REPOSITORY, exchange, inference, tensor

SMALL = REPOSITORY / "simple" / "1" / "model.onnx"


def bad_item(trial: Trial) -> None:
    """32 requests in a batch, one of which makes the run fail."""
    config = (
        "max_batch_size = 32\n[dynamic_batching]\npreferred_batch_size = [32]\nmax_queue_delay_microseconds = 500000\n"
    )
    rounds = trial.count(50, 5)
    with (
        repository_of({"rows": onnx_models.gather_rows()}, {"rows": config}) as repository,
        subject(repository=repository) as server,
        ExitStack() as stack,
    ):
        socks = [stack.enter_context(connect(server.port)) for _ in range(32)]
        exact = errors = other = 0
        for number in range(rounds):
            bad = number % 32
            for place, sock in enumerate(socks):
                index = 999 if place == bad else place % 4
                sock.sendall(post("rows", json.dumps(inference(tensor("index", [1], "INT64", [index]))).encode()))
            for place, sock in enumerate(socks):
                status, _, body = next(answers(sock))
                row = place % 4
                if place == bad:
                    errors += status == 400
                elif status == 200 and json.loads(body)["outputs"][0]["data"] == [2.0 * row, 2.0 * row + 1]:
                    exact += 1
                else:
                    other += 1
        trial.equal("exact answers", exact, 31 * rounds)
        trial.equal("errors, for the bad ones", errors, rounds)
        trial.equal("others", other, 0)
        trial.tell("rounds", rounds)


def corrupt(trial: Trial) -> None:
    """Damaged files as a new version of a model that is being asked."""
    whole, source = SMALL.read_bytes(), random.Random(7)
    count = trial.count(200, 60)
    with repository_of({"simple": whole}) as repository, subject(repository=repository) as server:
        file = repository / "simple" / "2" / "model.onnx"
        file.parent.mkdir()
        rate = half_of_peak(server.port) / 2
        old = [(Kind("old"), [_of_version(case, 1) for case in simple()])]
        seen: dict[int, int] = {}
        unclear = 0
        with neighbours(server.port, rate, old) as beside:
            for number in range(count):
                file.write_bytes(_damaged(whole, number, source))
                answer = server.post("/v2/models/simple/versions/2/load")
                seen[answer.status] = seen.get(answer.status, 0) + 1
                if answer.status == 200:  # the damage did not matter, or made another sound model
                    server.post("/v2/models/simple/versions/2/unload")
                else:
                    unclear += list(answer.json) != ["error"] or str(repository) in answer.error
        trial.least("answered with 400", seen.get(400, 0), count // 2)
        trial.equal("neither loaded nor 400", count - seen.get(400, 0) - seen.get(200, 0), 0)
        trial.equal("400 that are not one sentence, or tell paths", unclear, 0)
        trial.equal("failed requests of the old version", beside["failed"], 0)
        trial.equal("server processes that ended", float(server.process.poll() is not None), 0)


def _of_version(case: Any, version: int) -> Any:
    return type(case)(case.path.replace("/infer", f"/versions/{version}/infer"), case.body, None, case.outputs)


def _damaged(whole: bytes, number: int, source: random.Random) -> bytes:
    match number % 5:
        case 0:
            return whole[: source.randrange(len(whole))]
        case 1:
            return b"" if number < 10 else source.randbytes(source.randrange(1, 4096))
        case 2:
            return whole + source.randbytes(50)
        case _:
            damaged = bytearray(whole)
            for _ in range(source.choice((1, 1, 3, 20))):
                damaged[source.randrange(len(damaged))] ^= 1 << source.randrange(8)
            return bytes(damaged)


# --- Loading and unloading --------------------------------------------------------------------------------------------


def unload_in_flight(trial: Trial) -> None:
    """An endpoint goes while a thousand of its requests are under way."""
    many = trial.count(1000, 1000)
    body = json.dumps(inference(tensor("x", [1], "INT32", [7]))).encode()
    with subject("--load", "none") as server, ExitStack() as stack:
        name = server.load("fake", delay_ms=1500)
        socks = [stack.enter_context(connect(server.port)) for _ in range(many)]
        for sock in socks:
            sock.sendall(post(name, body))
        wait_for(lambda: server.metric("fastinfer_requests_in_flight", model=name) == many, "all in flight")
        trial.equal("status of the unload", server.post(f"/v2/models/{name}/unload").status, 200)
        trial.equal("status of a request after it", server.infer(name, body).status, 404)
        got = [next(answers(sock)) for sock in socks]
        right = sum(status == 200 and json.loads(text)["outputs"][0]["data"] == [7] for status, _, text in got)
        trial.equal("requests in flight that were not answered", many - right, 0)


def load_storm(trial: Trial) -> None:
    """32 threads load and unload what they like; then one model comes and goes a hundred times."""
    threads, each = 32, trial.count(1024, 48)
    with subject("--load", "digits", "--load", "simple") as server:
        rate = half_of_peak(server.port) / 2
        with neighbours(server.port, rate) as beside, ThreadPoolExecutor(threads) as pool:
            jobs = [pool.submit(_load_and_unload, server.port, seed, each) for seed in range(threads)]
            wrong = sum(job.result() for job in jobs)
        trial.equal("loads and unloads not answered with 200", wrong, 0)
        trial.tell("loads and unloads", threads * each)
        trial.equal("failed requests of another model", beside["failed"], 0)
        trial.equal("status of the server's readiness", server.get("/v2/health/ready").status, 200)
        cycles = trial.count(100, 30)
        _cycle(server, cycles // 2)
        before = server.rss()
        _cycle(server, cycles)
        trial.most(f"memory after {cycles} cycles, times before", server.rss() / before, 1.05)


def _load_and_unload(port: int, seed: int, count: int) -> int:
    """Mostly the worker `echo`, sometimes a model of its own identity; returns how often that went wrong."""
    source, wrong = random.Random(seed), 0
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        for _ in range(count // 2):
            kind, name = ("models", "digits") if source.random() < 1 / 16 else ("workers", "echo")
            parameters = {"tag": source.randrange(4), "share": source.random() < 0.5}
            loaded = exchange(connection, "POST", f"/v2/{kind}/{name}/load", parameters)
            wrong += loaded.status != 200
            endpoint = loaded.json["name"] if kind == "models" else loaded.body.decode()
            wrong += exchange(connection, "POST", f"/v2/models/{endpoint}/unload").status != 200
    return wrong


def _cycle(server: Subject, count: int) -> None:
    for _ in range(count):
        name = server.post("/v2/models/convnet/load").json["name"]
        assert server.post(f"/v2/models/{name}/unload").status == 200


# --- Many models ------------------------------------------------------------------------------------------------------


def many_models(trial: Trial) -> None:
    """Eight models in one process."""
    with repository_of({}) as repository:
        served = copies(Models((), {"simple": SMALL}), repository, 8)
        assert served.repositories == (repository,)
        with subject(repository=repository) as server:
            time.sleep(1)
            trial.most("threads while idle", server.threads(), 2 * CORES + 4)
            before, seconds = server.cpu_s(), trial.count(10, 2)
            time.sleep(seconds)
            trial.most("share of a core while idle", (server.cpu_s() - before) / seconds, 0.01, timed=True)
            one, eight = ([(SIMPLE, named(simple(), count))] for count in (1, 8))
            loadgen.run(server.port, eight, 64, 0.5)
            ratios = []
            for _ in range(trial.count(5, 1)):
                alone, all_of_them = (loadgen.run(server.port, what, 64, 1) for what in (one, eight))
                ratios.append(all_of_them["requests_per_s"] / alone["requests_per_s"])
            trial.least("throughput, times one model's", sorted(ratios)[len(ratios) // 2], 0.95, timed=True)
            trial.tell("threads at the end", server.threads())


def swapped(trial: Trial) -> None:
    """A version's directory of two files is replaced again and again while it is loaded and asked."""
    loads = trial.count(200, 40)
    request = infer("pair", inference(tensor("x", [1], "FP32", [3.0])), lambda data: data in ([4.0], [30.0]))
    with repository_of({}) as repository, subject("--load", "none", repository=repository) as server:
        version = repository / "pair" / "1"
        version.parent.mkdir()
        _write_pair(version, 0)
        assert server.post("/v2/models/pair/load").status == 200
        seen: dict[int, int] = {}
        with ThreadPoolExecutor(1) as pool, neighbours(server.port, 500, [(Kind("pair"), [request])]) as beside:
            writing = pool.submit(_keep_writing, version, trial.count(8000, 1500))
            while not writing.done() or sum(seen.values()) < loads:
                answer = server.post("/v2/models/pair/load")
                seen[answer.status] = seen.get(answer.status, 0) + 1
            assert writing.result() is None
        trial.equal("failed requests, or answers of half a model", beside["failed"], 0)
        trial.tell("answers of the one or the other model", beside["answered"])
        trial.tell("loads", sum(seen.values()))
        # 503: they changed while they were loaded, and again; 400: between two renames there is no version.
        refused = seen.get(400, 0) + seen.get(503, 0)
        trial.tell("loads refused because the files kept changing", refused)
        trial.equal("loads answered otherwise", sum(seen.values()) - refused - seen.get(200, 0), 0)


def _write_pair(version: Path, kind: int) -> None:
    """y = x + 1, or y = x * 10: the operator in one file, the number in another; renamed into place together."""
    operator, number = (("Add", 1.0), ("Mul", 10.0))[kind]
    weight = numpy_helper.from_array(np.array([number], np.float32), "w")
    weight.ClearField("raw_data")
    weight.data_location = weight.EXTERNAL
    for key, text in (("location", "w.bin"), ("offset", "0"), ("length", "4")):
        weight.external_data.add(key=key, value=text)
    made = onnx_models.model(
        [helper.make_node(operator, ["x", "w"], ["y"])],
        [onnx_models.value("x", "FP32", [1])],
        [onnx_models.value("y", "FP32", [1])],
        [weight],
    )
    new, old = version.parent / "new", version.parent / "old"
    new.mkdir()
    (new / "model.onnx").write_bytes(made)
    (new / "w.bin").write_bytes(struct.pack("<f", number))
    if version.exists():
        version.rename(old)
    new.rename(version)
    shutil.rmtree(old, ignore_errors=True)


def _keep_writing(version: Path, milliseconds: int) -> None:
    end, kind = time.monotonic() + milliseconds / 1000, 0
    while time.monotonic() < end:
        kind = 1 - kind
        _write_pair(version, kind)
        time.sleep(random.random() * 0.02)
