"""`python -m tests.clients` installs the clients that have environments of their own, below .venv/clients."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as pytest does

from clients.support import CLIENTS

from bench.environments import AbsentError


def main() -> int:
    """Says why a client cannot be installed; fails unless it is optional."""
    failed = 0
    for client in CLIENTS:
        try:
            client.install()
        except AbsentError as reason:
            failed += not client.optional
            print(f"{client.name}: cannot be installed: {reason}", file=sys.stderr)
    if not shutil.which("curl"):
        failed += 1
        print("curl: is not installed", file=sys.stderr)
    return failed


if __name__ == "__main__":
    sys.exit(main())
