# ruff: noqa: INP001  # a script beside the page that it writes, not a package
"""Write the tables of settings in docs/reference/settings.md from src/tweezer/settings.py.

    python docs/draw_settings.py            updates the page
    python docs/draw_settings.py --check    exits with 1 if the page is out of date

The text between ``<!-- drawn: settings -->`` and ``<!-- end -->`` is replaced; the rest is written by hand.
tests/unit/test_docs.py checks that the committed page is up to date.
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

from drawing import update

from tweezer import settings
from tweezer.settings import SETTINGS, Setting

PAGE = Path(__file__).parent / "reference" / "settings.md"

_BLOCK = re.compile(r"(<!-- drawn: settings -->\n).*?(<!-- end -->)", re.DOTALL)
_HEAD = "| key and variable | default, range | read by | meaning |\n| --- | --- | --- | --- |"
_UNITS = {"_per_s": "1/s", "_s": "s", "_mb": "MiB", "_kb": "KiB"}
_DEFAULTS = {"data_dir": "~/.local/share/tweezer"}  # computed when it is needed


def drawn(page: str) -> str:
    """Return the page with up-to-date tables. Raises ValueError if the page has no place for them."""
    if not _BLOCK.search(page):
        raise ValueError(f"{PAGE.name}: has no block for the settings; add `<!-- drawn: settings --><!-- end -->`")
    return _BLOCK.sub(lambda match: f"{match[1]}\n{''.join(_tables())}{match[2]}", page)


def _tables() -> Iterator[str]:
    docstrings = _read_docstrings()
    for group, members in groupby(SETTINGS.values(), lambda setting: setting.group):
        about = docstrings[group, ""] if group else "These keys come before the first table of the file."
        title = f"## `[{group}]`" if group else "## Top level"
        rows = "\n".join(_row(setting, docstrings[setting.group, setting.name]) for setting in members)
        yield f"{title}\n\n{about}\n\n{_HEAD}\n{rows}\n\n"


def _row(setting: Setting, meaning: str) -> str:
    default = _code(_DEFAULTS.get(setting.key) or _format(setting.field.default))
    unit = next((unit for end, unit in _UNITS.items() if setting.name.endswith(end)), "")
    extra: Any = setting.field.json_schema_extra
    value = "<br>".join(filter(None, (f"{default} {unit}".strip(), _range(setting))))
    cells = (f"`{setting.name}`<br>`{setting.variable}`", value, extra["read_by"], meaning)
    return f"| {' | '.join(cells)} |"


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _format(default: object) -> str:
    match default:
        case None:
            return ""
        case tuple() | dict():
            return json.dumps(default)
        case _:
            return str(default)


def _range(setting: Setting) -> str:
    """Return the limits of a number, from pydantic's metadata."""
    bounds = {name: value for constraint in setting.field.metadata for name, value in _bounds(constraint)}
    if {"ge", "le"} <= bounds.keys():
        return f"{bounds['ge']:g} to {bounds['le']:.10g}"
    least = f"≥ {bounds['ge']:g}" if "ge" in bounds else f"> {bounds['gt']:g}" if "gt" in bounds else ""
    most = f"≤ {bounds['le']:.10g}" if "le" in bounds else ""
    return ", ".join(filter(None, (least, most)))


def _bounds(constraint: object) -> Iterator[tuple[str, float]]:
    for name in ("ge", "gt", "le"):
        if hasattr(constraint, name):
            yield name, getattr(constraint, name)


def _read_docstrings() -> dict[tuple[str, str], str]:
    """Return the docstrings of the settings by group and name; the docstring of a group has an empty name."""
    found: dict[tuple[str, str], str] = {}
    for node in ast.parse(inspect.getsource(settings)).body:
        if isinstance(node, ast.ClassDef) and node.name.endswith("Settings"):
            group = node.name.removesuffix("Settings").lower()
            found[group, ""] = _to_markdown(ast.get_docstring(node) or "")
            for declared, text in zip(node.body, node.body[1:], strict=False):
                match declared, text:
                    case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(docstring))):
                        found[group, name] = _to_markdown(docstring)
    return found


def _to_markdown(docstring: str) -> str:
    return " ".join(docstring.replace("``", "`").split())


if __name__ == "__main__":
    sys.exit(update({PAGE: drawn(PAGE.read_text(encoding="utf-8"))}))
