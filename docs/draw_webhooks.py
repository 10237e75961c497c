# ruff: noqa: INP001  # a script beside the pages that it writes, not a package
"""Write the samples and JSON Schemas of docs/reference/webhooks.md from src/tweezer/model.

    python docs/draw_webhooks.py            updates both
    python docs/draw_webhooks.py --check    exits with 1 if one of them is out of date

The text between ``<!-- sample: type -->`` and ``<!-- end -->`` is replaced; the rest is written by hand.
tests/unit/webhooks/test_webhooks.py checks that the committed files are up to date.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import msgspec
from drawing import update

from tweezer.model.webhooks import VERSION, EventType, envelope, schemas
from tweezer.webhooks.samples import sample

PAGE = Path(__file__).parent / "reference" / "webhooks.md"
SCHEMAS = PAGE.with_name(f"webhooks.schema.v{VERSION}.json")

_BLOCK = re.compile(r"(<!-- sample: (?P<type>[a-z_.]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def drawn(page: str) -> str:
    """Return the page with up-to-date samples. Raises ValueError unless it has a block for each type of event."""
    places = [match["type"] for match in _BLOCK.finditer(page)]
    if sorted(places) != sorted(EventType):
        raise ValueError(f"{PAGE.name}: has blocks for the samples {sorted(places)}, not one for each type of event")
    return _BLOCK.sub(_sample, page)


def document() -> str:
    """Return the JSON Schemas as they are committed."""
    return f"{msgspec.json.format(msgspec.json.encode(schemas()), indent=2).decode()}\n"


def _sample(match: re.Match[str]) -> str:
    event = sample(match["type"])
    text = msgspec.json.format(envelope(event.type, event.timestamp, event.data), indent=2).decode()
    return f"{match[1]}```json\n{text}\n```\n{match[3]}"


if __name__ == "__main__":
    sys.exit(update({PAGE: drawn(PAGE.read_text(encoding="utf-8")), SCHEMAS: document()}))
