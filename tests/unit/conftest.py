"""Fixtures of unit tests."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tweezer.ledger.config import OpenDatabase
from tweezer.ledger.database import Database


@pytest.fixture
def ledger(sqlite_template: Path, tmp_path: Path) -> Iterator[Database]:
    """An open, empty ledger on SQLite."""
    copied = shutil.copy(sqlite_template, tmp_path / "ledger.db")
    opened = Database.open(OpenDatabase(url=f"sqlite:///{copied}"))
    yield opened
    opened.close()
