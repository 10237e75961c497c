"""The jail that a lane enters before it imports anything that reads a user's input.

It needs no root and no other program: Landlock bounds the files, seccomp the system calls, ``no_new_privs`` and an
empty set of capabilities the privileges, and the lane is closed to ``ptrace`` and core dumps. A lane may start threads,
and no process at all. There is no limit on address space, because CUDA reserves it; the worker watches the memory.

Written against the kernel's interface by ctypes: the libraries for Python are young or unmaintained, cover one half
each, and start a compiler to find libc.
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
"""The size to which a lane can make one file of its scratch folder grow."""

COMPLETE = "on"
"""What :func:`enter` returns where nothing is missing."""

_LIBRARIES = (
    *("/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/libexec"),
    *("/usr/local/lib", "/usr/local/lib64", "/nix/store", "/gnu/store"),
)
_CONFIGURATION = (
    *("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/localtime", "/etc/timezone"),
    *("/etc/nsswitch.conf", "/etc/passwd", "/etc/fonts"),
    *(
        "/usr/share/zoneinfo",
        "/usr/share/locale",
        "/usr/share/fonts",
        "/usr/local/share/fonts",
        "/usr/share/fontconfig",
    ),
)
_ABOUT_THE_MACHINE = (
    *("/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/loadavg", "/proc/uptime", "/proc/version"),
    *("/proc/filesystems", "/proc/mounts", "/proc/sys/vm", "/proc/sys/kernel"),
    *("/sys/devices/system", "/sys/kernel/mm", "/sys/fs/cgroup", "/dev/urandom", "/dev/random", "/dev/zero"),
)
_OF_A_GPU = (
    *("/usr/local/cuda", "/opt/cuda", "/opt/rocm", "/etc/nvidia", "/usr/share/nvidia", "/usr/share/libdrm"),
    *("/proc/devices", "/proc/modules", "/proc/driver", "/proc/sys/dev"),
    *("/sys/devices", "/sys/bus", "/sys/class", "/sys/module", "/sys/dev"),
)
_GPUS = ("nvidia*", "nvidia-caps/*", "dri/*", "kfd")
_NO_LANDLOCK = "no Landlock in the kernel, so files are open to lanes (Linux 5.13 or newer has it, if `lsm=` names it)"

_pinned: list[int] = []  # descriptors that are open as long as the process


class JailMode(StrEnum):
    """``OFF`` leaves lanes with all that the worker's user may do."""

    ON = "on"
    OFF = "off"


class Jail(msgspec.Struct, frozen=True):
    """What a lane's process may do.

    scratch: the one folder that it may write. private: folders that it must not read; one inside a folder of Python's
    path or of the system's libraries cannot be kept from it, so the lane refuses to start. gpu: whether it uses GPUs.
    """

    mode: JailMode = JailMode.ON
    scratch: str = ""
    private: tuple[str, ...] = ()
    gpu: bool = False


class Exposed(Exception):
    """A private folder lies in one that lanes must read."""


def enter(jail: Jail) -> str:
    """Jail this process, which must have one thread, for good.

    Returns ``on``, or what is missing and why: the lane runs all the same, and the worker reports it. Raises
    ``Exposed``, and ``OSError`` when the kernel refuses what it offers.
    """
    if jail.mode is JailMode.OFF:
        return "off"
    if sys.platform != "linux":
        return f"none: {sys.platform} has neither Landlock nor seccomp"
    import resource

    readable = list(_readable(gpu=jail.gpu))
    _check_private(readable, jail.private)
    libc.hide_process()
    libc.forgo_privileges()
    for limit, most in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, FILE_MAX_BYTES)):
        _, hard = resource.getrlimit(limit)
        lowered = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(limit, (lowered, lowered))
    if abi := landlock.version():
        # a folder of /proc may get another inode when nobody has it open, which no rule then knows
        _pinned.append(os.open("/proc/self", os.O_PATH | os.O_CLOEXEC))
        rules = {
            landlock.READ: [*readable, f"/proc/{os.getpid()}"],
            landlock.DEVICE: ["/dev/null", *(_gpu_devices() if jail.gpu else ())],
            landlock.WRITE: [jail.scratch] if jail.scratch else [],
        }
        landlock.restrict(rules, abi)
    libc.drop_capabilities()
    missing = _list_missing(abi)
    if seccomp.unsupported() is None:
        seccomp.install()
    return f"incomplete: {'; '.join(missing)}" if missing else COMPLETE


def offer() -> str:
    """Return what the kernel of this host offers a jail, for people; changes nothing."""
    if sys.platform != "linux":
        return f"{sys.platform} has neither Landlock nor seccomp"
    abi = landlock.version()
    return "; ".join(_list_missing(abi)) or f"Landlock (ABI {abi}) and seccomp"


def _list_missing(abi: int) -> list[str]:
    return [problem for problem in (None if abi else _NO_LANDLOCK, seccomp.unsupported()) if problem is not None]


def _check_private(readable: Iterable[str], private: Iterable[str]) -> None:
    hidden = [Path(folder).resolve() for folder in private]
    for path in readable:
        opened = Path(path).resolve()
        for folder in hidden:
            if folder.is_relative_to(opened):
                raise Exposed(
                    f"{folder} cannot be kept from lanes, because it lies in {opened}, which they must read; set "
                    "TWEEZER_DATA_DIR and TWEEZER_RESULTS_DIR to folders elsewhere, or take it from PYTHONPATH"
                )


def _readable(*, gpu: bool) -> Iterator[str]:
    """Yield the interpreter, the folders of its path, the system's libraries, and what describes the machine."""
    for prefix in {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix}:
        yield from (f"{prefix}/lib", f"{prefix}/lib64")
    yield from (sysconfig.get_path(name) for name in ("stdlib", "platstdlib"))
    yield from (path for path in sys.path if path)
    for name, module in sys.modules.items():
        if name.startswith("__editable__"):  # setuptools' editable installs, which are not on the path
            yield from getattr(module, "MAPPING", {}).values()
    yield from (path for path in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if path)
    yield from (*_LIBRARIES, *_CONFIGURATION, *_ABOUT_THE_MACHINE)
    if gpu:
        yield from _OF_A_GPU
        yield from (path for name in ("CUDA_HOME", "CUDA_PATH", "ROCM_PATH") if (path := os.environ.get(name)))


def _gpu_devices() -> Iterator[str]:
    for pattern in _GPUS:
        yield from map(str, Path("/dev").glob(pattern))
