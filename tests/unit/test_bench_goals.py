"""What a run says about the goals: ratios of the same round, verdicts, and reasons where there is nothing to judge."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("hdrh")
sys.path.append(str(Path(__file__).parents[2]))

from bench.load import batches, goals, runtime
from bench.load.goals import Goal, Measured, MissingError


def cell(server, rates, *, scenario="simple", connections=64, **more):
    rounds = [{"requests_per_s": rate, "p50_us": 1e6 / rate} for rate in rates]
    return {"scenario": scenario, "connections": connections, "load": None, "server": server, "rounds": rounds} | more


def result(*cells, absent=None, **more):
    return {"results": list(cells), "absent": absent or {}} | more


def row(*ratios, **goal):
    return Goal(1, "what", lambda _: Measured(ratios), **goal).row({})


# --- Verdicts ---------------------------------------------------------------------------------------------------------


def test_the_median_of_the_rounds_is_judged_and_the_spread_is_shown():
    judged = row(3.0, 9.0, 4.0, least=3.5)
    assert (judged["ratio"], judged["spread"], judged["rounds"], judged["verdict"]) == (4.0, [3.0, 9.0], 3, "met")
    assert row(3.0, 9.0, 3.4, least=3.5)["verdict"] == "missed"


def test_some_goals_are_upper_limits():
    assert row(1.2, most=1.2)["verdict"] == "met"
    assert row(1.3, 1.1, 1.25, most=1.2)["verdict"] == "missed"
    assert row(1.2, most=1.2)["required"] == "≤ 1.2"


def test_against_native_triton_the_ratio_to_the_python_backend_is_divided():
    judged = row(10.0, least=3.5, native=2.5)
    assert judged["ratio"] == pytest.approx(4.0)
    assert "10.00 times its Python backend" in judged["note"] and "2.50" in judged["note"]


# --- Ratios -----------------------------------------------------------------------------------------------------------


def test_ratios_are_taken_within_rounds():
    run = result(cell("fastinfer", [10, 100]), cell("floor", [20, 200]))
    assert goals.rate("simple", 64, "floor")(run).ratios == [0.5, 0.5]
    assert goals.median_latency("simple", 64, "floor")(run).ratios == [2.0, 2.0]


@pytest.mark.parametrize(
    "run, reason",
    [
        (result(cell("fastinfer", [1]), absent={"floor": "no\nsuch wheel"}), "floor is absent: no such wheel"),
        (result(cell("fastinfer", [1]), cell("floor", [], failed="503")), "floor: 503"),
        (result(cell("fastinfer", [1])), "floor in simple at 64 is not part of this run"),
    ],
)
def test_what_is_missing_says_why(run, reason):
    with pytest.raises(MissingError, match=reason):
        goals.rate("simple", 64, "floor")(run)


def test_an_empty_run_meets_nothing_and_says_why():
    rows = goals.rows(result())
    assert {each["verdict"] for each in rows} == {"not measured"}
    assert all(each["note"] for each in rows)
    assert {each["goal"] for each in rows} == {1, 2, 3, 4, 5, 6}


def test_the_runtime_is_judged_beside_the_traffic_and_both_are_shown():
    def way(batch, items):
        return {"loops": 1, "threads": 1, "batch": batch, "items_per_s": items}

    rounds = [{"alone": [way(1, 100), way(16, 400)], "beside": [way(16, 200)]}] * 2
    run = result(cell("fastinfer", [180, 190], scenario="large MLP"))
    run["onnxruntime"] = [{"scenario": "large MLP", "rounds": rounds}]
    measured = goals.of_runtime("large MLP", 64)(run)
    assert measured.ratios == [0.9, 0.95]
    assert "batches of 16" in measured.note and "0.46 of its 400" in measured.note


def test_the_runtimes_best_is_one_way_for_all_rounds():
    def made(a, b):
        ways = ((1, a), (8, b))
        return {"alone": [{"loops": 1, "threads": 1, "batch": n, "items_per_s": rate} for n, rate in ways]}

    way, rates = runtime.best([made(10, 50), made(90, 60), made(20, 70)], "alone")
    assert (way["batch"], rates) == (8, [50, 60, 70])
    assert runtime.best([made(1, 2)], "beside") is None


def test_the_least_favourable_case_of_the_codec_counts():
    def case(name, us, orjson_us):
        return {"case": name, "us": us, "orjson_us": orjson_us, "bytes": 1}

    cases = [case("encode INT32", 1, 3), case("encode UINT8", 1, 2), case("encode INT32 x 16", 1, 1)]
    measured = goals.codec("orjson", "encode INT", "encode UINT")(result(codec=[cases, cases]))
    assert measured.ratios == [2, 2]
    assert "encode UINT8" in measured.note
    with pytest.raises(MissingError, match="libsimdjson"):
        goals.codec("simdjson", "encode")(result(codec=[cases]))


def test_the_growth_of_the_client_is_in_the_floors_growth():
    timed = {"64/64": {"floor": [4.0], "fastinfer": [10.0]}, "1000/1000": {"floor": [6.0], "fastinfer": [15.0]}}
    run = result(growth={"connections": timed, "absent": {}})
    assert goals.connections(1000, 64, 1000, beside_floor=True)(run).ratios == [1.0]
    assert goals.connections(1000, 64, 1000)(run).ratios == [1.5]


def test_connections_that_the_machine_forbids_are_not_measured():
    run = result(growth={"connections": {}, "absent": {"10000": "the hard limit of open files forbids it"}})
    with pytest.raises(MissingError, match="hard limit"):
        goals.connections(1, 1, 10_000)(run)


def test_heads_are_judged_by_the_servers_time():
    measured = goals.heads(result(growth={"heads": {"equal": [10.0, 8.0], "own": [11.0, 8.0]}}))
    assert measured.ratios == [1.1, 1.0]
    assert measured.note == "equal: 9.00 µs, own: 9.50 µs"


def test_memory_is_judged_by_what_a_request_must_hold():
    held = {"a_request": 2 << 20, "body": 1 << 20, "tensors": (1 << 20) - (64 << 10)}
    assert goals.memory(result(growth={"memory": [held]})).ratios == [1.0]


# --- Batches ----------------------------------------------------------------------------------------------------------


def test_batches_are_read_from_the_metrics():
    def lines(model, *counts):
        bounds = ("1.0", "2.0", "+Inf")
        head = "fastinfer_batch_size_bucket"
        return "".join(
            f'{head}{{le="{bound}",model="{model}",version="1"}} {count}\n'
            for bound, count in zip(bounds, counts, strict=True)
        )

    before = batches.on_page(lines("a", 5.0, 8.0, 8.0))
    after = batches.on_page(lines("a", 5.0, 9.0, 9.0) + lines("b", 0.0, 2.0, 2.0))
    assert before == {1: 5, 2: 3}
    assert batches.between(before, after) == {2: 3}
    assert [batches.class_text(bound) for bound in (1, 2, 4, 64)] == ["1", "2", "3–4", "33–64"]
