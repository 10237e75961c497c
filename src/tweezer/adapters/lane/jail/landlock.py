"""Landlock: restricts the files that this process may open.

The kernel's interface is ``linux/landlock.h``. Features that the kernel lacks are left out.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Iterable, Mapping
from enum import IntFlag

from tweezer.adapters.lane.jail.libc import call, system_call

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every architecture
_GET_VERSION = 1
_PATH_BENEATH = 1
_NO_TCP = 0b11  # bind, connect
_SCOPED = 0b11  # abstract sockets, signals


class FileAccess(IntFlag):
    """``LANDLOCK_ACCESS_FS_*``."""

    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13
    TRUNCATE = 1 << 14
    IOCTL_DEV = 1 << 15


READ = FileAccess.READ_FILE | FileAccess.READ_DIR
DEVICE = FileAccess.READ_FILE | FileAccess.WRITE_FILE | FileAccess.TRUNCATE | FileAccess.IOCTL_DEV
WRITE = (
    READ
    | FileAccess.WRITE_FILE
    | FileAccess.REMOVE_DIR
    | FileAccess.REMOVE_FILE
    | FileAccess.MAKE_DIR
    | FileAccess.MAKE_REG
    | FileAccess.MAKE_SYM
    | FileAccess.REFER
    | FileAccess.TRUNCATE
)
_FILE_ACCESS = FileAccess.EXECUTE | DEVICE
_SINCE = {FileAccess.REFER: 2, FileAccess.TRUNCATE: 3, FileAccess.IOCTL_DEV: 5}
_TCP_SINCE, _SCOPES_SINCE = 4, 6


class _Ruleset(ctypes.Structure):
    """``struct landlock_ruleset_attr``."""

    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    """``struct landlock_path_beneath_attr``."""

    _pack_ = 1
    _fields_ = (("access", ctypes.c_uint64), ("folder", ctypes.c_int32))


def get_version() -> int:
    """Return the version of this kernel's Landlock interface; 0 if it has none or it is disabled."""
    result, number = system_call(_CREATE_RULESET, None, 0, _GET_VERSION)
    if result == -1 and number not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM):
        raise OSError(number, os.strerror(number))
    return max(result, 0)


def restrict(rules: Mapping[FileAccess, Iterable[str]], abi: int) -> None:
    """Allow this thread, and those that it starts, to open only the given files and folders.

    rules: Access → paths; those that do not exist are ignored. abi: The result of :func:`get_version`. Raises
    ``OSError``.
    """
    handled = FileAccess(0)
    for access in FileAccess:
        if abi >= _SINCE.get(access, 1):
            handled |= access
    ruleset = _Ruleset(handled, _NO_TCP if abi >= _TCP_SINCE else 0, _SCOPED if abi >= _SCOPES_SINCE else 0)
    size = 8 if abi < _TCP_SINCE else 16 if abi < _SCOPES_SINCE else 24
    descriptor = call(_CREATE_RULESET, ctypes.byref(ruleset), size, 0)
    try:
        for access, paths in rules.items():
            for path in paths:
                _allow(descriptor, path, access & handled)
        call(_RESTRICT_SELF, descriptor, 0)
    finally:
        os.close(descriptor)


def _allow(ruleset: int, path: str, access: FileAccess) -> None:
    try:
        found = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # it does not exist, or cannot be reached anyway
    try:
        if not stat.S_ISDIR(os.fstat(found).st_mode):
            access &= _FILE_ACCESS
        call(_ADD_RULE, ruleset, _PATH_BENEATH, ctypes.byref(_PathBeneath(access, found)), 0)
    finally:
        os.close(found)
