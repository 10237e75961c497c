# ruff: noqa: INP001  # a script beside the pages that it serves, not a package
"""Record an example request and response of every operation of the HTTP API, for the reference.

    python docs/record_examples.py    updates docs/reference/http-api/examples.json

The calls are in tests/support/api_examples.py; tests/unit/api/test_examples.py checks that the file is up to date.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reference" / "http-api" / "examples.json"


def main() -> int:
    sys.path.insert(0, str(ROOT))
    from tests.support.api_examples import record

    from tweezer.ledger.config import OpenDatabase
    from tweezer.ledger.database import Database
    from tweezer.ledger.migrate import upgrade

    with tempfile.TemporaryDirectory() as folder:
        os.environ["TWEEZER_DATA_DIR"] = folder
        database = Database.open(OpenDatabase(url=f"sqlite:///{folder}/ledger.db"), create=True)
        upgrade(database)
        examples = asyncio.run(record(database))
        database.close()
    PAGE.write_text(f"{json.dumps(examples, indent=1, ensure_ascii=False)}\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
