"""``python -m fastinfer``."""

from __future__ import annotations

import sys

from fastinfer.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
