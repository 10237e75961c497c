"""The documentation, and the scripts that write parts of it."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from types import ModuleType

DOCS = Path(__file__).parents[2] / "docs"

_ROUTE = re.compile(r"\| (GET|POST|PUT|PATCH|DELETE) \| `(\S+)` \| ([^|]+) \| ([^|]*)\|")


def load_generator(name: str) -> ModuleType:
    """Import a script of the docs folder, as running it does: the scripts import each other."""
    sys.path.insert(0, str(DOCS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(DOCS))


def documented_routes() -> list[tuple[str, str, str, str]]:
    """Return the table of all routes of the HTTP API: method, path, roles, and where else a route exists."""
    page = (DOCS / "reference" / "http-api" / "index.md").read_text(encoding="utf-8")
    return [(method, path, roles, also_in.strip()) for method, path, roles, also_in in _ROUTE.findall(page)]
