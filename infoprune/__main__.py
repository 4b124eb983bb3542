"""``python -m infoprune`` is the ``infoprune`` command."""

from __future__ import annotations

import sys

from infoprune.cli import main

if __name__ == "__main__":
    sys.exit(main())
