"""Settings of the property tests: quick and repeatable every day, many examples for `make fuzz`."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("everyday", deadline=None, derandomize=True)
settings.register_profile("fuzz", deadline=None, max_examples=50_000, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("everyday")
