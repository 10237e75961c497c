"""The jail that a lane's process enters before it imports anything that reads a user's input.

It needs neither root nor another program. Landlock restricts the files, seccomp the system calls, and ``no_new_privs``
and an empty set of capabilities the privileges. The process cannot be traced (``ptrace``) and writes no core dumps. It
may start threads, but no processes. There is no limit on address space, because CUDA reserves it; the worker watches
the memory.

It calls the kernel by ctypes: the Python libraries are young or unmaintained, each covers only one half, and they start
a compiler to find libc.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from enum import StrEnum
from pathlib import Path

import msgspec

from tweezer.adapters.lane.jail import landlock, libc, seccomp

FILE_MAX_BYTES = 256 << 20
"""The largest size of a file that a lane can write."""

COMPLETE = "on"
"""The result of :func:`enter` if no part of the jail is missing."""

_LIBRARIES = (
    *("/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/libexec"),
    *("/usr/local/lib", "/usr/local/lib64", "/nix/store", "/gnu/store"),
)
_CONFIGURATION = (
    *("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/localtime", "/etc/timezone"),
    *("/etc/nsswitch.conf", "/etc/passwd", "/usr/share/zoneinfo", "/usr/share/locale"),
)
_SYSTEM_INFORMATION = (
    *("/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/loadavg", "/proc/uptime", "/proc/version"),
    *("/proc/filesystems", "/proc/mounts", "/proc/sys/vm", "/proc/sys/kernel"),
    *("/sys/devices/system", "/sys/kernel/mm", "/sys/fs/cgroup", "/dev/urandom", "/dev/random", "/dev/zero"),
)
_GPU_FILES = (
    *("/usr/local/cuda", "/opt/cuda", "/opt/rocm", "/etc/nvidia", "/usr/share/nvidia", "/usr/share/libdrm"),
    *("/proc/devices", "/proc/modules", "/proc/driver", "/proc/sys/dev"),
    *("/sys/devices", "/sys/bus", "/sys/class", "/sys/module", "/sys/dev"),
)
_GPUS = ("nvidia*", "nvidia-caps/*", "dri/*", "kfd")
_NO_LANDLOCK = (
    "the kernel has no Landlock, so lanes can read files (it needs Linux 5.13 or newer, with landlock in `lsm=`)"
)

_pinned: list[int] = []  # descriptors that stay open until the process ends


class JailMode(StrEnum):
    """Whether lanes are jailed. With ``OFF`` they may do all that the worker's user may do."""

    ON = "on"
    OFF = "off"


class Jail(msgspec.Struct, frozen=True):
    """What a lane's process may do.

    scratch: The only folder that it may write. private: Folders that it must not read. A private folder inside Python's
    path or the system's libraries cannot be protected, so the lane refuses to start. gpu: Whether it may use GPUs.
    """

    mode: JailMode = JailMode.ON
    scratch: str = ""
    private: tuple[str, ...] = ()
    gpu: bool = False


class Exposed(Exception):
    """A private folder is inside a folder that lanes must read."""


def enter(jail: Jail) -> str:
    """Jail this process permanently. It must have only one thread.

    Returns ``on``, or what is missing and why; the lane runs nevertheless, and the worker reports it. Raises
    ``Exposed``, or ``OSError`` if the kernel refuses a feature that it has.
    """
    if jail.mode is JailMode.OFF:
        return "off"
    if sys.platform != "linux":
        return f"none: {sys.platform} has neither Landlock nor seccomp"
    import resource

    readable = list(_list_readable(gpu=jail.gpu))
    _check_private(readable, jail.private)
    libc.hide_process()
    libc.forgo_privileges()
    for limit, most in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, FILE_MAX_BYTES)):
        _, hard = resource.getrlimit(limit)
        lowered = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(limit, (lowered, lowered))
    if abi := landlock.get_version():
        # a folder of /proc that no process has open may get another inode, which no rule covers
        _pinned.append(os.open("/proc/self", os.O_PATH | os.O_CLOEXEC))
        rules = {
            landlock.READ: [*readable, f"/proc/{os.getpid()}"],
            landlock.DEVICE: ["/dev/null", *(_list_gpu_devices() if jail.gpu else ())],
            landlock.WRITE: [jail.scratch] if jail.scratch else [],
        }
        landlock.restrict(rules, abi)
    libc.drop_capabilities()
    missing = _list_missing(abi)
    if seccomp.find_problem() is None:
        seccomp.install()
    return f"incomplete: {'; '.join(missing)}" if missing else COMPLETE


def describe_support() -> str:
    """Return, for people, which parts of the jail this host's kernel supports. Changes nothing."""
    if sys.platform != "linux":
        return f"{sys.platform} has neither Landlock nor seccomp"
    abi = landlock.get_version()
    return "; ".join(_list_missing(abi)) or f"Landlock (ABI {abi}) and seccomp"


def _list_missing(abi: int) -> list[str]:
    return [problem for problem in (None if abi else _NO_LANDLOCK, seccomp.find_problem()) if problem is not None]


def _check_private(readable: Iterable[str], private: Iterable[str]) -> None:
    hidden = [Path(folder).resolve() for folder in private]
    for path in readable:
        opened = Path(path).resolve()
        for folder in hidden:
            if folder.is_relative_to(opened):
                raise Exposed(
                    f"{folder} cannot be hidden from lanes, because it is inside {opened}, which they must read; set "
                    "TWEEZER_DATA_DIR and TWEEZER_RESULTS_DIR to other folders, or remove it from PYTHONPATH"
                )


def _list_readable(*, gpu: bool) -> Iterator[str]:
    """Yield the interpreter, the folders of its path, the system's libraries, and files that describe the system."""
    for prefix in {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix}:
        yield from (f"{prefix}/lib", f"{prefix}/lib64")
    yield from (sysconfig.get_path(name) for name in ("stdlib", "platstdlib"))
    yield from (path for path in sys.path if path)
    for name, module in sys.modules.items():
        if name.startswith("__editable__"):  # setuptools' editable installs, which are not on the path
            yield from getattr(module, "MAPPING", {}).values()
    yield from (path for path in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if path)
    yield from (*_LIBRARIES, *_CONFIGURATION, *_SYSTEM_INFORMATION)
    if gpu:
        yield from _GPU_FILES
        yield from (path for name in ("CUDA_HOME", "CUDA_PATH", "ROCM_PATH") if (path := os.environ.get(name)))


def _list_gpu_devices() -> Iterator[str]:
    for pattern in _GPUS:
        yield from map(str, Path("/dev").glob(pattern))
