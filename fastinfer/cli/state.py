"""The SIGUSR1 report: a serving process's state as lines of text. It needs no bookkeeping while requests run.

Loop's thread. The work is bounded: counts of everything, details of the oldest requests and the busiest models.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Iterator
from heapq import nsmallest
from time import monotonic_ns
from typing import Final

from fastinfer.api.service import Service
from fastinfer.base.signals import waits
from fastinfer.http.server import Server

_REQUESTS: Final = 20
_MODELS: Final = 20


def lines(service: Service, server: Server) -> Iterator[str]:
    """Yield the lines, the summary first."""
    hub = server.hub
    connections = list(hub.each())
    stage = "draining" if server.draining else "about to drain" if hub.draining else service.why_not_ready() or "ready"
    yield f"state of process {os.getpid()}: {stage}"
    states = Counter(connection.state() for connection in connections)
    yield f"connections: {len(connections)} open{_counted(states)}; {hub.opening} being opened"
    requests = [each for connection in connections for each in connection.requests()]
    stages = Counter(stage.partition(",")[0] for _, stage, _ in requests)
    yield f"requests in flight: {len(requests)}{_counted(stages)}"
    now = monotonic_ns()
    for arrived_ns, stage, what in nsmallest(_REQUESTS, requests):
        yield f"request: {what}: {stage}, {(now - arrived_ns) / 1e9:.3f} s since its first byte"
    if len(requests) > _REQUESTS:
        yield f"{len(requests) - _REQUESTS} requests are younger"
    limit = hub.budget.limit
    yield f"memory: {hub.in_flight_bytes} of {limit} bytes for requests in flight, {hub.bodies.kept_bytes} kept besides"
    yield from _models(service)
    executor = service.executor
    yield f"native threads: {executor.running} of {executor.threads} busy, {executor.queued} jobs wait for one"
    for text in waits(asyncio.all_tasks(service.loop)):
        yield f"task: {text}"


def _models(service: Service) -> Iterator[str]:
    models = service.repository.models()
    busy = [model for model in models if model.scheduler.in_flight or model.scheduler.running]
    yield f"models: {len(models)} loaded, {len(busy)} busy"
    for model in nsmallest(_MODELS, busy, key=lambda model: -model.scheduler.in_flight):
        scheduler = model.scheduler
        yield (
            f"model '{model.name}' version {model.version}: {scheduler.in_flight} requests in flight, "
            f"{scheduler.queued} in the queue, {scheduler.running} batches running"
        )


def _counted(found: Counter[str]) -> str:
    return f" ({', '.join(f'{count} {what}' for what, count in found.most_common())})" if found else ""
