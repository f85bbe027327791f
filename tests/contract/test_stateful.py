"""Part A1 in any order: what clients do to one server, against a model of what should be there afterwards."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from support import REPOSITORY, Answer, Server, exchange, inference, serving, tensor, wait_for

pytestmark = pytest.mark.long

MODEL, WORKER = "model", "worker"
MODELS = ("two_versions", "echo", "echo-0")  # two of them have names that workers want too
FAMILIES = ("models", "repository/models")
FACTORS = {1: 10, 2: 100}  # of the versions of each model
WRONG = {"batch_size": 0}
DELAY = {"delay_ms": 60_000}  # of a fake: longer than any example, so whoever asks has to hang up


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    directory = tmp_path_factory.mktemp("models")
    for name in MODELS:
        shutil.copytree(REPOSITORY / "two_versions", directory / name)
    with serving("--load", "none", repository=directory) as running:
        yield running


@pytest.mark.hypothesis
@pytest.mark.timeout(600)  # a failure is made smaller for minutes before it is told
def test_any_order_of_loads_unloads_and_inferences(server):
    examples = max(30, settings.default.max_examples // 50)
    bounded = settings(max_examples=examples, stateful_step_count=40)
    run_state_machine_as_test(lambda: Clients(server), settings=bounded)


# --- What should be ---------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Version:
    """A version that serves, or did."""

    number: int
    counts: Counter[str] = field(default_factory=Counter)
    waiting: int = 0  # requests in flight


@dataclass(eq=False)
class Endpoint:
    name: str
    identity: tuple[str, str, str]
    parameters: dict[str, Any]
    loads: int = 1
    chosen: set[int] = field(default_factory=set)
    versions: dict[int, Version] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        return self.identity[0]

    @property
    def worker(self) -> str:
        """What computes: ``echo``, ``fake`` or ``model``."""
        return self.identity[1] if self.kind == WORKER else MODEL

    @property
    def next(self) -> str | None:
        return self.parameters.get("next")


class Expected:
    """The contract's rules for endpoints, and what each version has counted."""

    def __init__(self) -> None:
        self.endpoints: dict[str, Endpoint] = {}
        self.ending: list[tuple[str, Version]] = []  # not served any more, with requests in flight

    def load(self, kind: str, base: str, version: int | None, parameters: dict[str, Any]) -> str | None:
        """The name of the endpoint; None: the load is refused and changes nothing."""
        if parameters.items() >= WRONG.items():
            return None
        counted = {key: value for key, value in parameters.items() if key != "share"}
        identity = (kind, base, json.dumps(counted, sort_keys=True))
        endpoint = next((known for known in self.endpoints.values() if known.identity == identity), None)
        if endpoint is None:
            first = self.endpoints.get(base)
            if first is not None and first.identity[:2] != identity[:2]:
                return None
            names = (f"{base}-{number}" for number in count())
            name = base if first is None else next(each for each in names if each not in self.endpoints)
            new = Endpoint(name, identity, parameters)
            if version not in (None, *FACTORS) or not self._may_precede(new):
                return None
            self.endpoints[name] = endpoint = new
        elif version not in (None, *FACTORS):
            return None
        elif not parameters.get("share", True):
            endpoint.loads += 1
        elif not endpoint.loads:
            endpoint.loads = 1  # only another endpoint kept it, and now a client wants it again
        self._serve(endpoint, version)
        return endpoint.name

    def _may_precede(self, endpoint: Endpoint) -> bool:
        if endpoint.next is None:
            return True
        following = self.endpoints.get(endpoint.next)
        if following is None:
            return False
        return following.worker == "fake" or endpoint.worker == "fake" or following.worker == endpoint.worker

    def _serve(self, endpoint: Endpoint, version: int | None) -> None:
        if version is not None:
            endpoint.chosen.add(version)
            wanted = {version, *endpoint.versions}
        else:
            wanted = set(FACTORS) if endpoint.kind == MODEL else {1}
        endpoint.versions = {number: endpoint.versions.get(number) or Version(number) for number in sorted(wanted)}

    def unload(self, name: str, version: int | None, dependents: bool) -> None:
        endpoint = self.endpoints.get(name)
        if endpoint is None or (version is not None and version not in endpoint.versions):
            return
        if version is not None and len(endpoint.versions) > 1:
            endpoint.chosen.discard(version)
            self._end(name, endpoint.versions.pop(version))
        else:
            self._take_loads(endpoint, 1 if version is None else endpoint.loads, dependents)

    def _take_loads(self, endpoint: Endpoint, loads: int, dependents: bool) -> None:
        endpoint.loads = max(0, endpoint.loads - loads)
        if endpoint.loads or any(each.next == endpoint.name for each in self.endpoints.values()):
            return
        del self.endpoints[endpoint.name]
        for version in endpoint.versions.values():
            self._end(endpoint.name, version)
        if endpoint.next is not None:
            self._take_loads(self.endpoints[endpoint.next], int(dependents), dependents)

    def _end(self, name: str, version: Version) -> None:
        if version.waiting:
            self.ending.append((name, version))

    def stages(self, name: str, version: int | None = None) -> Iterator[tuple[Endpoint, Version]]:
        """What a request passes."""
        endpoint = self.endpoints[name]
        yield endpoint, endpoint.versions[version or max(endpoint.versions)]
        if endpoint.next is not None:
            yield from self.stages(endpoint.next)

    def index(self) -> list[tuple[str, str, str]]:
        states = {(name, version.number): "UNLOADING" for name, version in self.ending}
        states |= {(each.name, number): "READY" for each in self.endpoints.values() for number in each.versions}
        told = {name for name, _ in states}
        states |= {(name, number): "UNAVAILABLE" for name in MODELS if name not in told for number in FACTORS}
        return sorted((name, str(number), state) for (name, number), state in states.items())

    def statistics(self) -> dict[tuple[str, str], tuple[int, ...]]:
        return {
            (endpoint.name, str(number)): tuple(version.counts[key] for key in ("success", "fail", "rows"))
            for endpoint in self.endpoints.values()
            for number, version in endpoint.versions.items()
        }


Stages = Sequence[tuple[Endpoint, Version]]


def computing(stages: Stages) -> list[str]:
    """What computes, without fakes: those give on what they get."""
    return [endpoint.worker for endpoint, _ in stages if endpoint.worker != "fake"]


def too_many(endpoint: Endpoint, rows: int) -> bool:
    return endpoint.kind == MODEL and rows > endpoint.parameters.get("batch_size", rows)


def refusing(stages: Stages, rows: int = 1) -> int | None:
    """Which stage behind the first cannot take what comes to it: behind a fake there may be anything."""
    first = computing(stages)[:1]
    unfit = (each.worker not in ("fake", *first) or too_many(each, rows) for each, _ in stages)
    return next((at for at, refuses in enumerate(unfit) if refuses), None)


def request(stages: Stages, values: list[int]) -> dict[str, Any]:
    """What the first stage takes, or the first behind fakes."""
    if computing(stages)[:1] == [MODEL]:
        return inference(tensor("number", [len(values), 1], "INT32", values))
    return inference(tensor("anything", [1], "UINT32", values))


def computed(stages: Stages, value: int) -> int:
    for endpoint, version in stages:
        if endpoint.worker == "echo":
            value += 1
        elif endpoint.worker == MODEL:
            value *= FACTORS[version.number]
    return value


def count_success(stages: Stages, rows: int) -> None:
    for endpoint, version in stages:
        version.counts["success"] += 1
        version.counts["rows"] += rows if endpoint.kind == MODEL else 1  # a worker's request is one item


# --- What clients do --------------------------------------------------------------------------------------------------

# Which of the endpoints that there are, or none of them: see Clients.target.
TARGETS = st.integers(0, 11)
VERSIONS = st.sampled_from([None, None, None, 1, 2, 9])
PARAMETERS = [{}, {"share": True}, {"share": False}, {"size": 1}, {"size": 1.0}, {"batch_size": 2}, DELAY, WRONG]


@dataclass
class Waiting:
    """A request that is not going to be answered."""

    connection: socket.socket
    version: Version


class Clients(RuleBasedStateMachine):
    """One client that asks, and others that wait and hang up."""

    def __init__(self, server: Server) -> None:
        super().__init__()
        self.server = server
        self.connection = server.connect()
        self.expected = Expected()
        self.waiting: list[Waiting] = []

    def ask(self, method: str, path: str, body: Any = None) -> Answer:
        return exchange(self.connection, method, path, body)

    def target(self, number: int) -> str:
        """A name that is loaded; sometimes one that is not."""
        names = [*self.expected.endpoints, "nobody"]
        return names[number % len(names)]

    def slow(self) -> list[str]:
        """The endpoints that do not answer."""
        names = (name for name in self.expected.endpoints if self.slow_stage(name) is not None)
        return [name for name in names if refusing(list(self.expected.stages(name))) is None]

    def quick(self) -> list[str]:
        """The others."""
        return [name for name in self.expected.endpoints if self.slow_stage(name) is None]

    def slow_stage(self, name: str) -> int | None:
        stages = enumerate(self.expected.stages(name))
        return next((at for at, (each, _) in stages if each.worker == "fake" and "delay_ms" in each.parameters), None)

    @staticmethod
    def path(name: str, version: int | None, verb: str = "") -> str:
        return name + (f"/versions/{version}" if version else "") + verb

    # --- Loading ---

    @initialize()
    def nothing_is_loaded(self) -> None:
        assert self.ask("GET", "/v2/models").json == {"models": []}

    @rule(
        what=st.sampled_from([(WORKER, "echo"), (WORKER, "fake"), *((MODEL, name) for name in MODELS)]),
        version=VERSIONS,
        family=st.sampled_from(FAMILIES),
        parameters=st.sampled_from(PARAMETERS),
        following=st.none() | TARGETS,
    )
    def load(
        self, what: tuple[str, str], version: int | None, family: str, parameters: dict[str, Any], following: int | None
    ) -> None:
        kind, base = what
        parameters = self.followed(parameters, following)
        if kind == WORKER:
            answer = self.ask("POST", f"/v2/workers/{base.upper()}/load", parameters)
            expected = self.expected.load(WORKER, base, None, parameters)
            name = answer.body.decode()
        else:
            answer = self.ask("POST", f"/v2/{family}/{self.path(base, version, '/load')}", parameters or None)
            expected = self.expected.load(MODEL, base, version, parameters)
            name = answer.json.get("name")
        if expected is None:
            assert (answer.status, bool(answer.error)) == (400, True)
        else:
            assert (answer.status, name) == (200, expected), answer.body

    def followed(self, parameters: dict[str, Any], following: int | None) -> dict[str, Any]:
        return parameters if following is None else {**parameters, "next": self.target(following)}

    @precondition(lambda self: self.expected.endpoints)
    @rule(number=TARGETS, version=VERSIONS, family=st.sampled_from([*FAMILIES, "workers"]), dependents=st.booleans())
    def unload(self, number: int, version: int | None, family: str, dependents: bool) -> None:
        name = self.target(number)
        version = None if family == "workers" else version
        body = {"unload_dependents": True} if dependents else None
        answer = self.ask("POST", f"/v2/{family}/{self.path(name, version, '/unload')}", body)
        assert (answer.status, answer.json) == (200, {"name": name, "unload": True})
        self.expected.unload(name, version, dependents)

    # --- Inference ---

    @precondition(lambda self: self.quick())
    @rule(
        number=TARGETS,
        version=VERSIONS,
        values=st.lists(st.integers(0, 1000), min_size=1, max_size=3),
        broken=st.sampled_from([False, False, False, True]),
    )
    def infer(self, number: int, version: int | None, values: list[int], broken: bool) -> None:
        names = self.quick()
        name = names[number % len(names)]
        path = f"/v2/models/{self.path(name, version, '/infer')}"
        if not self.serves(name, version):
            assert self.ask("POST", path, inference()).status == 404
            return
        stages = list(self.expected.stages(name, version))
        first, served = stages[0]
        values = values if first.kind == MODEL else values[:1]
        answer = self.ask("POST", path, "{" if broken else request(stages, values))
        if broken or too_many(first, len(values)):
            assert (answer.status, bool(answer.error)) == (400, True)
            served.counts["fail"] += 1
            return
        refused = refusing(stages, len(values))
        if refused is not None:
            assert (answer.status, "next stage refused" in answer.error) == (500, True)
            count_success(stages[:refused], len(values))
            stages[refused][1].counts["fail"] += 1
            return
        assert answer.status == 200, answer.body
        assert (answer.json["model_name"], answer.json["model_version"]) == (name, str(served.number))
        (output,) = answer.json["outputs"]
        assert output["data"] == [computed(stages, value) for value in values]
        count_success(stages, len(values))

    @precondition(lambda self: self.slow())
    @rule(number=TARGETS)
    def ask_and_wait(self, number: int) -> None:
        names = self.slow()
        name = names[number % len(names)]
        stages = list(self.expected.stages(name))
        body = json.dumps(request(stages, [1])).encode()
        head = f"POST /v2/models/{name}/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        connection = socket.create_connection(("127.0.0.1", self.server.port))
        connection.sendall(head.encode() + body)
        at = self.slow_stage(name)
        count_success(stages[:at], 1)
        endpoint, version = stages[at]
        version.waiting += 1
        self.waiting.append(Waiting(connection, version))
        wait_for(lambda: self.gauge("requests_in_flight", endpoint.name) == version.waiting)

    @precondition(lambda self: self.waiting)
    @rule(number=st.integers(0, 5))
    def hang_up(self, number: int) -> None:
        gone = self.waiting.pop(number % len(self.waiting))
        gone.connection.close()
        gone.version.waiting -= 1
        gone.version.counts["fail"] += 1
        if not gone.version.waiting:
            self.expected.ending = [each for each in self.expected.ending if each[1] is not gone.version]
        wait_for(lambda: self.index() == self.expected.index() and self.statistics() == self.expected.statistics())

    def serves(self, name: str, version: int | None) -> bool:
        endpoint = self.expected.endpoints.get(name)
        return endpoint is not None and (version is None or version in endpoint.versions)

    # --- What is seen ---

    def index(self) -> list[tuple[str, str, str]]:
        entries = self.ask("POST", "/v2/repository/index").json
        return sorted((entry["name"], entry["version"], entry["state"]) for entry in entries)

    def statistics(self) -> dict[tuple[str, str], tuple[int, int, int]]:
        return {
            (entry["name"], entry["version"]): (
                entry["inference_stats"]["success"]["count"],
                entry["inference_stats"]["fail"]["count"],
                entry["inference_count"],
            )
            for entry in self.ask("GET", "/v2/models/stats").json["model_stats"]
        }

    def gauge(self, gauge: str, model: str | None = None) -> float:
        """The sum over the versions of a model, or of all."""
        which = "" if model is None else f'(?=[^}}]*model="{re.escape(model)}")'
        found = re.findall(
            rf"^fastinfer_{gauge}{{{which}[^}}]*}} (\S+)$", self.ask("GET", "/metrics").body.decode(), re.M
        )
        return sum(map(float, found))

    @invariant()
    def the_endpoints_are_those_that_were_loaded(self) -> None:
        assert self.ask("GET", "/v2/models").json["models"] == sorted(self.expected.endpoints)
        assert self.index() == self.expected.index()
        ready = [entry for entry in self.expected.index() if entry[2] == "READY"]
        answer = self.ask("POST", "/v2/repository/index", {"ready": True})
        assert sorted((entry["name"], entry["version"], entry["state"]) for entry in answer.json) == ready

    @invariant()
    def each_tells_what_it_is(self) -> None:
        platforms = {MODEL: "onnxruntime_onnx"}
        for name, endpoint in self.expected.endpoints.items():
            told = self.ask("GET", f"/v2/models/{name}").json
            assert told["name"] == name
            assert told["versions"] == [str(number) for number in sorted(endpoint.versions)]
            assert told["platform"] == platforms.get(endpoint.worker, endpoint.worker)
            for number in FACTORS:
                status = 200 if number in endpoint.versions else 404
                assert self.ask("GET", f"/v2/models/{name}/versions/{number}/ready").status == status
        assert self.ask("GET", "/v2/models/nobody/ready").status == 404
        assert self.ask("POST", "/v2/models/nobody/infer", inference()).status == 404
        assert self.ask("GET", "/v2/health/ready").status == 200

    @invariant()
    def the_statistics_are_those_of_what_was_sent(self) -> None:
        assert self.statistics() == self.expected.statistics()

    def teardown(self) -> None:
        """Leaves the server as it was, whatever the example did."""
        with contextlib.closing(self.connection):
            for waiting in self.waiting:
                waiting.connection.close()
            wait_for(lambda: not self.gauge("requests_in_flight") and not self.gauge("batches_running"))
            while names := self.ask("GET", "/v2/models").json["models"]:
                for name in names:
                    self.ask("POST", f"/v2/models/{name}/unload")
            wait_for(lambda: {state for _, _, state in self.index()} == {"UNAVAILABLE"})
