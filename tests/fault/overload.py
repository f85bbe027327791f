"""More than the server can do: too many requests, too little time, too large, too bad."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np

from bench.load import loadgen
from bench.make_models import product_chain
from tests.fault.clients import SIMPLE_BODY, answers, connect, post
from tests.fault.load import Kind, Request, infer, load, simple, statuses
from tests.fault.subject import peak_rss, repository_of, subject
from tests.fault.trial import MIB, Trial
from tests.support import inference, tensor

LARGE = "identity_fp32"


def flood(trial: Trial) -> None:
    """Three times as many requests as a model of some milliseconds an item can do."""
    seconds, queue = trial.count(60, 4), trial.count(200, 50)  # as long as the model needs for so many, a client waits
    body = json.dumps(inference(tensor("input", [1, 1], "FP32", [2.0]))).encode()
    what = [(Kind("slow"), [infer("slow", body)])]
    made = product_chain("slow", 8).SerializeToString()
    options = ("--default-max-batch-size", "1", "--max-queue-size", str(queue))
    with repository_of({"slow": made}) as repository, subject(*options, repository=repository) as server:
        best = loadgen.run(server.port, what, 32, trial.count(5, 1))
        peak, calm = best["requests_per_s"], loadgen.run(server.port, what, 4, 1, rate=best["requests_per_s"] / 4)
        before = server.rss()
        with load(server.port, seconds, 3 * peak, what, connections=2 * queue) as running:
            counted = running.result()
        after = server.rss()
        time.sleep(1)
        again = loadgen.run(server.port, what, 4, 1, rate=peak / 4, errors_allowed=True)
        seen = statuses(counted, "slow")
        refused = counted["classes"]["slow"].get("refusals", {})
        trial.tell("peak, items a second", peak)
        trial.least("goodput, times the peak", seen.get("200", 0) / seconds / peak, 0.9, timed=True)
        trial.least("requests refused with 503", seen.get("503", 0), 1)
        trial.equal("neither 200 nor 503", sum(seen.values()) - seen.get("200", 0) - seen.get("503", 0), 0)
        trial.equal("503 without Retry-After", counted["classes"]["slow"].get("without_retry_after", 0), 0)
        trial.most("ms until a refusal, p99", refused.get("p99_us", 0) / 1e3, 10, timed=True)
        trial.most("MiB more than before", (after - before) / MIB, 16)
        trial.equal("failed a second later", again["errors"] + again["unfinished"], 0)
        trial.most("p50 a second later, times that of before", again["p50_us"] / calm["p50_us"], 2, timed=True)


def deadlines(trial: Trial) -> None:
    """Requests that give the server 1 to 50 ms, for a model that takes 200."""
    given = (1, 2, 5, 10, 20, 50)
    what = [
        (
            Kind(f"{limit} ms"),
            [infer("fake", inference(tensor("x", [1], "FP32", [1.0]), parameters={"timeout": 1000 * limit}))],
        )
        for limit in given
    ]
    with subject("--load", "simple") as server:
        server.load("fake", delay_ms=200)
        counted = loadgen.run(server.port, what, 60, trial.count(10, 2), rate=300, errors_allowed=True)
        late, others = 0.0, 0
        for limit in given:
            seen = statuses(counted, f"{limit} ms")
            others += sum(seen.values()) - seen.get("504", 0)
            late = max(late, counted["classes"][f"{limit} ms"]["p99_us"] / 1000 - limit)
        trial.equal("answered with anything but 504", others, 0)
        trial.most("ms after the deadline, p99", late, 10, timed=True)
        # One instance, which somebody has for long: the others wait, expire, and never run.
        name = server.load("fake", delay_ms=1500, instances=1)
        before = server.metric("fastinfer_rows_total", model=name)
        with connect(server.port) as holder:
            holder.sendall(post(name, SIMPLE_BODY))
            time.sleep(0.1)
            waiting = [Request(each.method, each.path.replace("/fake/", f"/{name}/"), each.body) for _, [each] in what]
            queued = [(kind, [each]) for (kind, _), each in zip(what, waiting, strict=True)]
            counted = loadgen.run(server.port, queued, 60, 1, rate=300, warmup=0, errors_allowed=True)
            status, _, _ = next(answers(holder))
        expired = sum(statuses(counted, kind.name).get("504", 0) for kind, _ in queued)
        trial.equal("status of the one that runs", status, 200)
        trial.least("requests that expired in the queue", expired, 250)
        trial.equal("of them executed", server.metric("fastinfer_rows_total", model=name) - before - 1, 0)


# --- Very many, and bad ones ------------------------------------------------------------------------------------------


def _bad() -> list[Request]:
    """Each is answered with an error of its own; a few end their connection."""
    good = json.loads(SIMPLE_BODY)

    def changed(**values: Any) -> bytes:
        return json.dumps({**good, "inputs": [{**good["inputs"][0], **values}, good["inputs"][1]]}).encode()

    path = "/v2/models/simple/infer"
    return [
        Request("POST", path, SIMPLE_BODY[:-7]),
        Request("POST", path, b'{"inputs":[' + 200 * b"["),
        Request("POST", path, changed(shape=[1, 17])),
        Request("POST", path, changed(datatype="FP32")),
        Request("POST", path, changed(name="INPUT7")),
        Request("POST", path, changed(data=[2**40] * 16)),
        Request("POST", path, changed(data=["x"] * 16)),
        Request("POST", path, b"\xff\xfe"),
        Request("POST", "/v2/models/nobody/infer", SIMPLE_BODY),
        Request("POST", "/v2/models/%2e%2e%2fetc/infer", SIMPLE_BODY),
        Request("GET", "/v2/nowhere"),
        Request("DELETE", "/v2/models/simple"),
        Request("POST", path, b"not gzip at all", fields="Content-Encoding: gzip\r\n"),
        Request("POST", path, SIMPLE_BODY, fields="Inference-Header-Content-Length: 99999\r\n"),
        Request("POST", path, SIMPLE_BODY, fields="X Y: 1\r\n"),
    ]


def mixed(trial: Trial) -> None:
    """Very many requests, a fifth of them bad."""
    digits = infer("digits", inference(tensor("pixels", [1, 64], "FP32", [1.0] * 64)), lambda data: len(data) == 1)
    text = json.dumps(inference(tensor("INPUT0", [1, 2], "BYTES", ["a", "ü"]))).encode()
    good = [*simple(), digits, infer("identity_bytes", text), *[Request("GET", path) for path in ("/v2", "/v2/models")]]
    what = [(Kind("good", 4), good), (Kind("bad"), _bad())]
    with subject("--load", "simple", "--load", "digits", "--load", "identity_bytes") as server:
        rate = 0.8 * _peak(server.port, what)
        slices = 10
        seconds = trial.requests / rate / slices
        with load(server.port, seconds, rate, what) as running:
            running.result()
        fds, threads = server.fds(), server.threads()
        sizes, done = [server.rss()], [0]
        good_wrong = bad_right = 0
        for _ in range(slices):
            with load(server.port, seconds, rate, what) as running:
                counted = running.result()
            seen = statuses(counted, "good")
            good_wrong += sum(seen.values()) - seen.get("200", 0) + counted["closed"] + counted["malformed"]
            bad_right += sum(n for s, n in statuses(counted, "bad").items() if not 400 <= int(s) < 500)
            sizes.append(server.rss())
            done.append(done[-1] + counted["answered"])
        trial.tell("requests", done[-1])
        trial.equal("good ones not answered with 200", good_wrong, 0)
        trial.equal("bad ones not answered with 4xx", bad_right, 0)
        trial.most("bytes of memory a request, by regression", np.polyfit(done, sizes, 1)[0], 1, timed=True)
        trial.most("open files more than before", server.fds_above(fds), 0)
        trial.equal("threads more than before", server.threads() - threads, 0)


def _peak(port: int, what: Any) -> float:
    return float(loadgen.run(port, what, 16, 1, errors_allowed=True)["answered"] / 1.2)


# --- Very large -------------------------------------------------------------------------------------------------------


def large(trial: Trial) -> None:
    """A request of 64 MiB of JSON beside small ones."""
    health = [(Kind("health"), [Request("GET", "/v2/health/live")])]
    # Numbers whose shortest text is what is sent, so that the answer's text must be the same.
    block = ",".join(str(each) for each in np.random.default_rng(3).random(4096, np.float32) + np.float32(0.001))
    blocks = (64 * MIB - 200) // (len(block) + 1)
    count, text = 4096 * blocks, ",".join([block] * blocks).encode()
    body = b'{"inputs":[{"name":"INPUT0","shape":[1,%d],"datatype":"FP32","data":[%b]}]}' % (count, text)
    assert 60 * MIB < len(body) <= 64 * MIB, len(body)
    message = post(LARGE, body)
    with subject("--load", LARGE) as server:
        before = server.rss()
        worst, p99 = [], []
        for _ in range(trial.count(5, 1)):
            with load(server.port, trial.count(4, 3), 500, health) as running, connect(server.port) as sock:
                time.sleep(0.3)
                sock.sendall(message)
                status, _, answer = next(answers(sock))
                exact = status == 200 and text in answer
                counted = running.result()
            worst.append(counted["max_us"] / 1000)
            p99.append(counted["p99_us"] / 1000)
        trial.equal("answers that are right", float(exact), 1)
        trial.equal("failed requests beside it", counted["errors"], 0)
        trial.most("ms that the event loop stalls (median of the longest waits)", sorted(worst)[len(worst) // 2], 20,
                   timed=True)  # fmt: skip
        trial.most("ms for health, p99", max(p99), 50, timed=True)
        trial.most("memory at most, times the body", (peak_rss(server.pid) - before) / len(body), 10)
        time.sleep(3)
        trial.tell("MiB more than before, three seconds later", (server.rss() - before) / MIB)
