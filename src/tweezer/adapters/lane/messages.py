"""The messages between a worker and a lane's process.

A frame is four bytes of length (big-endian) and a MessagePack body: one of the structs below, tagged with its name.
Nothing else is accepted in either direction. ``serial`` numbers the worker's requests; an answer has the number of its
request.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import msgspec

from tweezer.adapters.lane.jail import Jail
from tweezer.model.errors import FaultKind
from tweezer.model.messages import BatchWork, Fault, JobWork, Outcome, Steps

HEADER_BYTES = 4
MAX_BODY_BYTES = 256 << 20

_header = struct.Struct(">I")


class Start(msgspec.Struct, frozen=True, tag=True):
    """The first message: enter the jail, then load this backend. Answered, with serial 0, by ``Ready`` or
    ``ChildRefused``.

    backend: ``module:factory``, see :mod:`tweezer.adapters.lane.backend`. memo_mb: Memory for the evolved states that
    equal jobs share. progress_interval_s: The shortest time between two reports. arguments: Further arguments of the
    factory.
    jail: What the process may do.
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

    measured: The bitstrings that a machine measured. The job is not run then; its result is made from them.
    """

    serial: int
    job: JobWork
    measured: dict[str, int] | None = None


class Abort(msgspec.Struct, frozen=True, tag=True):
    """Stop the request with this number at its solver's next check. Ignored if it is not the current request."""

    serial: int


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The backend is imported.

    jail: The result of :func:`tweezer.adapters.lane.jail.enter`.
    """

    serial: int = 0
    jail: str = ""


class Prepared(msgspec.Struct, frozen=True, tag=True):
    """The batch is parsed and valid."""

    serial: int


class ChildRefused(msgspec.Struct, frozen=True, tag=True):
    """The request failed, for this reason."""

    serial: int
    kind: FaultKind
    fault: Fault


class Advanced(msgspec.Struct, frozen=True, tag=True):
    """The progress of the running job (0 to 1), and its steps as far as the backend knows them."""

    serial: int
    fraction: float
    steps: Steps | None = None


class RunFinished(msgspec.Struct, frozen=True, tag=True):
    """The job ended. The kind ``canceled`` means that it was aborted.

    evolutions: How many evolutions this process has solved since its start. Equal jobs share one.
    """

    serial: int
    outcome: Outcome
    evolutions: int


ToChild = Start | Prepare | Run | Abort
ToWorker = Ready | Prepared | ChildRefused | Advanced | RunFinished

_encoder = msgspec.msgpack.Encoder()

unpack_for_child: Callable[[bytes], ToChild] = msgspec.msgpack.Decoder(ToChild).decode
"""Decode a message to the child. Raises ``msgspec.DecodeError`` for anything else."""

unpack_for_worker: Callable[[bytes], ToWorker] = msgspec.msgpack.Decoder(ToWorker).decode
"""Decode a message to the worker. Raises ``msgspec.DecodeError`` for anything else."""


def pack(message: ToChild | ToWorker) -> bytes:
    """Return the frame of a message. Raises ``ValueError`` if it is too large."""
    body = _encoder.encode(message)
    if len(body) > MAX_BODY_BYTES:
        raise ValueError(f"message too large: {len(body)} bytes (at most {MAX_BODY_BYTES})")
    return _header.pack(len(body)) + body


def read_body_size(header: bytes) -> int:
    """Return the length of the body that follows this header. Raises ``ValueError`` if it is too large."""
    length: int = _header.unpack(header)[0]
    if length > MAX_BODY_BYTES:
        raise ValueError(f"message too large: {length} bytes (at most {MAX_BODY_BYTES})")
    return length
