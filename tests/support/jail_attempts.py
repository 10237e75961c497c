"""Attempts of a hostile library in a lane's process, and actions that libraries need there."""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ALLOWED = 0
"""The outcome of an attempt that succeeds. The outcome of a failed attempt is its errno."""

_PTRACE_SEIZE = 0x4206  # unlike PTRACE_ATTACH, it does not stop the other process if the jail fails
_CLONE_NEWUSER = 0x10000000
_BPF, _IO_URING_SETUP = {"x86_64": (321, 425), "aarch64": (280, 425)}[os.uname().machine]


def escapes(private: str) -> Mapping[str, Callable[[], object]]:
    """Return attempts that the jail must refuse. ``private`` is a file in Tweezer's data folder."""
    worker = os.getppid()
    folder = Path(private).parent
    return {
        "read a file of the data folder": lambda: Path(private).read_bytes(),
        "list the data folder": lambda: list(folder.iterdir()),
        "overwrite a file of the data folder": lambda: Path(private).write_bytes(b""),
        "truncate a file of the data folder": lambda: os.truncate(private, 0),
        "delete a file of the data folder": lambda: Path(private).unlink(),
        "close the data folder to others": lambda: folder.chmod(0),
        "make a file beside it": (folder / "new").touch,
        "make a file in the folder for temporary files": lambda: Path("/tmp/tweezer-escaped").touch(),
        "list the folder for temporary files": lambda: list(Path("/tmp").iterdir()),
        "read the worker's environment": lambda: Path(f"/proc/{worker}/environ").read_bytes(),
        "read the worker's memory map": lambda: Path(f"/proc/{worker}/maps").read_bytes(),
        "see the worker's open files": lambda: list(Path(f"/proc/{worker}/fd").iterdir()),
        "list the processes": lambda: list(Path("/proc").iterdir()),
        "read root's home": lambda: list(Path("/root").iterdir()),
        "read the system's passwords": lambda: Path("/etc/shadow").read_bytes(),
        "open an internet socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM).close(),
        "open a datagram socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close(),
        "open a socket of the system": lambda: socket.socket(socket.AF_UNIX).close(),
        "open a pair of sockets": socket.socketpair,
        "run a shell": lambda: subprocess.run(["/bin/sh", "-c", "true"], check=True),
        "fork": _fork,
        "trace the worker": lambda: _libc("ptrace", _PTRACE_SEIZE, worker, 0, 0),
        "read the worker's memory": lambda: _libc("process_vm_readv", worker, None, 0, None, 0, 0),
        "find the worker": lambda: os.kill(worker, 0),
        "stop every process of the user": lambda: os.kill(-1, 0),
        "open the worker": lambda: os.pidfd_open(worker),
        "limit the worker's files": lambda: resource.prlimit(worker, resource.RLIMIT_NOFILE),
        "slow the worker down": lambda: os.setpriority(os.PRIO_PROCESS, worker, 0),
        "bind the worker to a core": lambda: os.sched_setaffinity(worker, os.sched_getaffinity(worker)),
        "make a namespace": lambda: _libc("unshare", _CLONE_NEWUSER),
        "load a program into the kernel": lambda: _libc("syscall", _BPF, 0, None, 0),
        "set up io_uring": lambda: _libc("syscall", _IO_URING_SETUP, 1, None),
        "share memory with other processes": lambda: _libc("shmget", 0, 4096, 0o1600),
        "raise its own limits": lambda: resource.setrlimit(resource.RLIMIT_CORE, (1, 1)),
        # last, because nothing else runs if it succeeds
        "become a shell": lambda: os.execv("/bin/sh", ["sh", "-c", "exit 0"]),  # noqa: S606  # the point
    }


def needs() -> Mapping[str, Callable[[], object]]:
    """Return actions that the jail must allow."""
    return {
        "read a library": lambda: Path(os.__file__).read_bytes(),
        "make a temporary file": lambda: tempfile.NamedTemporaryFile().close(),
        "make a folder and rename it": _make_and_rename,
        "start a thread": _thread,
        "read its own status": lambda: Path("/proc/self/status").read_bytes(),
        "count the processors": lambda: Path("/proc/cpuinfo").read_bytes(),
        "write to nowhere": lambda: Path(os.devnull).write_bytes(b"x"),
        "get random numbers": lambda: Path("/dev/urandom").open("rb").close(),
        "map memory": lambda: mmap.mmap(-1, 1 << 20).close(),
        "choose its own cores": lambda: os.sched_setaffinity(0, os.sched_getaffinity(0)),
        "signal itself": lambda: os.kill(os.getpid(), signal.SIGTERM),  # which lanes ignore
    }


def outcomes(attempts: Mapping[str, Callable[[], Any]]) -> dict[str, int]:
    """Make every attempt and return the outcomes."""
    return {name: _outcome(attempt) for name, attempt in attempts.items()}


def _outcome(attempt: Callable[[], object]) -> int:
    try:
        attempt()
    except OSError as error:
        return error.errno or -1
    except ValueError:  # setrlimit raises it for EPERM
        return 1
    return ALLOWED


def _libc(name: str, *arguments: object) -> None:
    function = getattr(ctypes.CDLL(None, use_errno=True), name)
    if function(*arguments) == -1:
        raise OSError(ctypes.get_errno(), name)


def _fork() -> None:
    if os.fork() == 0:
        os._exit(0)


def _thread() -> None:
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()


def _make_and_rename() -> None:
    folder = Path(tempfile.mkdtemp())
    (folder / "one").write_text("1")
    folder.rename(f"{folder}-renamed")
