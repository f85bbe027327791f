"""Signals that tell the state and toggle debug logging, and children that nobody waits for."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from fastinfer.base import logs, signals

PROGRAM = """
import asyncio, os, sys, time
from fastinfer.base import logs, signals

def stands_still(seconds):
    print("ready", flush=True)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.01)
    print("goes on", flush=True)

async def waits():
    await asyncio.sleep(3600)

async def main():
    loop = asyncio.get_running_loop()
    task = loop.create_task(waits())
    tell = lambda: ["the state", *signals.waits([task])]
    inspection = signals.Inspection(loop, tell, logs.Debug().toggle)
    await asyncio.sleep(0)
    stands_still(float(sys.argv[1]))
    while not os.path.exists(sys.argv[2]):
        await asyncio.sleep(0.01)
    inspection.close()
    print("closed", flush=True)
    time.sleep(0.2)

signals.hold()
written = logs.start()
asyncio.run(main())
written.stop()
"""


@contextlib.contextmanager
def program(seconds: float, file: str, stderr: int) -> Iterator[subprocess.Popen[str]]:
    words = [sys.executable, "-c", PROGRAM, str(seconds), file]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=stderr, text=True) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            yield child
        finally:
            child.kill()


def test_stacks_come_while_the_loop_stands_still(tmp_path):
    """And the rest when it goes on."""
    reading, writing = os.pipe()
    with os.fdopen(reading) as log, program(5, str(tmp_path / "end"), writing) as child:
        os.close(writing)
        assert child.stdout is not None
        child.send_signal(signal.SIGUSR1)
        line = log.readline()
        while not ("thread 'MainThread': " in line and "stands_still (" in line):
            assert line
            line = log.readline()
        child.send_signal(signal.SIGUSR2)
        assert child.stdout.readline() == "goes on\n"
        (tmp_path / "end").touch()
        assert child.stdout.readline() == "closed\n"
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            child.send_signal(number)
        assert child.wait(10) == 0
        rest = log.read()
        assert "INFO     the state\n" in rest
        assert "INFO     waits:" in rest and " > sleep:" in rest
        assert "debug logging is on" in rest


def test_a_full_pipe_stops_nobody(tmp_path):
    reading, writing = os.pipe()
    with program(1, str(tmp_path / "end"), writing) as child:
        assert child.stdout is not None
        os.set_blocking(writing, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writing, b"x" * 65_536)
        child.send_signal(signal.SIGUSR1)
        assert child.stdout.readline() == "goes on\n"
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize(("level", "off"), [("info", "info"), ("error", "error"), ("debug", "info")])
def test_debug_logging_is_toggled_and_says_so(level: str, off: str, caplog: pytest.LogCaptureFixture) -> None:
    root = logging.getLogger()
    before = root.level
    try:
        root.setLevel(level.upper())
        debug = logs.Debug()
        assert debug.on is (level == "debug")
        if debug.on:
            debug.toggle()
        debug.set(on=False)  # it is: nothing is said
        debug.toggle()
        assert (debug.on, root.level) == (True, logging.DEBUG)
        debug.toggle()
        assert (debug.on, root.level) == (False, getattr(logging, off.upper()))
        told = [record.getMessage() for record in caplog.records][-2:]
        assert told == ["debug logging is on", f"debug logging is off; the level is {off}"]
    finally:
        root.setLevel(before)


def test_children_that_nobody_waits_for_are_collected() -> None:
    code = (
        "import os, time\n"
        "from fastinfer.base import signals\n"
        "def ended():\n"
        "    pid = os.fork()\n"
        "    if not pid: os._exit(7)\n"
        "    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)\n"
        "    return pid\n"
        "assert signals.reap(()) == []\n"
        "ours, others = [ended() for _ in range(3)], [ended() for _ in range(3)]\n"
        "assert sorted(signals.reap(set(ours))) == sorted(others)\n"
        "assert signals.reap(set(ours)) == []\n"
        "print([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in ours])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[7, 7, 7]\n", "")


def test_a_process_keeps_signals_until_it_can_answer() -> None:
    code = (
        "import os, signal, subprocess, sys, threading\n"
        "from fastinfer.base import signals\n"
        "signals.hold()\n"
        "for number in (signal.SIGUSR1, signal.SIGUSR2): os.kill(os.getpid(), number)\n"
        "print(signal.sigpending() == {signal.SIGUSR1, signal.SIGUSR2}, flush=True)\n"
        "child = 'import signal; print(sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())))'\n"
        "subprocess.run([sys.executable, '-c', child], check=True)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    kept, inherited = done.stdout.splitlines()
    assert kept == "True"
    assert "SIGUSR1" in inherited and "SIGUSR2" in inherited


def test_stacks_of_threads_that_work() -> None:
    """As often as anybody asks: stacks are read while their threads stand."""

    def work(depth: int) -> None:
        if depth:
            work(depth - 1)

    def works() -> None:
        while not ended.is_set():
            work(10)

    ended = threading.Event()
    threads = [threading.Thread(target=works, name=f"works-{number}") for number in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(300):
            told = list(signals.stacks())
            assert sum("thread 'works-" in line and "works (unit/test_signals.py:" in line for line in told) == 3
    finally:
        ended.set()
        for thread in threads:
            thread.join()
