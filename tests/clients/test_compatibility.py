"""docs/compatibility.md names the versions that the tests run with."""

from __future__ import annotations

import tomllib
from pathlib import Path

from clients.support import CLIENTS

ROOT = Path(__file__).resolve().parents[2]


def test_the_versions_of_the_document():
    document = (ROOT / "docs" / "compatibility.md").read_text()
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    installed = [requirement for group in groups.values() for requirement in group]
    pinned = [each for each in installed if each.startswith(("tritonclient", "locust"))]
    for requirement in [*pinned, *(client.requirements[0] for client in CLIENTS)]:
        name, _, version = requirement.replace("[http]", "").partition("==")
        assert f"| {name} {version} |" in document
