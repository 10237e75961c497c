"""The documentation, and the scripts that write parts of it."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

DOCS = Path(__file__).parents[2] / "docs"


def load_generator(name: str) -> ModuleType:
    """Import a script of the docs folder, as running it does: the scripts import each other."""
    sys.path.insert(0, str(DOCS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(DOCS))
