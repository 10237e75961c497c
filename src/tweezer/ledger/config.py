"""Where the ledger's database is; apart from the rest of the ledger, which needs SQLAlchemy."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

import msgspec

LINK_MAX_S = 30 * 86_400
"""How long a link to results is valid at most; one that claims more is refused."""

_SQLITE = "sqlite"
_ESCAPED = str.maketrans({"%": "%25", "?": "%3F", "#": "%23"})


class DeadLetterBounds(msgspec.Struct, frozen=True):
    """How many dead letters are kept, how many bytes all together, and for how long. The oldest go first."""

    count: int = 10_000
    size: int = 64 << 20
    kept_s: int = 30 * 86_400


class OpenDatabase(msgspec.Struct, frozen=True):
    """Where the database is. ``url``: ``sqlite:///file`` (see :func:`sqlite_url`) or
    ``postgresql://user:password@host/database``.

    connections_max: at a time, of this process. share: those of one caller's, of a process that serves several; None:
    all. patience_s: how long to wait for a connection and, on SQLite, for
    another writer. statement_s: how long PostgreSQL may take for one statement.
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
    """Return the file that a URL of SQLite names; None where it names none, or is another database's URL."""
    scheme, _, rest = url.partition(":///")
    path = unquote(rest.partition("?")[0])
    return Path(path) if path and scheme.partition("+")[0] == _SQLITE else None
