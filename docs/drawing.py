# ruff: noqa: INP001  # beside the scripts that use it, not a package
"""What the scripts that write files of the documentation share."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path


def update(made: Mapping[Path, str]) -> int:
    """Write the files that differ; with ``--check``, return 1 instead if there are any."""
    old = [path for path, text in made.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if "--check" in sys.argv[1:]:
        return 1 if old else 0
    for path in old:
        path.write_text(made[path], encoding="utf-8")
    return 0
