"""The system calls that a lane may not make, as a seccomp filter.

Denied calls return EPERM, because imports probe what they may do. Calls that are newer than this list return ENOSYS, as
does ``clone3``, whose flags a filter cannot read: libc then uses the older call. Everything else is allowed.

Numbers: ``asm/unistd_64.h`` (x86_64) and ``asm-generic/unistd.h`` (aarch64) of Linux; the filter's format:
``linux/seccomp.h`` and ``linux/bpf_common.h``.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
from collections.abc import Mapping
from typing import NamedTuple

from tweezer.adapters.lane.jail.libc import call, system_call


class Numbers(NamedTuple):
    """The number of a system call; None where the architecture does not have it."""

    x86_64: int | None
    aarch64: int | None


DENIED: Mapping[str, Mapping[str, Numbers]] = {
    "the network: a lane has one connected socket, and may only send and receive on it": {
        "socket": Numbers(41, 198),
        "socketpair": Numbers(53, 199),
        "connect": Numbers(42, 203),
        "bind": Numbers(49, 200),
        "listen": Numbers(50, 201),
        "accept": Numbers(43, 202),
        "accept4": Numbers(288, 242),
    },
    "other programs and processes": {
        "execve": Numbers(59, 221),
        "execveat": Numbers(322, 281),
        "fork": Numbers(57, None),
        "vfork": Numbers(58, None),
        "ptrace": Numbers(101, 117),
        "process_vm_readv": Numbers(310, 270),
        "process_vm_writev": Numbers(311, 271),
        "process_madvise": Numbers(440, 440),
        "process_mrelease": Numbers(448, 448),
        "pidfd_open": Numbers(434, 434),
        "pidfd_getfd": Numbers(438, 438),
        "pidfd_send_signal": Numbers(424, 424),
        "kcmp": Numbers(312, 272),
        "get_robust_list": Numbers(274, 100),
        "setpriority": Numbers(141, 140),
        "ioprio_set": Numbers(251, 30),
        "migrate_pages": Numbers(256, 238),
    },
    "memory and queues that processes share": {
        "shmget": Numbers(29, 194),
        "shmat": Numbers(30, 196),
        "shmctl": Numbers(31, 195),
        "semget": Numbers(64, 190),
        "semop": Numbers(65, 193),
        "semtimedop": Numbers(220, 192),
        "semctl": Numbers(66, 191),
        "msgget": Numbers(68, 186),
        "msgsnd": Numbers(69, 189),
        "msgrcv": Numbers(70, 188),
        "msgctl": Numbers(71, 187),
        "mq_open": Numbers(240, 180),
        "mq_unlink": Numbers(241, 181),
    },
    "files, where Landlock does not look: owners, modes, times, attributes, watches": {
        "chmod": Numbers(90, None),
        "fchmod": Numbers(91, 52),
        "fchmodat": Numbers(268, 53),
        "fchmodat2": Numbers(452, 452),
        "chown": Numbers(92, None),
        "fchown": Numbers(93, 55),
        "lchown": Numbers(94, None),
        "fchownat": Numbers(260, 54),
        "setxattr": Numbers(188, 5),
        "lsetxattr": Numbers(189, 6),
        "fsetxattr": Numbers(190, 7),
        "removexattr": Numbers(197, 14),
        "lremovexattr": Numbers(198, 15),
        "fremovexattr": Numbers(199, 16),
        "utime": Numbers(132, None),
        "utimes": Numbers(235, None),
        "futimesat": Numbers(261, None),
        "utimensat": Numbers(280, 88),
        "truncate": Numbers(76, 45),
        "mknod": Numbers(133, None),
        "mknodat": Numbers(259, 33),
        "inotify_init": Numbers(253, None),
        "inotify_init1": Numbers(294, 26),
        "inotify_add_watch": Numbers(254, 27),
        "fanotify_init": Numbers(300, 262),
        "fanotify_mark": Numbers(301, 263),
    },
    "namespaces and mounts": {
        "unshare": Numbers(272, 97),
        "setns": Numbers(308, 268),
        "mount": Numbers(165, 40),
        "umount2": Numbers(166, 39),
        "pivot_root": Numbers(155, 41),
        "chroot": Numbers(161, 51),
        "mount_setattr": Numbers(442, 442),
        "open_tree": Numbers(428, 428),
        "move_mount": Numbers(429, 429),
        "fsopen": Numbers(430, 430),
        "fsconfig": Numbers(431, 431),
        "fsmount": Numbers(432, 432),
        "fspick": Numbers(433, 433),
        "name_to_handle_at": Numbers(303, 264),
        "open_by_handle_at": Numbers(304, 265),
    },
    "parts of the kernel that no emulation needs": {
        "bpf": Numbers(321, 280),
        "io_uring_setup": Numbers(425, 425),
        "io_uring_enter": Numbers(426, 426),
        "io_uring_register": Numbers(427, 427),
        "perf_event_open": Numbers(298, 241),
        "userfaultfd": Numbers(323, 282),
        "add_key": Numbers(248, 217),
        "request_key": Numbers(249, 218),
        "keyctl": Numbers(250, 219),
        "init_module": Numbers(175, 105),
        "finit_module": Numbers(313, 273),
        "delete_module": Numbers(176, 106),
        "kexec_load": Numbers(246, 104),
        "kexec_file_load": Numbers(320, 294),
        "reboot": Numbers(169, 142),
        "swapon": Numbers(167, 224),
        "swapoff": Numbers(168, 225),
        "syslog": Numbers(103, 116),
        "acct": Numbers(163, 89),
        "quotactl": Numbers(179, 60),
        "quotactl_fd": Numbers(443, 443),
        "settimeofday": Numbers(164, 170),
        "clock_settime": Numbers(227, 112),
        "clock_adjtime": Numbers(305, 266),
        "adjtimex": Numbers(159, 171),
        "sethostname": Numbers(170, 161),
        "setdomainname": Numbers(171, 162),
        "iopl": Numbers(172, None),
        "ioperm": Numbers(173, None),
        "modify_ldt": Numbers(154, None),
        "uselib": Numbers(134, None),
        "personality": Numbers(135, 92),
        "vhangup": Numbers(153, 58),
        "lookup_dcookie": Numbers(212, 18),
    },
}
"""Why → the calls that are denied whatever their arguments."""

ON_ITSELF: Mapping[str, Numbers] = {
    "kill": Numbers(62, 129),
    "tkill": Numbers(200, 130),
    "tgkill": Numbers(234, 131),
    "rt_sigqueueinfo": Numbers(129, 138),
    "rt_tgsigqueueinfo": Numbers(297, 240),
}
"""Signals: allowed when the first argument is the lane's own process."""

ON_ITSELF_OR_ZERO: Mapping[str, Numbers] = {
    "prlimit64": Numbers(302, 261),
    "sched_setaffinity": Numbers(203, 122),
    "sched_setscheduler": Numbers(144, 119),
    "sched_setparam": Numbers(142, 118),
    "sched_setattr": Numbers(314, 274),
    "move_pages": Numbers(279, 239),
}
"""Allowed when the first argument is the lane's own process, or 0, by which the caller means itself."""

CLONE = Numbers(56, 220)
CLONE3 = Numbers(435, 435)
IOCTL = Numbers(16, 29)
SECCOMP = Numbers(317, 277)
NEWEST = 462
"""``mseal`` (Linux 6.10): a call with a higher number is newer than this list."""

_CLONE_THREAD = 0x00010000
_CLONE_NAMESPACES = 0x7E020080  # CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET,TIME}
_TERMINAL_REQUESTS = (0x5412, 0x541C, 0x540E)  # TIOCSTI, TIOCLINUX, TIOCSCTTY: typing for whoever has the terminal

_AUDIT_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_ARCHITECTURES = tuple(_AUDIT_ARCHITECTURES)

# of struct seccomp_data; arguments are 64 bits wide, of which ours use the lower half (both machines: little-endian)
_NUMBER, _ARCHITECTURE, _FIRST, _SECOND = 0, 4, 16, 24

_LOAD, _EQUAL, _GREATER, _ANY_BIT, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
_ALLOW = 0x7FFF0000
_DENY = 0x00050000 | errno.EPERM
_UNKNOWN = 0x00050000 | errno.ENOSYS

_SET_MODE_FILTER = 1
_ALL_THREADS_AND_SPECULATION = 1 | 4  # kernels before 5.16 slow a filtered process down unless told not to


class Instruction(ctypes.Structure):
    """``struct sock_filter``."""

    _fields_ = (
        ("code", ctypes.c_uint16),
        ("if_true", ctypes.c_uint8),
        ("if_false", ctypes.c_uint8),
        ("operand", ctypes.c_uint32),
    )


class _Program(ctypes.Structure):
    """``struct sock_fprog``."""

    _fields_ = (("length", ctypes.c_uint16), ("instructions", ctypes.POINTER(Instruction)))


def denied(architecture: str) -> list[int]:
    """Return the numbers of the calls that are denied on this architecture."""
    numbers = (numbers for calls in DENIED.values() for numbers in calls.values())
    return [number for each in numbers if (number := _number(each, architecture)) is not None]


def build(architecture: str, pid: int) -> list[Instruction]:
    """Return the filter for the process ``pid``. Raises ``KeyError`` for an architecture without a list."""
    program = [
        *_when_not(_ARCHITECTURE, _AUDIT_ARCHITECTURES[architecture], _DENY),
        _do(_LOAD, _NUMBER),
        *_when(_GREATER, NEWEST, _UNKNOWN),
        *_when(_EQUAL, _number(CLONE3, architecture), _UNKNOWN),
    ]
    for number in denied(architecture):
        program += _when(_EQUAL, number, _DENY)
    for calls, allowed in ((ON_ITSELF, (pid,)), (ON_ITSELF_OR_ZERO, (pid, 0))):
        for numbers in calls.values():
            body = [_do(_LOAD, _FIRST), *(step for value in allowed for step in _when(_EQUAL, value, _ALLOW))]
            program += _for_call(_number(numbers, architecture), [*body, _do(_RETURN, _DENY)])
    threads_only = [
        _do(_LOAD, _FIRST),
        *_when(_ANY_BIT, _CLONE_NAMESPACES, _DENY),
        *_when(_ANY_BIT, _CLONE_THREAD, _ALLOW),
        _do(_RETURN, _DENY),
    ]
    program += _for_call(_number(CLONE, architecture), threads_only)
    no_typing = [_do(_LOAD, _SECOND), *(step for it in _TERMINAL_REQUESTS for step in _when(_EQUAL, it, _DENY))]
    program += _for_call(_number(IOCTL, architecture), [*no_typing, _do(_RETURN, _ALLOW)])
    return [*program, _do(_RETURN, _ALLOW)]


def unsupported() -> str | None:
    """Return why this machine cannot have the filter, or None."""
    if platform.machine() not in _ARCHITECTURES:
        return f"no seccomp filter for {platform.machine()}"
    # without a filter the kernel answers EFAULT where it knows seccomp's filters, EINVAL where it does not
    result, number = system_call(_own(SECCOMP), _SET_MODE_FILTER, 0, None)
    return None if result == -1 and number == errno.EFAULT else f"no seccomp in the kernel ({os.strerror(number)})"


def install() -> None:
    """Filter the calls of every thread of this process from now on. Raises ``OSError``."""
    instructions = build(platform.machine(), os.getpid())
    program = _Program(len(instructions), (Instruction * len(instructions))(*instructions))
    if call(_own(SECCOMP), _SET_MODE_FILTER, _ALL_THREADS_AND_SPECULATION, ctypes.byref(program)) != 0:
        raise OSError(errno.EBUSY, "seccomp: a thread of this process has a filter of its own")


def _own(numbers: Numbers) -> int:
    number = _number(numbers, platform.machine())
    assert number is not None
    return number


def _number(numbers: Numbers, architecture: str) -> int | None:
    return numbers[_ARCHITECTURES.index(architecture)]


def _do(code: int, operand: int) -> Instruction:
    return Instruction(code, 0, 0, operand)


def _when(test: int, operand: int | None, result: int) -> list[Instruction]:
    """Return this result when the loaded word passes the test, else go on."""
    return [] if operand is None else [Instruction(test, 0, 1, operand), _do(_RETURN, result)]


def _when_not(offset: int, operand: int, result: int) -> list[Instruction]:
    """Return this result unless the word at the offset is the operand."""
    return [_do(_LOAD, offset), Instruction(_EQUAL, 1, 0, operand), _do(_RETURN, result)]


def _for_call(number: int | None, body: list[Instruction]) -> list[Instruction]:
    """Run the body, which returns, for this call; the number stays loaded for the others."""
    return [] if number is None else [Instruction(_EQUAL, 0, len(body), number), *body]
