"""The scratch folder and the environment, without secrets, of a jailed process."""

from __future__ import annotations

import contextlib
import os
import shutil
import site
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

_PREFIX = "tweezer-lane-"

_PASSED = frozenset(
    {
        *("PATH", "LANG", "LANGUAGE", "TZ", "USER", "LOGNAME", "LD_LIBRARY_PATH", "LD_PRELOAD"),
        *("VIRTUAL_ENV", "CONDA_PREFIX", "ROCM_PATH", "HIP_VISIBLE_DEVICES", "COVERAGE_PROCESS_START"),
        *("PYTHONPATH", "PYTHONHOME", "PYTHONWARNINGS", "PYTHONUTF8", "PYTHONIOENCODING", "PYTHONNOUSERSITE"),
        *("PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED", "PYTHONMALLOC", "PYTHONTRACEMALLOC"),
    }
)
_PASSED_PREFIXES = (
    *("LC_", "OMP_", "GOMP_", "KMP_", "OPENBLAS_", "MKL_", "NUMEXPR_", "MALLOC_"),
    *("CUDA_", "CUBLAS_", "NVIDIA_", "PYTORCH_", "TORCH_"),
)


class Scratch:
    """A folder that one process may write. Removed with the process, or by the next worker if this one is killed."""

    def __init__(self) -> None:
        _remove_orphans()
        while True:
            self.path = Path(tempfile.mkdtemp(prefix=_PREFIX))
            lock = _lock(self.path)
            if lock is not None:
                break
        self._lock: int | None = lock

    def remove(self) -> None:
        """Remove the folder and its contents. Blocks. May be called more than once."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """Provide a scratch folder for the duration of a ``with`` block."""
    made = Scratch()
    try:
        yield made.path
    finally:
        made.remove()


def build_environment(inherited: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Return the environment of a jailed process, with its home and its caches in this folder.

    Only listed variables are inherited, and none whose value contains a URL.
    """
    passed = {
        name: value
        for name, value in inherited.items()
        if (name in _PASSED or name.startswith(_PASSED_PREFIXES)) and "://" not in value
    }
    if path := passed.get("PYTHONPATH"):  # may be relative to this process's current folder
        passed["PYTHONPATH"] = os.pathsep.join(str(Path(each).absolute()) for each in path.split(os.pathsep) if each)
    own = dict.fromkeys(("HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "NUMBA_CACHE_DIR"), str(folder))
    return passed | own | {"PYTHONUSERBASE": site.getuserbase()}


def _lock(folder: Path) -> int | None:
    """Lock a folder. Return None if another live process holds the lock, or the folder no longer exists."""
    import fcntl

    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_ino == folder.stat().st_ino:
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None


def _remove_orphans() -> None:
    """Remove the scratch folders of workers that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if folder.lstat().st_uid != os.getuid():
                continue
            if (lock := _lock(folder)) is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(lock)
