"""The table of endpoints: identities, names, what requests find."""

import pytest

from fastinfer.backends.parameters import Parameters
from fastinfer.base.errors import ApiError
from fastinfer.repository.endpoints import MODEL, WORKER, Endpoint, EndpointTable, identity


def add(table, kind, base, parameters=None, versions=(1,)):
    wanted = identity(kind, base, parameters or {})
    endpoint = Endpoint(table.free_name(wanted), wanted, Parameters())
    endpoint.versions = {version: f"{endpoint.name}:{version}" for version in versions}
    table.publish(endpoint)
    return endpoint


def test_share_is_not_part_of_the_identity_and_everything_else_is():
    plain = identity(MODEL, "m", {})
    assert identity(MODEL, "m", {"share": False}) == plain
    assert identity(MODEL, "m", {"unknown": 1}) != plain
    assert identity(MODEL, "m", {"a": 1, "b": 2}) == identity(MODEL, "m", {"b": 2, "a": 1})
    assert identity(MODEL, "m", {"a": 1}) != identity(MODEL, "m", {"a": True})
    assert identity(MODEL, "m", {"a": "1"}) != identity(MODEL, "m", {"a": 1})
    assert identity(WORKER, "m", {}) != plain


def test_a_new_identity_gets_the_first_free_name():
    table = EndpointTable()
    endpoints = [add(table, MODEL, "m", {"n": n}) for n in range(4)]
    assert [endpoint.name for endpoint in endpoints] == ["m", "m-0", "m-1", "m-2"]
    table.remove(endpoints[1])
    assert add(table, MODEL, "m", {"n": 9}).name == "m-0"
    table.remove(endpoints[0])
    assert add(table, MODEL, "m", {"n": 10}).name == "m"


def test_a_name_of_another_kind_is_not_taken():
    table = EndpointTable()
    add(table, MODEL, "echo")
    with pytest.raises(ApiError) as caught:
        table.free_name(identity(WORKER, "echo", {}))
    assert caught.value.status == 400
    add(table, WORKER, "fake")
    add(table, WORKER, "fake", {"n": 1})
    with pytest.raises(ApiError):
        table.free_name(identity(MODEL, "fake-0", {}))


def test_requests_find_versions_and_the_highest_one():
    table = EndpointTable()
    endpoint = add(table, MODEL, "m", versions=(1, 9, 10))
    assert table.model("m", None) == "m:10"
    assert table.model("m", "9") == "m:9"
    assert table.model("m", "2") is None
    endpoint.versions = {1: "new"}
    table.publish(endpoint)
    assert (table.model("m", None), table.model("m", "10")) == ("new", None)
    table.remove(endpoint)
    assert table.model("m", None) is None
    assert table.with_identity(endpoint.identity) is None
