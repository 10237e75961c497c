"""Configuration of the ledger's database. Separate from the rest of the ledger, which needs SQLAlchemy."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

import msgspec

LINK_MAX_S = 30 * 86_400
"""Maximum validity of a link to results, in seconds; links that are valid for longer are refused."""

_SQLITE = "sqlite"
_ESCAPED = str.maketrans({"%": "%25", "?": "%3F", "#": "%23"})


class DeadLetterBounds(msgspec.Struct, frozen=True):
    """Limits on the dead letters that are kept: their number, total size in bytes, and age. The oldest go first."""

    count: int = 10_000
    size: int = 64 << 20
    kept_s: int = 30 * 86_400


class OpenDatabase(msgspec.Struct, frozen=True):
    """How to connect to the database.

    Attributes:
        url: ``sqlite:///file`` (see :func:`sqlite_url`) or ``postgresql://user:password@host/database``.
        connections_max: Maximum number of connections of this process.
        share: How many of these one account may use, in a process with several callers; None means all.
        patience_s: How long to wait for a connection and, on SQLite, for another writer, in seconds.
        statement_s: Time limit of a PostgreSQL statement, in seconds.
    """

    url: str
    connections_max: int = 8
    share: int | None = None
    patience_s: float = 10.0
    statement_s: float = 60.0


def sqlite_url(file: Path) -> str:
    """Return the URL of a SQLite file; ``%``, ``?`` and ``#`` in its path are escaped."""
    return f"{_SQLITE}:///{str(file).translate(_ESCAPED)}"


def sqlite_file(url: str) -> Path | None:
    """Return the file in a SQLite URL; None without a file, or if it is the URL of another database."""
    scheme, _, rest = url.partition(":///")
    path = unquote(rest.partition("?")[0])
    return Path(path) if path and scheme.partition("+")[0] == _SQLITE else None
