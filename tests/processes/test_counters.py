"""Statistics are the whole server's, whichever process tells them, and never go back."""

from __future__ import annotations

import os
import re
import signal
import threading
from pathlib import Path

import pytest
from load_clients import SIMPLE, load, wait_until
from prometheus_client.parser import text_string_to_metric_families
from support import serving

pytestmark = pytest.mark.long


def samples(server):
    """The page of some process: the value of each sample by name and labels, and the names of those that only rise."""
    page = server.get("/metrics").body.decode()
    found, rising = {}, set()
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            key = (sample.name, *sorted(sample.labels.items()))
            found[key] = sample.value
            if family.type in ("counter", "histogram"):
                rising.add(key)
    return found, rising


def requests(server):
    return samples(server)[0]["fastinfer_requests_total", ("model", "simple"), ("version", "1")]


def test_the_sum_is_told_by_every_process():
    with serving("--load", "simple", "--processes", "2") as server:
        for _ in range(30):
            assert server.infer("simple", SIMPLE).status == 200
        assert {requests(server) for _ in range(12)} == {30}
        found, _ = samples(server)
        assert found["fastinfer_connections_accepted_total",] >= 30
        assert found["fastinfer_answers_total", ("status", "2xx")] >= 30
        pids = [server.process.pid, *server.serving_pids()]
        pages = [Path(f"/proc/{pid}/statm").read_text().split()[1] for pid in pids]
        resident = [int(each) * os.sysconf("SC_PAGE_SIZE") for each in pages]
        assert found["process_resident_memory_bytes",] > max(resident)


def test_what_a_process_has_counted_outlives_it():
    for processes in ("1", "2"):
        with serving("--load", "simple", "--processes", processes) as server:
            for round_ in range(1, 4):
                for _ in range(20):
                    assert server.infer("simple", SIMPLE).status == 200
                before = server.serving_pids()
                os.kill(before[0], signal.SIGKILL)
                wait_until(lambda: before[0] not in server.serving_pids())  # noqa: B023
                assert requests(server) == 20 * round_


def test_a_rolling_restart_loses_no_counts():
    with serving("--load", "simple", "--processes", "2") as server:
        for round_ in range(1, 4):
            for _ in range(20):
                assert server.infer("simple", SIMPLE).status == 200
            server.process.send_signal(signal.SIGHUP)
            wait_until(lambda: server.log.count("restarted:") == round_)  # noqa: B023
            assert requests(server) == 20 * round_


def test_no_counter_goes_back_while_processes_come_and_go():
    with serving("--load", "simple", "--processes", "2") as server, load(server) as running:
        before, _ = samples(server)
        for step in range(4):
            pids = server.serving_pids()
            if step % 2:
                server.process.send_signal(signal.SIGHUP)
            else:
                os.kill(pids[0], signal.SIGKILL)
            for _ in range(10):
                now, rising = samples(server)
                back = {key: (before.get(key, 0), now[key]) for key in rising if now[key] < before.get(key, 0)}
                back = {key: values for key, values in back.items() if not key[0].endswith("_created")}
                assert not back
                assert before.keys() <= now.keys()
                before = now
            wait_until(lambda: len(server.serving_pids()) == 2 and not set(pids) <= set(server.serving_pids()))  # noqa: B023
        running.goes_on()


def test_a_model_that_is_loaded_again_begins_at_0():
    with serving("--load", "simple", "--processes", "2") as server:
        for _ in range(10):
            assert server.infer("simple", SIMPLE).status == 200
        assert server.post("/v2/models/simple/unload").status == 200
        assert "model=" not in server.get("/metrics").body.decode()
        assert server.post("/v2/models/simple/load").status == 200
        assert requests(server) == 0


def test_scrapes_of_all_processes_while_models_come_and_go():
    """Nobody sees less than was counted before, misses a model, or sees one that was unloaded before."""
    with serving("--load", "simple", "--processes", "2") as server:
        stop, loaded, gone, done, failures, pages = threading.Event(), set(), set(), 0, [], 0

        def scrape():
            nonlocal pages
            while not stop.is_set():
                counted_before, loaded_before, gone_before = done, set(loaded), set(gone)
                found, _ = samples(server)
                entries = server.get("/v2/models/stats").json["model_stats"]
                (entry,) = [entry for entry in entries if entry["name"] == "simple"]
                counted = found["fastinfer_requests_total", ("model", "simple"), ("version", "1")]
                least = min(counted, entry["inference_stats"]["success"]["count"])
                on_page = {value for key in found for label, value in key[1:] if label == "model"}
                for names in (on_page, {entry["name"] for entry in entries}):
                    missing, left = (loaded_before & loaded) - names, gone_before & names
                    if least < counted_before or missing or left:
                        failures.append((counted_before, least, missing, left))
                pages += 1

        threads = [threading.Thread(target=scrape) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            for number in range(12):
                assert server.post("/v2/workers/echo/load", {"n": number}).status == 200
                loaded.add("echo" if number == 0 else f"echo-{number - 1}")
                for _ in range(10):
                    assert server.infer("simple", SIMPLE).status == 200
                    done += 1
            for name in sorted(loaded)[:8]:
                loaded.remove(name)
                assert server.post(f"/v2/workers/{name}/unload").status == 200
                gone.add(name)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert not failures
        assert pages >= len(threads)
        assert requests(server) == 120


def test_gauges_are_those_of_the_processes_that_live():
    with serving("--load", "none", "--processes", "2") as server:
        assert server.post("/v2/workers/fake/load", {"delay_ms": 20_000}).status == 200
        waiting = [server.connect() for _ in range(10)]
        for connection in waiting:
            connection.request("POST", "/v2/models/fake/infer", '{"inputs":[]}')
        name = ("fastinfer_requests_in_flight", ("model", "fake"), ("version", "1"))
        wait_until(lambda: samples(server)[0][name] == 10)
        assert samples(server)[0]["fastinfer_connections",] >= 10
        for pid in server.serving_pids():
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: samples(server)[0][name] == 0)
        for connection in waiting:
            connection.close()


def test_pages_are_the_same_alone():
    """A server without a supervisor has the same families."""
    names = []
    for processes in ("0", "2"):
        with serving("--load", "simple", "--processes", processes) as server:
            names.append(re.findall(r"^# TYPE (\S+ \S+)", server.get("/metrics").body.decode(), re.M))
    assert names[0] == names[1]


def test_a_supervisor_that_stands_still_keeps_no_scrape_waiting():
    with serving("--load", "simple", "--processes", "2", "--request-timeout-s", "1") as server:
        server.process.send_signal(signal.SIGSTOP)
        try:
            assert server.get("/metrics").status == 504
            assert server.get("/v2/health/live").status == 200
        finally:
            server.process.send_signal(signal.SIGCONT)
        wait_until(lambda: server.get("/metrics").status == 200)
