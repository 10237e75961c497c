# ruff: noqa: INP001  # a script beside the pages that it writes, not a package
"""Writes the samples and JSON Schemas of docs/reference/webhooks.md from src/tweezer/model.

    python docs/draw_webhooks.py            writes both anew
    python docs/draw_webhooks.py --check    exits with 1 when one is out of date

What stands between ``<!-- sample: type -->`` and ``<!-- end -->`` is replaced; all else is written by hand.
A test (tests/unit/webhooks/test_webhooks.py) checks that the committed files are what this makes.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import msgspec

from tweezer.model.webhooks import VERSION, EventType, envelope, schemas
from tweezer.webhooks.samples import sample

PAGE = Path(__file__).parent / "reference" / "webhooks.md"
SCHEMAS = PAGE.with_name(f"webhooks.schema.v{VERSION}.json")

_BLOCK = re.compile(r"(<!-- sample: (?P<type>[a-z_.]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def drawn(page: str) -> str:
    """The page with its samples as the code makes them. Raises ValueError unless there is a place for each type."""
    places = [match["type"] for match in _BLOCK.finditer(page)]
    if sorted(places) != sorted(EventType):
        raise ValueError(f"{PAGE.name} has places for the samples {sorted(places)}, not one for each type of event")
    return _BLOCK.sub(_sample, page)


def document() -> str:
    """The JSON Schemas as they are kept."""
    return f"{msgspec.json.format(msgspec.json.encode(schemas()), indent=2).decode()}\n"


def _sample(match: re.Match[str]) -> str:
    it = sample(match["type"])
    text = msgspec.json.format(envelope(it.type, it.timestamp, it.data), indent=2).decode()
    return f"{match[1]}```json\n{text}\n```\n{match[3]}"


def main() -> int:
    made = {PAGE: drawn(PAGE.read_text()), SCHEMAS: document()}
    old = [path for path, text in made.items() if not path.exists() or path.read_text() != text]
    if "--check" in sys.argv[1:]:
        return 1 if old else 0
    for path in old:
        path.write_text(made[path])
    return 0


if __name__ == "__main__":
    sys.exit(main())
