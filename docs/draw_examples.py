# ruff: noqa: INP001  # a script beside the pages that it writes, not a package
"""Copy the programs of ``examples/`` into the pages that show them.

    python docs/draw_examples.py            write the pages
    python docs/draw_examples.py --check    exit with 1 when a page is out of date

A page has the line ``<!-- example: sweep.py -->`` before the block of code that is replaced.
A test (tests/unit/test_docs.py) checks that the committed pages are up to date.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from drawing import update

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

_BLOCK = re.compile(r"(<!-- example: (\S+) -->\n```\w+\n).*?(^```$)", re.MULTILINE | re.DOTALL)


def drawn(page: str) -> str:
    """Return the page with its examples as they are in the files."""
    return _BLOCK.sub(lambda match: f"{match[1]}{(ROOT / 'examples' / match[2]).read_text('utf-8')}{match[3]}", page)


if __name__ == "__main__":
    sys.exit(update({page: drawn(page.read_text(encoding="utf-8")) for page in PAGES}))
