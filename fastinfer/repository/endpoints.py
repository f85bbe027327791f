"""The table of loaded endpoints, and AMD's rules for their identities and names.

Pure data: no files, no runtime, no waiting. An endpoint's identity is the requested name and all parameters except
``share``; a new identity gets the first free name of ``resnet50``, ``resnet50-0``, ``resnet50-1``, …
(AMD Inference Server, "endpoints"). Models and workers have one name space.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import orjson

from fastinfer.backends.parameters import Parameters
from fastinfer.base.errors import ApiError
from fastinfer.base.near import Near
from fastinfer.schedule.model import Model

MODEL, WORKER = "model", "worker"
Identity = tuple[str, str, bytes]


def identity(kind: str, base: str, parameters: Mapping[str, Any]) -> Identity:
    """The identity of a load: the requested kind and name, and all parameters except ``share``."""
    counted = {key: value for key, value in parameters.items() if key != "share"}
    return kind, base, orjson.dumps(counted, option=orjson.OPT_SORT_KEYS)


@dataclass(slots=True)
class Endpoint:
    """A loaded name.

    Attributes:
        name: the name in URLs.
        identity: the identity of its load; the second part is the model's or worker's own name.
        parameters: the parsed parameters of its load.
        loads: how often it was loaded; each unload subtracts one.
        holds: how many endpoints have it as their successor. Without loads and holds it is removed.
        override: the configuration that its last load gave, in place of the one on the disk.
        versions: the ready models, by version.
        sources: the source of each version, to detect whether the disk has something newer.
        files: a fingerprint of the model's directory when its versions were chosen from it; empty: they were not.
        chosen: versions that were requested one by one, in addition to those that the version policy names.
        revision: another object after each change of another attribute.
    """

    name: str
    identity: Identity
    parameters: Parameters
    loads: int = 1
    holds: int = 0
    override: object = None
    versions: dict[int, Model] = field(default_factory=dict)
    sources: dict[int, object] = field(default_factory=dict)
    files: str = ""
    chosen: frozenset[int] = frozenset()
    revision: object = None

    def __setattr__(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)
        object.__setattr__(self, "revision", object())

    @property
    def kind(self) -> str:
        return self.identity[0]

    @property
    def base(self) -> str:
        return self.identity[1]

    @property
    def latest(self) -> Model:
        """The highest ready version."""
        return self.versions[max(self.versions)]


class EndpointTable:
    """All endpoints by name and by identity, and a fast look-up for requests."""

    def __init__(self) -> None:
        self._by_name: dict[str, Endpoint] = {}
        self._by_identity: dict[Identity, Endpoint] = {}
        # The model for a request, by the parts of its path: (name,) is the highest version, or (name, version).
        self.models: dict[tuple[str, ...], Model] = {}
        self._keys: dict[str, list[tuple[str, ...]]] = {}  # of ``models``, by endpoint
        self._near: Near | None = None  # the names, for suggestions; None: they have changed

    def __iter__(self) -> Iterator[Endpoint]:
        return iter(self._by_name.values())

    def __len__(self) -> int:
        return len(self._by_name)

    def get(self, name: str) -> Endpoint | None:
        return self._by_name.get(name)

    def with_identity(self, requested: Identity) -> Endpoint | None:
        """The endpoint with this identity, if it is loaded."""
        return self._by_identity.get(requested)

    def model(self, name: str, version: str | None) -> Model | None:
        """The model that serves requests for a name and a version (None: the highest)."""
        return self.models.get((name,) if version is None else (name, version))

    def meant(self, wrong: str) -> str | None:
        """The endpoint whose name is similar to an unknown one, or None."""
        if self._near is None:
            self._near = Near(self._by_name)
        return self._near.to(wrong)

    def free_name(self, requested: Identity, reserved: Container[str] = ()) -> str:
        """The name that a new identity gets.

        Args:
            requested: the identity.
            reserved: the names of loads under way.

        Raises:
            ApiError: 400 if the name itself belongs to an endpoint of another kind.
        """
        kind, base, _ = requested
        taken = self._by_name.get(base)
        if taken is None and base in reserved:
            raise ApiError(400, f"the name '{base}' is being taken by another load")
        if taken is None:
            return base
        if (taken.kind, taken.base) != (kind, base):
            raise ApiError(400, f"the name '{base}' is taken by a loaded {taken.kind}")
        names = (f"{base}-{number}" for number in count())
        return next(name for name in names if name not in self._by_name and name not in reserved)

    def publish(self, endpoint: Endpoint) -> None:
        """Makes an endpoint and its changes visible to requests, all at once."""
        if endpoint.name not in self._by_name:
            self._near = None
        self._by_name[endpoint.name] = endpoint
        self._by_identity[endpoint.identity] = endpoint
        self._forget_models(endpoint.name)
        models: dict[tuple[str, ...], Model] = {(endpoint.name,): endpoint.latest}
        for version, model in endpoint.versions.items():
            models[endpoint.name, str(version)] = model
        self._keys[endpoint.name] = list(models)
        self.models |= models

    def remove(self, endpoint: Endpoint) -> None:
        del self._by_name[endpoint.name]
        self._near = None
        del self._by_identity[endpoint.identity]
        self._forget_models(endpoint.name)

    def _forget_models(self, name: str) -> None:
        for key in self._keys.pop(name, ()):
            del self.models[key]
