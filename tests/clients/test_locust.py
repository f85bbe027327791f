"""locust: FastHttpUser and HttpUser under load, without a failure."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from clients.support import run
from support import absent_client, serving

HERE = Path(__file__).parent
BENCH_FILE = HERE.parents[1] / "bench" / "locustfile.py"


@pytest.fixture(scope="module")
def server():
    if not importlib.util.find_spec("locust"):  # not imported: that would change the sockets of all tests
        absent_client("locust is not installed")
    with serving() as running:
        yield running


@pytest.fixture
def locust(server):
    """Lets users of a locustfile work for two seconds; statistics by the name of what was asked."""

    def locust(file, *users, **variables):
        command = [sys.executable, "-m", "locust", "-f", file, "--host", f"http://127.0.0.1:{server.port}"]
        options = "--headless --users 8 --spawn-rate 8 --run-time 2s --stop-timeout 5 --json"
        done = run([*command, *options.split(), *users], variables)
        assert done.returncode == 0, done.stderr
        statistics = json.loads(done.stdout)
        assert statistics
        assert sum(each["num_failures"] for each in statistics) == 0, done.stderr
        return {each["name"]: each["num_requests"] for each in statistics}

    return locust


@pytest.mark.parametrize("user", ["Fast", "Plain"])
def test_users(locust, user):
    asked = locust(HERE / "locust_users.py", user)
    for name in ("/v2/models/simple/infer", "/v2/health/ready", "/v2/models/simple", "refused"):
        assert asked[name] > 0


def test_the_users_of_the_bench(locust):
    asked = locust(BENCH_FILE)
    for name in ("digits", "identity_bytes", "identity_fp32", "simple", "two_versions"):
        assert asked[f"/v2/models/{name}/infer"] > 0


def test_the_users_of_the_bench_on_some_models(locust):
    asked = locust(BENCH_FILE, BENCH_MODELS="simple", BENCH_ROWS="4")
    assert [name for name in asked if name.endswith("/infer")] == ["/v2/models/simple/infer"]
