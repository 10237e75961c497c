"""The data folder of ``tweezer up``, where other processes of the same user find a running instance.

While ``tweezer up`` is running, a file in the folder contains the environment variables to use it, including the
password of its Redis. Only its user can read the file. It is valid while ``tweezer up`` holds a lock on it, so a file
left by a crash is ignored.
"""

from __future__ import annotations

import fcntl
import os
import shlex
from collections.abc import Mapping
from pathlib import Path

ENVIRONMENT_FILE = "env"

DATA_DIR = "TWEEZER_DATA_DIR"
REDIS_URL = "TWEEZER_REDIS_URL"
API_URL = "TWEEZER_API_URL"
API_KEY = "TWEEZER_API_KEY"
API_CA_FILE = "TWEEZER_API_CA_FILE"


def default_data_dir() -> Path:
    """Return the default data folder."""
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "tweezer"


class PublishedEnvironment:
    """A file with the variables of a ``tweezer up``, which a shell can source; it exists until :meth:`close`."""

    def __init__(self, folder: Path, variables: Mapping[str, str]) -> None:
        self.file = folder / ENVIRONMENT_FILE
        part = self.file.with_suffix(".part")
        part.unlink(missing_ok=True)
        self._lock = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        text = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())
        part.write_text(text, encoding="utf-8")
        part.replace(self.file)

    def close(self) -> None:
        self.file.unlink(missing_ok=True)
        os.close(self._lock)


def running_environment(folder: Path | None = None) -> dict[str, str]:
    """Return the variables of the ``tweezer up`` that is running in the folder, or an empty dictionary.

    folder: defaults to ``TWEEZER_DATA_DIR``, else :func:`default_data_dir`.
    """
    named = os.environ.get(DATA_DIR)
    folder = folder or (Path(named) if named else default_data_dir())
    try:
        with (folder / ENVIRONMENT_FILE).open(encoding="utf-8") as file:
            lines = file.read().splitlines() if _is_locked(file.fileno()) else []
    except OSError:  # missing, or owned by another user
        return {}
    words = (shlex.split(line)[-1].partition("=") for line in lines)
    return {name: value for name, _, value in words}


def _is_locked(descriptor: int) -> bool:
    """Return whether another process holds a lock on the file."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False
