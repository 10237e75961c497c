"""A seccomp filter of the system calls that a lane may not make.

Denied calls return EPERM and do not kill the process, because imports probe what they may do. Calls that are newer than
this list return ENOSYS, as does ``clone3``, whose flags a filter cannot read: libc then uses the older call. All other
calls are allowed.

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


class SystemCall(NamedTuple):
    """The number of a system call; None if the architecture does not have it."""

    x86_64: int | None
    aarch64: int | None


DENIED: Mapping[str, Mapping[str, SystemCall]] = {
    "the network: a lane has one connected socket, and may only send and receive on it": {
        "socket": SystemCall(41, 198),
        "socketpair": SystemCall(53, 199),
        "connect": SystemCall(42, 203),
        "bind": SystemCall(49, 200),
        "listen": SystemCall(50, 201),
        "accept": SystemCall(43, 202),
        "accept4": SystemCall(288, 242),
    },
    "other programs and processes": {
        "execve": SystemCall(59, 221),
        "execveat": SystemCall(322, 281),
        "fork": SystemCall(57, None),
        "vfork": SystemCall(58, None),
        "ptrace": SystemCall(101, 117),
        "process_vm_readv": SystemCall(310, 270),
        "process_vm_writev": SystemCall(311, 271),
        "process_madvise": SystemCall(440, 440),
        "process_mrelease": SystemCall(448, 448),
        "pidfd_open": SystemCall(434, 434),
        "pidfd_getfd": SystemCall(438, 438),
        "pidfd_send_signal": SystemCall(424, 424),
        "kcmp": SystemCall(312, 272),
        "get_robust_list": SystemCall(274, 100),
        "setpriority": SystemCall(141, 140),
        "ioprio_set": SystemCall(251, 30),
        "migrate_pages": SystemCall(256, 238),
    },
    "memory and queues that processes share": {
        "shmget": SystemCall(29, 194),
        "shmat": SystemCall(30, 196),
        "shmctl": SystemCall(31, 195),
        "semget": SystemCall(64, 190),
        "semop": SystemCall(65, 193),
        "semtimedop": SystemCall(220, 192),
        "semctl": SystemCall(66, 191),
        "msgget": SystemCall(68, 186),
        "msgsnd": SystemCall(69, 189),
        "msgrcv": SystemCall(70, 188),
        "msgctl": SystemCall(71, 187),
        "mq_open": SystemCall(240, 180),
        "mq_unlink": SystemCall(241, 181),
    },
    "files, where Landlock does not look: owners, modes, times, attributes, watches": {
        "chmod": SystemCall(90, None),
        "fchmod": SystemCall(91, 52),
        "fchmodat": SystemCall(268, 53),
        "fchmodat2": SystemCall(452, 452),
        "chown": SystemCall(92, None),
        "fchown": SystemCall(93, 55),
        "lchown": SystemCall(94, None),
        "fchownat": SystemCall(260, 54),
        "setxattr": SystemCall(188, 5),
        "lsetxattr": SystemCall(189, 6),
        "fsetxattr": SystemCall(190, 7),
        "removexattr": SystemCall(197, 14),
        "lremovexattr": SystemCall(198, 15),
        "fremovexattr": SystemCall(199, 16),
        "utime": SystemCall(132, None),
        "utimes": SystemCall(235, None),
        "futimesat": SystemCall(261, None),
        "utimensat": SystemCall(280, 88),
        "truncate": SystemCall(76, 45),
        "mknod": SystemCall(133, None),
        "mknodat": SystemCall(259, 33),
        "inotify_init": SystemCall(253, None),
        "inotify_init1": SystemCall(294, 26),
        "inotify_add_watch": SystemCall(254, 27),
        "fanotify_init": SystemCall(300, 262),
        "fanotify_mark": SystemCall(301, 263),
    },
    "namespaces and mounts": {
        "unshare": SystemCall(272, 97),
        "setns": SystemCall(308, 268),
        "mount": SystemCall(165, 40),
        "umount2": SystemCall(166, 39),
        "pivot_root": SystemCall(155, 41),
        "chroot": SystemCall(161, 51),
        "mount_setattr": SystemCall(442, 442),
        "open_tree": SystemCall(428, 428),
        "move_mount": SystemCall(429, 429),
        "fsopen": SystemCall(430, 430),
        "fsconfig": SystemCall(431, 431),
        "fsmount": SystemCall(432, 432),
        "fspick": SystemCall(433, 433),
        "name_to_handle_at": SystemCall(303, 264),
        "open_by_handle_at": SystemCall(304, 265),
    },
    "parts of the kernel that no emulation needs": {
        "bpf": SystemCall(321, 280),
        "io_uring_setup": SystemCall(425, 425),
        "io_uring_enter": SystemCall(426, 426),
        "io_uring_register": SystemCall(427, 427),
        "perf_event_open": SystemCall(298, 241),
        "userfaultfd": SystemCall(323, 282),
        "add_key": SystemCall(248, 217),
        "request_key": SystemCall(249, 218),
        "keyctl": SystemCall(250, 219),
        "init_module": SystemCall(175, 105),
        "finit_module": SystemCall(313, 273),
        "delete_module": SystemCall(176, 106),
        "kexec_load": SystemCall(246, 104),
        "kexec_file_load": SystemCall(320, 294),
        "reboot": SystemCall(169, 142),
        "swapon": SystemCall(167, 224),
        "swapoff": SystemCall(168, 225),
        "syslog": SystemCall(103, 116),
        "acct": SystemCall(163, 89),
        "quotactl": SystemCall(179, 60),
        "quotactl_fd": SystemCall(443, 443),
        "settimeofday": SystemCall(164, 170),
        "clock_settime": SystemCall(227, 112),
        "clock_adjtime": SystemCall(305, 266),
        "adjtimex": SystemCall(159, 171),
        "sethostname": SystemCall(170, 161),
        "setdomainname": SystemCall(171, 162),
        "iopl": SystemCall(172, None),
        "ioperm": SystemCall(173, None),
        "modify_ldt": SystemCall(154, None),
        "uselib": SystemCall(134, None),
        "personality": SystemCall(135, 92),
        "vhangup": SystemCall(153, 58),
        "lookup_dcookie": SystemCall(212, 18),
    },
}
"""Reason → the calls that are denied with any arguments."""

ON_ITSELF: Mapping[str, SystemCall] = {
    "kill": SystemCall(62, 129),
    "tkill": SystemCall(200, 130),
    "tgkill": SystemCall(234, 131),
    "rt_sigqueueinfo": SystemCall(129, 138),
    "rt_tgsigqueueinfo": SystemCall(297, 240),
}
"""Signals: allowed if the first argument is the lane's own process."""

ON_ITSELF_OR_ZERO: Mapping[str, SystemCall] = {
    "prlimit64": SystemCall(302, 261),
    "sched_setaffinity": SystemCall(203, 122),
    "sched_setscheduler": SystemCall(144, 119),
    "sched_setparam": SystemCall(142, 118),
    "sched_setattr": SystemCall(314, 274),
    "move_pages": SystemCall(279, 239),
}
"""Allowed if the first argument is the lane's own process, or 0, which also denotes the caller."""

CLONE = SystemCall(56, 220)
CLONE3 = SystemCall(435, 435)
IOCTL = SystemCall(16, 29)
SECCOMP = SystemCall(317, 277)
NEWEST = 462
"""``mseal`` (Linux 6.10): a call with a higher number is newer than this list."""

_CLONE_THREAD = 0x00010000
_CLONE_NAMESPACES = 0x7E020080  # CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET,TIME}
_TERMINAL_REQUESTS = (0x5412, 0x541C, 0x540E)  # TIOCSTI, TIOCLINUX, TIOCSCTTY: input to a terminal

_AUDIT_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

# offsets in struct seccomp_data; the lower half of each 64-bit argument is compared (both machines are little-endian)
_NUMBER, _ARCHITECTURE, _FIRST, _SECOND = 0, 4, 16, 24

_LOAD, _EQUAL, _GREATER, _ANY_BIT, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
_ALLOW = 0x7FFF0000
_DENY = 0x00050000 | errno.EPERM
_UNKNOWN = 0x00050000 | errno.ENOSYS

_SET_MODE_FILTER = 1
_ALL_THREADS_AND_SPECULATION = 1 | 4  # without the flag, kernels before 5.16 slow down a filtered process


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


def list_denied(architecture: str) -> list[int]:
    """Return the numbers of the denied calls on this architecture."""
    numbers = (numbers for calls in DENIED.values() for numbers in calls.values())
    return [number for each in numbers if (number := getattr(each, architecture)) is not None]


def build(architecture: str, pid: int) -> list[Instruction]:
    """Return the filter for the process ``pid``. Raises ``KeyError`` for an unknown architecture."""
    program = [
        *_when_not(_ARCHITECTURE, _AUDIT_ARCHITECTURES[architecture], _DENY),
        _do(_LOAD, _NUMBER),
        *_when(_GREATER, NEWEST, _UNKNOWN),
        *_when(_EQUAL, getattr(CLONE3, architecture), _UNKNOWN),
    ]
    for number in list_denied(architecture):
        program += _when(_EQUAL, number, _DENY)
    for calls, allowed in ((ON_ITSELF, (pid,)), (ON_ITSELF_OR_ZERO, (pid, 0))):
        for numbers in calls.values():
            body = [_do(_LOAD, _FIRST), *(step for value in allowed for step in _when(_EQUAL, value, _ALLOW))]
            program += _for_call(getattr(numbers, architecture), [*body, _do(_RETURN, _DENY)])
    threads_only = [
        _do(_LOAD, _FIRST),
        *_when(_ANY_BIT, _CLONE_NAMESPACES, _DENY),
        *_when(_ANY_BIT, _CLONE_THREAD, _ALLOW),
        _do(_RETURN, _DENY),
    ]
    program += _for_call(getattr(CLONE, architecture), threads_only)
    no_typing = [_do(_LOAD, _SECOND), *(step for it in _TERMINAL_REQUESTS for step in _when(_EQUAL, it, _DENY))]
    program += _for_call(getattr(IOCTL, architecture), [*no_typing, _do(_RETURN, _ALLOW)])
    return [*program, _do(_RETURN, _ALLOW)]


def find_problem() -> str | None:
    """Return why this host cannot use the filter, or None."""
    if platform.machine() not in _AUDIT_ARCHITECTURES:
        return f"there is no seccomp filter for {platform.machine()}"
    # called without a filter, the kernel returns EFAULT if it supports filters, and EINVAL if not
    result, number = system_call(getattr(SECCOMP, platform.machine()), _SET_MODE_FILTER, 0, None)
    return None if result == -1 and number == errno.EFAULT else f"the kernel has no seccomp ({os.strerror(number)})"


def install() -> None:
    """Filter the calls of all threads of this process from now on. Raises ``OSError``."""
    instructions = build(platform.machine(), os.getpid())
    program = _Program(len(instructions), (Instruction * len(instructions))(*instructions))
    number = getattr(SECCOMP, platform.machine())
    if call(number, _SET_MODE_FILTER, _ALL_THREADS_AND_SPECULATION, ctypes.byref(program)) != 0:
        raise OSError(errno.EBUSY, "seccomp: another thread of this process has a different filter")


def _do(code: int, operand: int) -> Instruction:
    return Instruction(code, 0, 0, operand)


def _when(test: int, operand: int | None, result: int) -> list[Instruction]:
    """Return this result if the loaded word passes the test, else continue."""
    return [] if operand is None else [Instruction(test, 0, 1, operand), _do(_RETURN, result)]


def _when_not(offset: int, operand: int, result: int) -> list[Instruction]:
    """Return this result unless the word at the offset is the operand."""
    return [_do(_LOAD, offset), Instruction(_EQUAL, 1, 0, operand), _do(_RETURN, result)]


def _for_call(number: int | None, body: list[Instruction]) -> list[Instruction]:
    """Run the body, which returns, for this call. For other calls the number stays loaded."""
    return [] if number is None else [Instruction(_EQUAL, 0, len(body), number), *body]
