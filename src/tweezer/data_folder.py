"""The data folder of ``tweezer up``, by which other processes of its user find the one that runs.

While it runs, a file in the folder holds the variables with which to use it, with the password of its Redis; only its
user can read it. It counts while the lock of that Redis is held: a file that a crash left behind means nothing.
"""

from __future__ import annotations

import fcntl
import os
import shlex
from collections.abc import Mapping
from pathlib import Path

ENVIRONMENT_FILE = "env"
REDIS_FOLDER = "redis"
LOCK_FILE = "server.lock"
"""Name of the file, in the folder of a Redis server's data, that is locked while the server lives."""

DATA_DIR = "TWEEZER_DATA_DIR"
REDIS_URL = "TWEEZER_REDIS_URL"


def default_data_dir() -> Path:
    """Return the data folder where none is named."""
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "tweezer"


def write_environment(folder: Path, variables: Mapping[str, str]) -> Path:
    """Write the variables as a file that a shell can source; return its path."""
    file = folder / ENVIRONMENT_FILE
    part = file.with_suffix(".part")
    part.unlink(missing_ok=True)
    text = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as output:
        output.write(text)
    part.replace(file)
    return file


def remove_environment(folder: Path) -> None:
    """Remove the file, unless a Redis still runs in the folder."""
    if not _is_locked(folder):
        (folder / ENVIRONMENT_FILE).unlink(missing_ok=True)


def running_environment(folder: Path | None = None) -> dict[str, str]:
    """Return the variables of the ``tweezer up`` that runs in the folder; empty where none runs.

    folder: default: the one that ``TWEEZER_DATA_DIR`` names, else :func:`default_data_dir`.
    """
    named = os.environ.get(DATA_DIR)
    folder = folder or (Path(named) if named else default_data_dir())
    try:
        if not _is_locked(folder):
            return {}
        lines = (folder / ENVIRONMENT_FILE).read_text(encoding="utf-8").splitlines()
    except OSError:  # none there, or another user's
        return {}
    words = (shlex.split(line)[-1].partition("=") for line in lines)
    return {name: value for name, _, value in words}


def _is_locked(folder: Path) -> bool:
    """Whether a Redis server runs on the folder's data."""
    try:
        lock = os.open(folder / REDIS_FOLDER / LOCK_FILE, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(lock)
