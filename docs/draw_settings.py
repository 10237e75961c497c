# ruff: noqa: INP001  # a script beside the page that it writes, not a package
"""Draws the tables of settings in docs/operations/operators.md from src/tweezer/settings.py.

    python docs/draw_settings.py            writes the page anew
    python docs/draw_settings.py --check    exits with 1 when the page is out of date

What stands between ``<!-- drawn: settings -->`` and ``<!-- end -->`` is replaced; all else is written by hand.
A test (tests/unit/test_docs.py) checks that the committed page is what this makes.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from tweezer import settings
from tweezer.settings import SETTINGS, Setting

PAGE = Path(__file__).parent / "operations" / "operators.md"

_BLOCK = re.compile(r"(<!-- drawn: settings -->\n).*?(<!-- end -->)", re.DOTALL)
_HEAD = "| key | variable | default | unit | range | read by | meaning |\n| --- | --- | --- | --- | --- | --- | --- |"
_UNITS = {"_per_s": "1/s", "_s": "s", "_mb": "MiB", "_kb": "KiB"}
_DEFAULTS = {"data_dir": "~/.local/share/tweezer"}  # made when it is needed


def drawn(page: str) -> str:
    """Return the page with its tables as the code makes them. Raises ValueError where it has no place for them."""
    if not _BLOCK.search(page):
        raise ValueError(f"{PAGE.name} has no place for the settings")
    return _BLOCK.sub(lambda match: f"{match[1]}\n{''.join(_tables())}{match[2]}", page)


def _tables() -> Iterator[str]:
    docstrings = _read_docstrings()
    for group, members in groupby(SETTINGS.values(), lambda setting: setting.group):
        title = f"`[{group}]`: {docstrings[group, '']}" if group else "Before all tables of the file:"
        rows = "\n".join(_row(setting, docstrings[setting.group, setting.name]) for setting in members)
        yield f"{title}\n\n{_HEAD}\n{rows}\n\n"


def _row(setting: Setting, meaning: str) -> str:
    default = _code(_DEFAULTS.get(setting.key) or _text(setting.field.default))
    unit = next((unit for end, unit in _UNITS.items() if setting.name.endswith(end)), "")
    extra: Any = setting.field.json_schema_extra
    cells = (f"`{setting.name}`", f"`{setting.variable}`", default, unit, _range(setting), extra["read_by"], meaning)
    return f"| {' | '.join(cells)} |"


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _text(default: object) -> str:
    match default:
        case None:
            return ""
        case tuple() | dict():
            return json.dumps(default)
        case _:
            return str(default)


def _range(setting: Setting) -> str:
    """Return the limits of a number, from pydantic's metadata."""
    bounds = {name: value for it in setting.field.metadata for name, value in vars_of(it)}
    least = f"≥ {bounds['ge']:g}" if "ge" in bounds else f"> {bounds['gt']:g}" if "gt" in bounds else ""
    most = f"≤ {bounds['le']:.10g}" if "le" in bounds else ""
    return ", ".join(filter(None, (least, most)))


def vars_of(constraint: object) -> Iterator[tuple[str, float]]:
    """Return the bounds that a constraint of annotated_types sets."""
    for name in ("ge", "gt", "le"):
        if hasattr(constraint, name):
            yield name, getattr(constraint, name)


def _read_docstrings() -> dict[tuple[str, str], str]:
    """Return the texts below the settings, by group and name; that of a group itself has no name."""
    found: dict[tuple[str, str], str] = {}
    for node in ast.parse(inspect.getsource(settings)).body:
        if isinstance(node, ast.ClassDef) and node.name.endswith("Settings"):
            group = node.name.removesuffix("Settings").lower()
            found[group, ""] = _plain(ast.get_docstring(node) or "")
            for declared, text in zip(node.body, node.body[1:], strict=False):
                match declared, text:
                    case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(said))):
                        found[group, name] = _plain(said)
    return found


def _plain(text: str) -> str:
    return " ".join(text.replace("``", "`").split())


def main() -> int:
    page = PAGE.read_text(encoding="utf-8")
    made = drawn(page)
    if "--check" in sys.argv[1:]:
        return 1 if made != page else 0
    PAGE.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
