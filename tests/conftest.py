"""Settings of the property tests: quick and repeatable every day, many examples for `make fuzz`; the order of files."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("everyday", deadline=None, derandomize=True)
settings.register_profile("fuzz", deadline=None, max_examples=50_000, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("everyday")

FIRST = ("tests/processes/", "tests/test_instructions", "tests/unit/test_onnx_rows", "tests/contract/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts files first that take long, so that workers that run side by side end together."""

    def rank(item: pytest.Item) -> int:
        return next((rank for rank, begin in enumerate(FIRST) if item.nodeid.startswith(begin)), len(FIRST))

    items.sort(key=rank)
