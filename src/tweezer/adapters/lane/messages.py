"""What a worker and the process of one of its lanes say to each other.

A frame is four bytes of length (big-endian) and a MessagePack body: one of the structs below, tagged by
its name. Nothing else is accepted, in either direction. ``serial`` numbers the worker's requests; an
answer carries the number of its request.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import msgspec

from tweezer.adapters.lane.jail import Jail
from tweezer.model.errors import FaultKind
from tweezer.model.messages import BatchWork, Fault, JobWork, Outcome

HEADER_BYTES = 4
MAX_BODY_BYTES = 256 << 20

_header = struct.Struct(">I")


class Start(msgspec.Struct, frozen=True, tag=True):
    """The first message: enter the jail, then load this backend. Answered, with serial 0, by ``Ready`` or
    ``ChildRefused``.

    backend: ``module:factory``, see :mod:`tweezer.adapters.lane.backend`. memo_mb: how much memory
    evolved states may keep for jobs that are equal. progress_interval_s: the least time between reports.
    arguments: what else the backend's factory is given. jail: what the process may still do.
    """

    backend: str
    memo_mb: int
    progress_interval_s: float
    arguments: tuple[str, ...] = ()
    jail: Jail = Jail()


class Prepare(msgspec.Struct, frozen=True, tag=True):
    """Get ready for jobs of this batch. Answered by ``Prepared`` or ``ChildRefused``."""

    serial: int
    batch: BatchWork


class Run(msgspec.Struct, frozen=True, tag=True):
    """Run one job of the batch prepared last. Answered by any number of ``Advanced``, then ``RunFinished``.

    measured: the bitstrings that a machine measured; then the job is not run, but its result made of them.
    """

    serial: int
    job: JobWork
    measured: dict[str, int] | None = None


class Abort(msgspec.Struct, frozen=True, tag=True):
    """Stop the request of this number as soon as its solver looks up; ignored when it is not the current one."""

    serial: int


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The backend is imported. jail: what :func:`tweezer.adapters.lane.jail.enter` returned."""

    serial: int = 0
    jail: str = ""


class Prepared(msgspec.Struct, frozen=True, tag=True):
    """The batch is parsed and valid."""

    serial: int


class ChildRefused(msgspec.Struct, frozen=True, tag=True):
    """The request cannot be met, for this reason."""

    serial: int
    kind: FaultKind
    fault: Fault


class Advanced(msgspec.Struct, frozen=True, tag=True):
    """The running job got this far (0 to 1)."""

    serial: int
    fraction: float


class RunFinished(msgspec.Struct, frozen=True, tag=True):
    """The job ended; kind ``canceled`` says that it was aborted.

    evolutions: how many times this process solved an evolution since it started (a diagnostic: jobs that
    are equal share one).
    """

    serial: int
    outcome: Outcome
    evolutions: int


ToChild = Start | Prepare | Run | Abort
ToWorker = Ready | Prepared | ChildRefused | Advanced | RunFinished

_encoder = msgspec.msgpack.Encoder()

unpack_for_child: Callable[[bytes], ToChild] = msgspec.msgpack.Decoder(ToChild).decode
"""Raises ``msgspec.DecodeError`` on anything that is not a message to the child."""

unpack_for_worker: Callable[[bytes], ToWorker] = msgspec.msgpack.Decoder(ToWorker).decode
"""Raises ``msgspec.DecodeError`` on anything that is not a message to the worker."""


def pack(message: ToChild | ToWorker) -> bytes:
    """Return the frame of a message. Raises ``ValueError`` when it would be too large."""
    body = _encoder.encode(message)
    if len(body) > MAX_BODY_BYTES:
        raise ValueError(f"a message of {len(body)} bytes is too large, the limit is {MAX_BODY_BYTES}")
    return _header.pack(len(body)) + body


def body_bytes(header: bytes) -> int:
    """Return the length of the body that follows this header. Raises ``ValueError`` when it is too large."""
    length: int = _header.unpack(header)[0]
    if length > MAX_BODY_BYTES:
        raise ValueError(f"a message of {length} bytes is too large, the limit is {MAX_BODY_BYTES}")
    return length
