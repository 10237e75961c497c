"""Names and sizes of modules that keep the package easy to navigate."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[2] / "src"
SMALL = 50
"""A shorter module with only one importer belongs into that one, unless it defines routes."""


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file): ast.parse(file.read_text("utf-8")) for file in ROOT.rglob("*.py")}
FILES = {module_name(file): file for file in ROOT.rglob("*.py")}


def importers() -> dict[str, set[str]]:
    """Return the modules that import each module."""
    found = defaultdict(set)
    for module, tree in MODULES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    found[whole if whole in MODULES else node.module].add(module)
    return found


def test_a_class_name_means_one_thing() -> None:
    places = defaultdict(list)
    for module, tree in MODULES.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                places[node.name].append(module)
    assert {name: modules for name, modules in places.items() if len(modules) > 1} == {}


def test_no_small_module_serves_one_other_only() -> None:
    by = importers()
    small = {
        module: sorted(by[module])
        for module, file in FILES.items()
        if file.name != "__init__.py" and "migrations" not in module and len(by[module]) == 1
        if len((text := file.read_text("utf-8")).splitlines()) < SMALL and "APIRouter(" not in text
    }
    assert small == {}
