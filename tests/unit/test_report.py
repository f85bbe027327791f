"""Reports of counters, against the same text written in Python."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from array import array
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from reports import expected_lines, expected_statistics, statistics

from fastinfer.api.metrics import _SERVER_CELLS, _families
from fastinfer.shared.counters import CELLS_OF_LINE, LINE_CELL, LINES, NBYTES, Counters, batch_size_of
from fastinfer.shared.report import USAGE_CELLS, Entry, Group, Report, Section, Shared, Step, Template
from fastinfer.shared.statistics import LAST_INFERENCE_CELL, ModelStats, entry, statistics_template

CELLS = NBYTES // 8
PAGE = Template([family.section() for family in _families(True, True)], (3, _SERVER_CELLS))
STATISTICS = statistics_template()


def written(report: Report) -> str:
    report.run()
    return bytes(report.result()).decode()


def page(entries: list[Entry], shared: Shared | None = None) -> str:
    return written(Report(PAGE, [Group(entries), Group([Entry(())])], shared, latest=LAST_INFERENCE_CELL))


def lines_of_models(text: str) -> list[str]:
    """Without the gauges, which are not counters."""
    found = [line for line in text.splitlines() if "model=" in line]
    return [line for line in found if not re.match(r"fastinfer_(queue_depth|requests_in_flight|batches_running)", line)]


def random_cells(number: int, least: int = 0) -> array[int]:
    """Counters of all sizes, so that no sum is beyond 2^63."""
    made = random.Random(number)
    return array("q", [made.choice([0, 0, least, made.randrange(10), made.randrange(2**50)]) for _ in range(CELLS)])


def stats_of(cells: array[int]) -> ModelStats:
    return ModelStats(bytearray(cells.tobytes()))


def used_lines(cells: array[int]) -> list[list[int]]:
    every = [LINE_CELL + line * CELLS_OF_LINE for line in range(LINES)]
    return [
        [batch_size_of(line), *cells[cell : cell + CELLS_OF_LINE]] for line, cell in enumerate(every) if cells[cell]
    ]


# --- The tables -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 2, 65, 130])
def test_the_page_is_what_python_writes(count: int) -> None:
    models = [(f"m{number}", str(1 + number % 3), stats_of(random_cells(number))) for number in range(count)]
    text = page([entry(*model) for model in models])
    assert lines_of_models(text) == expected_lines(models)
    assert text.endswith("\n")
    names = re.findall(r"^# TYPE (\S+) \S+$", text, re.M)
    assert len(names) == len(set(names)) == len(re.findall(r"^# HELP \S+ .+$", text, re.M))


@pytest.mark.parametrize("count", [0, 1, 2, 65])
def test_statistics_are_what_python_writes(count: int) -> None:
    cells = [random_cells(number) for number in range(count)]
    models = [stats_of(each) for each in cells]
    assert statistics(*models) == [
        expected_statistics(f"m{number}", "1", stats, used_lines(each))
        for number, (stats, each) in enumerate(zip(models, cells, strict=True))
    ]


def test_the_json_is_compact() -> None:
    text = written(Report(STATISTICS, [Group([entry("m", "1", stats_of(random_cells(1)))])]))
    assert text == json.dumps(json.loads(text), separators=(",", ":"))


@given(st.text(max_size=20), st.text(max_size=5))
def test_any_name_is_read_back(name: str, version: str) -> None:
    if not all(part.isprintable() or part == "\n" for part in name + version):
        return  # the parser splits lines at more than the format's line feed
    entries = [entry(name, version, ModelStats())]
    families = text_string_to_metric_families(page(entries))
    labels = {
        (sample.labels["model"], sample.labels["version"])
        for family in families
        for sample in family.samples
        if "model" in sample.labels
    }
    assert labels == {(name, version)}
    (found,) = json.loads(written(Report(STATISTICS, [Group(entries)])))["model_stats"]
    assert (found["name"], found["version"]) == (name, version)


def test_numbers_wrap_around() -> None:
    template = Template([Section(0, steps=[Step(b"", cells=[0, 1], form="whole")])])
    entries = [Entry((), counters=Counters(bytearray(array("q", [2**63 - 1, 1] + [0] * CELLS).tobytes())))]
    assert written(Report(template, [Group(entries)])) == str(-(2**63))


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=5), st.sampled_from([1.0, 100.0, 1e9]))
def test_numbers_are_those_of_python(values: list[int], unit: float) -> None:
    steps = [
        Step(b" ", cells=[place], form=form, unit=unit) for place in range(len(values)) for form in ("whole", "decimal")
    ]
    report = Report(Template([Section(0, steps=steps)], (len(values),)), [Group([Entry(())], array("q", values))])
    assert written(report).split() == [text for value in values for text in (str(value), repr(value / unit))]


# --- Steps ------------------------------------------------------------------------------------------------------------


def test_a_step_at_a_time_writes_the_same() -> None:
    entries = [entry(f"m{number}", "1", stats_of(random_cells(number))) for number in range(100)]
    report = Report(STATISTICS, [Group(entries)])
    steps = 1
    while not report.step():
        steps += 1
    assert steps > 2
    assert bytes(report.result()).decode() == written(Report(STATISTICS, [Group(entries)]))
    with pytest.raises(ValueError, match="one result"):
        report.result()


def test_a_report_that_has_not_ended_has_no_result() -> None:
    with pytest.raises(ValueError, match="one result"):
        Report(STATISTICS, [Group([])]).result()


def test_sections_of_groups() -> None:
    template = Template(
        [
            Section(0, b"<", b"|", b">", [Step(b"a", 0, b"b", [0], form="whole"), Step(b"c", cells=[1], goes_on=True,
                                                                                    form="whole")]),
            Section(1, b"[", b"", b"]", [Step(b"x", condition=0, skipped=1, listed=True), Step(b"y"),
                                         Step(b"z", 1, listed=True)]),
        ],
        (2, 1),
    )  # fmt: skip
    first = Group([Entry((b"1",)), Entry((b"2",))], array("q", [3, 4, 5, 6]))
    assert written(Report(template, [first, Group([Entry((b"", b"t"))], array("q", [7]))])) == "<a1b3c7|a2b5c11>[xy,zt]"
    assert written(Report(template, [first, Group([Entry((b"", b"t"))])])) == "<a1b3c7|a2b5c11>[zt]"
    assert written(Report(template, [Group([]), Group([])])) == "<>[]"


@pytest.mark.parametrize(
    "steps",
    [
        [Step(b"", text=2)],
        [Step(b"", text=-2)],
        [Step(b"", cells=[-1])],
        [Step(b"", condition=-1)],
        [Step(b"", condition=0, skipped=1)],
    ],
)
def test_a_template_refers_to_what_there_is(steps: list[Step]) -> None:
    with pytest.raises(ValueError, match=r"does not have|leaves out"):
        Template([Section(0, steps=steps)])


def test_cells_that_are_not_given_are_refused() -> None:
    with pytest.raises(ValueError, match="does not have this cell"):
        Template([Section(1, steps=[Step(b"", cells=[1])])], (0, 1))
    template = Template([Section(0, steps=[Step(b"", cells=[0])])], (1,))
    with pytest.raises(ValueError, match="1 cells that are given"):
        Report(template, [Group([Entry(())], array("q", [1, 2]))])
    with pytest.raises(ValueError, match="1 groups"):
        Report(template, [])
    with pytest.raises(ValueError, match="16 bytes"):
        Entry((), b"k")
    with pytest.raises(ValueError, match="at most 2 texts"):
        Entry((b"", b"", b""))


# --- Counters of several processes ------------------------------------------------------------------------------------

BLOCK = 64 + NBYTES
KEYS = [bytes([number]) * 16 for number in range(1, 9)]


def banks(*blocks: list[tuple[bytes, array[int]]], room: int = 12) -> Shared:
    """Memory of several processes: for each the key and the counters of its blocks."""
    memory = bytearray(len(blocks) * room * BLOCK)
    for bank, of_a_bank in enumerate(blocks):
        for place, (key, cells) in enumerate([(KEYS[0], random_cells(0)), *of_a_bank]):
            at = (bank * room + place) * BLOCK
            memory[at : at + BLOCK] = key + bytes(64 - len(key)) + cells.tobytes()
    return Shared(memory, room * BLOCK, BLOCK, 64)


def sums(*several: array[int]) -> array[int]:
    total = array("q", [sum(cells) for cells in zip(*several, strict=True)])
    total[LAST_INFERENCE_CELL] = max(cells[LAST_INFERENCE_CELL] for cells in several)
    return total


def reported(entries: list[Entry], shared: Shared | None) -> list[Any]:
    report = Report(STATISTICS, [Group(entries)], shared, latest=LAST_INFERENCE_CELL)
    return json.loads(written(report))["model_stats"]


def test_counters_of_all_processes_are_summed() -> None:
    made = random.Random(1)
    for _ in range(20):
        found: dict[bytes, list[array[int]]] = {key: [] for key in KEYS}
        blocks: list[list[tuple[bytes, array[int]]]] = []
        for _ in range(made.randrange(1, 4)):
            of_a_bank = [(key, random_cells(made.randrange(10**6))) for key in made.sample(KEYS, made.randrange(8))]
            for key, cells in of_a_bank:
                found[key].append(cells)
            blocks.append(of_a_bank)
        chosen = made.sample(KEYS, 5)
        expected = []
        for key in chosen:
            total = sums(array("q", bytes(NBYTES)), *found[key])
            expected.append(expected_statistics("m", "1", stats_of(total), used_lines(total)))
        assert reported([entry("m", "1", None, key) for key in chosen], banks(*blocks)) == expected


def test_a_block_that_is_being_given_away_counts_for_nobody_and_hides_none() -> None:
    cells = random_cells(3)
    shared = banks([(b"\xff" * 16, random_cells(4)), (KEYS[2], cells)])
    (found,) = reported([entry("m", "1", None, KEYS[2])], shared)
    assert found == expected_statistics("m", "1", stats_of(cells), used_lines(cells))


def test_nothing_is_read_behind_the_first_block_that_was_never_used() -> None:
    shared = banks([(bytes(16), array("q", bytes(NBYTES))), (KEYS[2], random_cells(3))])
    (found,) = reported([entry("m", "1", None, KEYS[2])], shared)
    assert found["inference_count"] == 0


def test_counters_in_memory_of_their_own_are_added() -> None:
    cells, own = random_cells(3), random_cells(5)
    shared = banks([(KEYS[2], cells)])
    (found,) = reported([entry("m", "1", stats_of(own), KEYS[2])], shared)
    total = sums(cells, own)
    assert found == expected_statistics("m", "1", stats_of(total), used_lines(total))


def test_counters_in_a_bank_count_once() -> None:
    cells = random_cells(3)
    shared = banks([(KEYS[2], cells)])
    own = ModelStats(memoryview(shared.memory)[BLOCK + 64 : 2 * BLOCK])
    (found,) = reported([entry("m", "1", own, KEYS[2])], shared)
    assert found == expected_statistics("m", "1", stats_of(cells), used_lines(cells))


def test_blocks_that_are_too_small_are_refused() -> None:
    with pytest.raises(ValueError, match="does not have all cells"):
        Report(STATISTICS, [Group([entry("m", "1")])], Shared(bytearray(4096), 4096, 1024, 64))
    with pytest.raises(ValueError, match="do not lie like this"):
        Report(STATISTICS, [Group([])], Shared(bytearray(4096), 4096, 1000, 64))


# --- What processes use -----------------------------------------------------------------------------------------------


def usage(*pids: int) -> list[int]:
    steps = [Step(b" ", cells=[cell], form="whole") for cell in range(USAGE_CELLS)]
    template = Template([Section(1, steps=steps)], (0, USAGE_CELLS))
    return [int(word) for word in written(Report(template, [Group([]), Group([Entry(())])], pids=pids)).split()]


def test_what_a_process_uses() -> None:
    pid = os.getpid()
    virtual, resident, start, cpu, files, most = usage(pid)
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    assert 0.5 < resident / (int(words[21]) * os.sysconf("SC_PAGE_SIZE")) < 2
    assert 0.5 < virtual / int(words[20]) < 2
    assert start == int(words[19])
    assert 0 < cpu <= sum(map(int, words[11:15]))
    assert most == int(re.search(r"Max open files +(\d+)", Path(f"/proc/{pid}/limits").read_text())[1])  # type: ignore[index]
    opened = [Path("/dev/null").open() for _ in range(50)]  # noqa: SIM115
    assert usage(pid)[4] == files + 50
    for each in opened:
        each.close()


def test_what_several_processes_use() -> None:
    script = "import sys; print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        own, all_, theirs = usage(os.getpid()), usage(os.getpid(), other.pid), usage(other.pid)
        assert all_[1] > max(own[1], theirs[1])
        assert all_[2] == own[2] < theirs[2]
        assert all_[4:] == [own[4] + theirs[4], own[5] + theirs[5]]
        other.communicate()
    assert usage(other.pid) == [0] * USAGE_CELLS  # it has ended
    assert usage(os.getpid(), other.pid)[4:] == usage(os.getpid())[4:]
