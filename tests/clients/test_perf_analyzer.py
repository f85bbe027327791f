"""perf_analyzer, Triton's load generator: closed and open loop, JSON and binary.

It asks for metadata and configuration first, and for statistics before and after each measurement.

One of some hundred of its runs does not end, by itself (November 2026): its threads have left, its sockets are empty,
and it waits for them in a loop of pauses. Such a run is repeated, if the server has nothing left to answer.
"""

from __future__ import annotations

import itertools
import json
import re
import subprocess

import onnx_models
import pytest
from clients.support import PERF_ANALYZER, add_model
from support import serving

ROW = list(range(16))
REQUESTS = 100
COUNT = ("--request-count", str(REQUESTS))  # instead of windows of time: a busy machine takes longer, and that is all
FAILED = 99  # its exit status


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    repository = tmp_path_factory.mktemp("repository")
    add_model(repository, "simple", onnx_models.simple(), "max_batch_size = 8\n[dynamic_batching]\n")
    add_model(repository, "unbatched", onnx_models.identity("FP32", [16]), "max_batch_size = 0\n")
    add_model(repository, "texts", onnx_models.identity("BYTES", ["batch", 4]))
    add_model(repository, "free", onnx_models.identity("FP32", ["batch", None, None]))
    with serving(repository=repository) as running:
        yield running


@pytest.fixture
def analyze(server):
    """Runs it on a model; all that it prints."""

    def run(*options):
        for _ in range(2):
            try:
                return PERF_ANALYZER.run("perf_analyzer", *options, timeout_s=30)
            except subprocess.TimeoutExpired:
                assert not re.search(r"^fastinfer_requests_in_flight\S* [^0]", server.metrics(), re.MULTILINE)
        return PERF_ANALYZER.run("perf_analyzer", *options)

    def analyze(model, *options, exit_status=0):
        where = ("-u", f"127.0.0.1:{server.port}", "-i", "http", "-m", model)
        done = run(*where, *options)
        printed = done.stdout + done.stderr
        assert done.returncode == exit_status, printed
        return printed

    return analyze


def check(printed, batch_size=1):
    """The measurement has sent REQUESTS, and the server's statistics could be read.

    They are read when the first requests may have been answered already, so the counts of the server may be smaller.
    """
    (throughput,) = re.findall(r"throughput: ([0-9.]+) infer/sec, latency [0-9]+ usec", printed)
    assert float(throughput) > 0
    counts = {name: int(count) for name, count in re.findall(r"(\S+(?: request)?) count: (\d+)", printed)}
    assert counts["Request"] == REQUESTS
    assert counts["Successful request"] <= REQUESTS
    assert counts["Inference"] == counts["Successful request"] * batch_size
    assert "Execution" in counts
    assert re.search(r"overhead \d+ usec \+ queue \d+ usec \+ compute input \d+ usec", printed)


@pytest.mark.parametrize(("sent", "answered"), [*itertools.product(["json", "binary"], repeat=2)])
def test_a_closed_loop(analyze, sent, answered):
    formats = ("--input-tensor-format", sent, "--output-tensor-format", answered)
    check(analyze("simple", *COUNT, "--concurrency-range", "4", *formats))


@pytest.mark.parametrize("form", ["json", "binary"])
@pytest.mark.parametrize("distribution", ["constant", "poisson"])
def test_an_open_loop(analyze, distribution, form):
    formats = ("--input-tensor-format", form, "--output-tensor-format", form)
    rate = ("--request-rate-range", str(REQUESTS), "--request-distribution", distribution)
    check(analyze("simple", *COUNT, *rate, *formats))


def test_windows_of_time(analyze):
    """As it measures when nothing is said: until three windows are alike. Here any are."""
    windows = ("-p", "300", "-r", "3", "-s", "100000")
    printed = analyze("simple", *windows, "--concurrency-range", "1:4:3")
    found = re.findall(r"Concurrency: (\d), throughput: ([0-9.]+) infer/sec", printed)
    assert [concurrency for concurrency, throughput in found if float(throughput) > 0] == ["1", "4"], printed


@pytest.mark.parametrize("options", [(), ("--async",)], ids=["sync", "async"])
def test_batches(analyze, options):
    check(analyze("simple", *COUNT, "-b", "4", "--concurrency-range", "8", *options), batch_size=4)


def test_a_model_that_is_not_batched(analyze):
    check(analyze("unbatched", *COUNT, "--concurrency-range", "2"))


@pytest.mark.parametrize("form", ["json", "binary"])
def test_texts(analyze, form):
    check(analyze("texts", *COUNT, "--string-length", "20", "--input-tensor-format", form))


@pytest.mark.parametrize("data", ["zero", "random"])
def test_generated_data(analyze, data):
    check(analyze("simple", *COUNT, "--input-data", data))


def test_a_shape_for_what_is_free(analyze):
    check(analyze("free", *COUNT, "--shape", "x:3,5", "-b", "2"), batch_size=2)
    assert "dynamic shape" in analyze("free", *COUNT, exit_status=FAILED)


@pytest.fixture
def data(tmp_path):
    """A file with a request and the answer that is expected of it."""

    def data(sums):
        inputs = {"INPUT0": ROW, "INPUT1": [1] * 16}
        expected = {"OUTPUT0": sums, "OUTPUT1": [n - 1 for n in ROW]}
        (tmp_path / "data.json").write_text(json.dumps({"data": [inputs], "validation_data": [expected]}))
        return str(tmp_path / "data.json")

    return data


@pytest.mark.parametrize("form", ["json", "binary"])
def test_data_of_a_file(analyze, data, form):
    check(analyze("simple", *COUNT, "--input-data", data([n + 1 for n in ROW]), "--input-tensor-format", form))


def test_an_answer_that_is_not_expected_is_told(analyze, data):
    assert "Output doesn't match expected output" in analyze(
        "simple", *COUNT, "--input-data", data(ROW), exit_status=FAILED
    )


def test_a_file_of_results(analyze, tmp_path):
    file = tmp_path / "results.csv"
    check(analyze("simple", *COUNT, "--concurrency-range", "2", "-f", str(file)))
    head, row = file.read_text().splitlines()
    assert head.startswith("Concurrency,Inferences/Second,Client Send,Network+Server Send/Recv,Server Queue")
    assert row.startswith("2,")


def test_the_servers_metrics(analyze, server, tmp_path):
    """It reads them, looks for those of GPUs, and says that there are none."""
    asked = ("--collect-metrics", "--metrics-url", f"127.0.0.1:{server.port}/metrics")
    printed = analyze("simple", *COUNT, "--verbose-csv", "-f", str(tmp_path / "results.csv"), *asked)
    check(printed)
    assert "Unable to parse 'nv_gpu_utilization' metric" in printed


def test_a_version_of_the_model(analyze):
    check(analyze("simple", *COUNT, "-x", "1"))
    printed = analyze("simple", *COUNT, "-x", "7", exit_status=FAILED)
    assert "Request for unknown model: 'simple' version 7 is not found" in printed


@pytest.mark.parametrize(
    ("model", "options", "sentence"),
    [
        ("nobody", (), "Request for unknown model: 'nobody' is not found"),
        ("simple", ("-b", "9"), "inference request batch-size must be <= 8 for 'simple'"),
        ("simple", ("--shared-memory", "system"), "no such path"),
    ],
)
def test_an_error_is_its_own_with_our_sentence(analyze, model, options, sentence):
    assert sentence in analyze(model, *COUNT, *options, exit_status=FAILED)
