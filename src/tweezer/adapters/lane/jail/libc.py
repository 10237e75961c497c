"""System calls that Python does not wrap."""

from __future__ import annotations

import ctypes
import functools
import os
from typing import Any

_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38
_CAPABILITY_VERSION = 0x20080522  # 64 bits, in two halves


@functools.cache
def _libc() -> ctypes.CDLL:
    library = ctypes.CDLL(None, use_errno=True)
    library.syscall.restype = ctypes.c_long
    return library


def system_call(number: int, *arguments: Any) -> tuple[int, int]:
    """Make a system call. Return its result and, if that is -1, the error number."""
    words = [ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments]
    result: int = _libc().syscall(ctypes.c_long(number), *words)
    return result, ctypes.get_errno()


def call(number: int, *arguments: Any) -> int:
    """Make a system call and return its result. Raises ``OSError``."""
    result, number_of_error = system_call(number, *arguments)
    if result == -1:
        raise OSError(number_of_error, os.strerror(number_of_error))
    return result


def hide_process() -> None:
    """Hide ``/proc/PID`` (environment, memory, open files) from the user's other processes, and disable core dumps.

    Linux only. Raises ``OSError``.
    """
    _prctl(_PR_SET_DUMPABLE, 0)


def forgo_privileges() -> None:
    """Prevent programs that this process starts from gaining privileges. Raises ``OSError``."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def drop_capabilities() -> None:
    """Give up all capabilities. Raises ``OSError``."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    if _libc().capset(header, (ctypes.c_uint32 * 6)()) != 0:
        raise OSError(ctypes.get_errno(), "capset failed")


def _prctl(option: int, value: int) -> None:
    words = [ctypes.c_ulong(it) for it in (value, 0, 0, 0)]
    if _libc().prctl(ctypes.c_int(option), *words) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value}) failed")
