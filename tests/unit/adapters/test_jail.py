"""The jail of lanes: its filter on both architectures, kernels that lack a part of it, and the environment."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tweezer.adapters.lane import jail
from tweezer.adapters.lane.jail import Exposed, Jail, JailMode, home, landlock, seccomp
from tweezer.adapters.lane.jail.seccomp import (
    CLONE,
    CLONE3,
    DENIED,
    IOCTL,
    NEWEST,
    ON_ITSELF,
    ON_ITSELF_OR_ZERO,
    SystemCall,
)

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
OURS = 4711
ALLOW, EPERM, ENOSYS = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
THREAD = 0x003D0F00  # the flags of pthread_create
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a jail for lanes")

each_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


def verdict(architecture: str, number: int, *arguments: int, under: int | None = None) -> int:
    """Run the filter on a call, as the kernel does."""
    words = {0: number, 4: ARCHITECTURES[architecture] if under is None else under}
    words |= {16 + 8 * index: value & 0xFFFFFFFF for index, value in enumerate(arguments)}
    program = seccomp.build(architecture, OURS)
    loaded, step = 0, 0
    while True:
        code, operand = program[step].code, program[step].operand
        match code:
            case 0x20:
                loaded = words.get(operand, 0)
                step += 1
                continue
            case 0x06:
                return int(operand)
            case 0x15:
                passed = loaded == operand
            case 0x25:
                passed = loaded > operand
            case 0x45:
                passed = bool(loaded & operand)
            case _:
                raise AssertionError(f"instruction {code:#x}")
        step += 1 + (program[step].if_true if passed else program[step].if_false)


def of(numbers: SystemCall, architecture: str) -> int:
    number: int = getattr(numbers, architecture)
    return number


@each_architecture
def test_every_listed_call_is_denied_with_eperm(architecture: str) -> None:
    for number in seccomp.list_denied(architecture):
        assert verdict(architecture, number) == EPERM


@each_architecture
def test_system_calls_of_numerical_libraries_are_allowed(architecture: str) -> None:
    calls = {"x86_64": {0, 1, 9, 10, 11, 202, 257, 318}, "aarch64": {63, 64, 222, 226, 215, 98, 56, 278}}
    for number in calls[architecture]:  # read, write, mmap, mprotect, munmap, futex, openat, getrandom
        assert verdict(architecture, number) == ALLOW


@each_architecture
def test_a_lane_may_start_threads_and_no_processes(architecture: str) -> None:
    clone = of(CLONE, architecture)
    assert verdict(architecture, clone, THREAD) == ALLOW
    assert verdict(architecture, clone, 17) == EPERM  # SIGCHLD: fork
    assert verdict(architecture, clone, THREAD | 0x10000000) == EPERM  # a user namespace
    assert verdict(architecture, of(CLONE3, architecture)) == ENOSYS  # so that libc uses clone


@each_architecture
def test_a_lane_acts_on_no_process_but_itself(architecture: str) -> None:
    for numbers in ON_ITSELF.values():
        assert verdict(architecture, of(numbers, architecture), OURS) == ALLOW
        for other in (0, 1, -1, OURS + 1):
            assert verdict(architecture, of(numbers, architecture), other) == EPERM
    for numbers in ON_ITSELF_OR_ZERO.values():
        assert verdict(architecture, of(numbers, architecture), 0) == ALLOW
        assert verdict(architecture, of(numbers, architecture), OURS + 1) == EPERM


@each_architecture
def test_a_lane_cannot_type_into_a_terminal(architecture: str) -> None:
    ioctl = of(IOCTL, architecture)
    assert verdict(architecture, ioctl, 2, 0x5412) == EPERM
    assert verdict(architecture, ioctl, 2, 0x5401) == ALLOW  # TCGETS: isatty


@each_architecture
def test_calls_of_another_architecture_or_a_newer_kernel_are_denied(architecture: str) -> None:
    assert verdict(architecture, 0, under=0x40000003) == EPERM  # i386
    assert verdict(architecture, NEWEST + 1) == ENOSYS
    assert verdict(architecture, 0x40000000) == ENOSYS  # x32


@LINUX
@each_architecture
def test_the_numbers_are_those_of_libseccomp(architecture: str) -> None:
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        pytest.skip("libseccomp is not installed")
    listed = {name: numbers for calls in DENIED.values() for name, numbers in calls.items()}
    listed |= {**ON_ITSELF, **ON_ITSELF_OR_ZERO, "clone": CLONE, "clone3": CLONE3, "ioctl": IOCTL}
    for name, numbers in listed.items():
        number = library.seccomp_syscall_resolve_name_arch(ARCHITECTURES[architecture], name.encode())
        if number != -1:  # unknown to this version of the library
            assert (name, getattr(numbers, architecture)) == (name, number if number >= 0 else None)


def test_a_jail_that_is_off_changes_nothing() -> None:
    assert jail.enter(Jail(JailMode.OFF)) == "off"


def test_without_linux_there_is_no_jail_and_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert jail.enter(Jail()) == "none: darwin has neither Landlock nor seccomp"
    assert jail.describe_support() == "darwin has neither Landlock nor seccomp"


@LINUX
def test_a_missing_kernel_feature_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landlock, "get_version", lambda: 0)
    monkeypatch.setattr(seccomp, "find_problem", lambda: "the kernel has no seccomp (Invalid argument)")
    assert jail.describe_support().startswith("the kernel has no Landlock, so lanes can read files")
    assert jail.describe_support().endswith("; the kernel has no seccomp (Invalid argument)")


@LINUX
def test_a_lane_without_landlock_starts_with_a_message() -> None:
    program = """
from tweezer.adapters.lane import jail
from tweezer.adapters.lane.jail import landlock
landlock.get_version = lambda: 0
print(jail.enter(jail.Jail()))
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout.startswith("incomplete: the kernel has no Landlock")


def test_a_private_folder_among_the_libraries_is_refused() -> None:
    within = Path(os.__file__).parent / "tweezer-data"
    with pytest.raises(Exposed, match="tweezer-data cannot be hidden from lanes, because it is inside"):
        jail._check_private(jail._list_readable(gpu=False), [str(within)])
    jail._check_private(jail._list_readable(gpu=False), ["/var/lib/tweezer"])


def test_the_environment_is_passed_by_a_list_and_without_urls(tmp_path: Path) -> None:
    given = {
        "PATH": "/bin",
        "LC_ALL": "C.UTF-8",
        "OMP_PROC_BIND": "true",
        "OMP_TOOL": "https://user:secret@host/",
        "PYTHONPATH": f"src{os.pathsep}/opt",
        "TWEEZER_REDIS_URL": "redis://:secret@127.0.0.1",
        "DATABASE_URL": "postgresql://secret@host",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "HOME": "/root",
    }
    passed = home.build_environment(given, tmp_path)
    assert "secret" not in "".join(passed.values())
    assert {name: passed[name] for name in ("PATH", "LC_ALL", "OMP_PROC_BIND")} == {
        "PATH": "/bin",
        "LC_ALL": "C.UTF-8",
        "OMP_PROC_BIND": "true",
    }
    assert passed["PYTHONPATH"] == f"{Path('src').absolute()}{os.pathsep}/opt"
    assert {passed[name] for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME")} == {str(tmp_path)}


@LINUX
def test_a_worker_protects_its_process_from_others_of_its_user() -> None:
    program = """
import ctypes
from tweezer.processes import worker
worker.run_on_a_loop = lambda make: print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))  # PR_GET_DUMPABLE
worker.run_worker(None, device="NULL", lanes=1, version="1")
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout.strip() == "0"
