"""Messages between producers, Redis, workers and lane processes, as frozen msgspec structs.

Records in Redis (``BatchDoc``, ``JobSpec``, ``Result``) are MessagePack. Their version is the batch record's ``v``.
New fields are appended with a default, so that old records stay readable.
"""

from __future__ import annotations

import math
import zlib
from enum import StrEnum
from typing import Any
from uuid import UUID

import msgspec

from tweezer.model.errors import FaultKind
from tweezer.model.lifecycle import Stage
from tweezer.model.rules import Rules
from tweezer.model.summaries import abridge, describe_counter

RECORD_VERSION = 2
"""Version of the records in Redis. A worker does not touch batches of an unknown version."""

MAX_JOBS_PER_CALL = 10_000
MAX_JOBS_PER_BATCH = 100_000
MAX_SETTLE_BYTES = 1 << 20


class Priority(StrEnum):
    """The priority of a batch in the queue of its device.

    A lower priority is a constant delay in the queue, so an old batch of low priority eventually precedes new ones of
    higher priority. Upper and lower case are the same: ``Priority("high")``.
    """

    HIGH = "HIGH"
    MEDIUM = "MEDIUM"
    LOW = "LOW"

    @classmethod
    def _missing_(cls, value: object) -> Priority | None:
        return cls.__members__.get(value.upper()) if isinstance(value, str) else None


class JobSpec(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """A job as its producer submits it.

    Attributes:
        runs: Number of shots; None uses the number in ``backend_configuration``.
        variables: Values of the sequence's variables by name: a number, or a list of as many numbers as the variable
            declares, in the units of the sequence. With a mappable register, ``qubits`` maps qubit ids to trap ids.
        seed: Seed of all random numbers of the job, 0 to 2**32 - 1; None derives it from the job's id.
        sequence: The job's own serialised sequence, instead of the batch's; it excludes ``variables``.
        parent_id: Id of the job that this one repeats.
        runs_shown: The number of shots to show to clients where ``runs`` is None: that of the configuration, or the
            ``runs`` that an old client sent although the configuration takes precedence.
    """

    runs: int | None = None
    variables: dict[str, Any] = {}
    seed: int | None = None
    sequence: str | None = None
    parent_id: str | None = None
    runs_shown: int | None = None

    def __repr__(self) -> str:
        return abridge(self, "Job")


class Limits(msgspec.Struct, frozen=True, array_like=True):
    """The limits of a batch.

    Attributes:
        job_timeout_s: Maximum wall time of one job on its lane, in seconds.
        open_timeout_s: How long an open batch may have no work before it is TIMED_OUT, in seconds.
        transient_retries: How often a job is retried after a transient failure.
    """

    job_timeout_s: float = 3600.0
    open_timeout_s: float = 300.0
    transient_retries: int = 3


class BatchDoc(msgspec.Struct, frozen=True, array_like=True):
    """The part of a batch that does not change after it is submitted.

    Attributes:
        device: Name of the device.
        sequence: Pulser's abstract representation, a JSON string; None if each job has its own sequence.
        backend_configuration: Pulser's ``EmulationConfig`` as a JSON string. It may contain a bare ``Infinity``.
        configuration: The older dictionary of emulator options.
        user: Id of the user who submitted it, if known.
        parent_id: Id of the batch that this one repeats.
        trace: The context of the trace that the submit belongs to (W3C ``traceparent``), if it belongs to one.
        rules: The rules of the batch; None without any.
    """

    device: str
    sequence: str | None = None
    name: str | None = None
    tags: tuple[str, ...] = ()
    webhook: str | None = None
    backend_configuration: str | None = None
    configuration: dict[str, Any] | None = None
    limits: Limits = Limits()
    user: str | None = None
    parent_id: str | None = None
    trace: str | None = None
    rules: Rules | None = None

    def __repr__(self) -> str:
        """Return the doc without the URL of the webhook, which may contain a secret."""
        return abridge(self, "BatchDoc", hidden=("sequence", "webhook", "backend_configuration"))


class Fault(msgspec.Struct, frozen=True):
    """Why a job or a batch failed.

    Attributes:
        code: A stable identifier of the error, for programs.
        message: What is wrong and what to do, for people.
        field: The input that caused the failure; None if it is not one field.
    """

    code: str
    message: str
    field: str | None = None

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.field else self.message


class Provenance(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a result was computed: the information that is needed to compute it again.

    Attributes:
        backend: Name of the emulator or machine.
        versions: Versions by package name (pulser, the emulator, tweezer).
        specs_digest: SHA-256 of the device's specs in the sequence, in hexadecimal digits.
        configuration: The configuration that the emulator ran with.
        seed: Seed of the job's random numbers.
        remote_id: Id of the job on the machine that ran it.
        server: Address of the server that the job was forwarded to.
    """

    backend: str
    versions: dict[str, str] = {}
    specs_digest: str | None = None
    configuration: str | None = None
    seed: int | None = None
    remote_id: str | None = None
    server: str | None = None


class Result(msgspec.Struct, frozen=True, omit_defaults=True):
    """The measurements of a job.

    Attributes:
        counter: Number of shots by bitstring, such as ``{"01": 60, "10": 40}``. The bits are in the order of the
            register's qubits. None if the configuration requests no final bitstrings.
        serialised_results: Pulser's ``Results.to_abstract_repr()``, a JSON string; None without any.
        provenance: How the result was computed.
    """

    counter: dict[str, int] | None = None
    serialised_results: str | None = None
    provenance: Provenance | None = None

    def __repr__(self) -> str:
        return f"<result: {'no bitstrings' if self.counter is None else describe_counter(self.counter)}>"


class ResultFile(msgspec.Struct, frozen=True, array_like=True):
    """Reference to a file in the results folder, for a result that is too large for Redis.

    name: path relative to the folder. size, sha256: size in bytes and digest of the file, which contains the gzipped
    :func:`result_json`.
    """

    name: str
    size: int
    sha256: bytes


class OutcomeKind(StrEnum):
    """How an execution ended; ``retry`` requests another attempt, unless a limit of attempts is reached."""

    DONE = "done"
    ERROR = "error"
    CANCELED = "canceled"
    RETRY = "retry"


class Outcome(msgspec.Struct, frozen=True):
    """The outcome of one job on a lane. Durations in seconds. began: False if it was canceled before it ran."""

    kind: OutcomeKind
    result: Result | None = None
    fault: Fault | None = None
    cause: FaultKind | None = None
    retry_in_s: float = 0.0
    preparation_s: float = 0.0
    device_s: float = 0.0
    began: bool = True


class Steps(msgspec.Struct, frozen=True):
    """The progress of a running job in the words of what runs it.

    Attributes:
        done: Number of finished steps. What a step is depends on the emulator or the machine.
        total: Number of all steps.
        message: What it does, for people, on one line.
    """

    done: int | None = None
    total: int | None = None
    message: str | None = None

    def __str__(self) -> str:
        count = "" if self.total is None else f"{self.done}/{self.total}"
        return f"{count}: {self.message}" if count and self.message else count or self.message or ""


class Progress(msgspec.Struct, frozen=True):
    """The progress of a running job.

    fraction: 0 to 1; None if it is not known, or follows from the steps. steps: None if they are not known.
    """

    stage: Stage
    fraction: float | None = None
    steps: Steps | None = None


MAX_PROGRESS_LENGTH = 200
"""The largest number of characters of the message of a job's progress."""

MAX_STEPS = 10**14
"""The largest number of steps of a job."""

_SPACE = "␠"  # in a message, where words are separated by spaces


def fit_progress(progress: Progress) -> Progress:
    """Return the progress with valid values only, because it may be an adapter's or a machine's.

    Numbers that cannot be are left out. The message is cut, and put on one line without control characters.
    """
    fraction, steps = progress.fraction, progress.steps
    if fraction is not None:
        fraction = min(max(fraction, 0.0), 1.0) if math.isfinite(fraction) else None
    if steps is not None:
        done, total = steps.done, steps.total
        if done is None or total is None or not (0 <= done <= total <= MAX_STEPS and total):
            done = total = None
        elif fraction is None:
            fraction = done / total
        text = "".join(it if it.isprintable() else " " for it in steps.message or "")
        message = " ".join(text.replace(_SPACE, " ").split())[:MAX_PROGRESS_LENGTH].strip()
        steps = Steps(done, total, message if message not in ("", "-") else None)
    return Progress(progress.stage, fraction, None if steps == Steps() else steps)


def pack_steps(steps: Steps | None) -> tuple[str, str]:
    """Return the steps as two words: their numbers, and the message. A missing value is ``-``."""
    if steps is None:
        return "-", "-"
    return "-" if steps.total is None else f"{steps.done}/{steps.total}", (steps.message or "-").replace(" ", _SPACE)


def read_steps(numbers: str = "-", message: str = "-") -> Steps | None:
    """Return the steps of two words; None if both are missing. Raises ValueError."""
    if numbers == message == "-":
        return None
    done, total = (None, None) if numbers == "-" else map(int, numbers.split("/"))
    return Steps(done, total, None if message == "-" else message.replace(_SPACE, " "))


class BatchWork(msgspec.Struct, frozen=True):
    """A batch as an adapter receives it."""

    batch_id: UUID
    doc: BatchDoc


class JobWork(msgspec.Struct, frozen=True):
    """A job as an adapter receives it. ``attempt`` counts from 1."""

    job_id: UUID
    index: int
    spec: JobSpec
    seed: int
    attempt: int = 1


_encoder = msgspec.msgpack.Encoder(enc_hook=None)
_doc_decoder = msgspec.msgpack.Decoder(BatchDoc)
_spec_decoder = msgspec.msgpack.Decoder(JobSpec)
_result_decoder = msgspec.msgpack.Decoder(Result)
_result_file_decoder = msgspec.msgpack.Decoder(ResultFile)

_COMPRESS_ABOVE = 1024
_LEVEL = 1  # of zlib: three times as fast as its default, for a fifth more bytes
_RAW, _ZLIB, _FILE = b"\x00", b"\x01", b"\x02"


def pack(record: BatchDoc | JobSpec) -> bytes:
    """Encode a doc or a job as MessagePack."""
    return _encoder.encode(record)


def pack_lasting(doc: BatchDoc) -> bytes:
    """Encode a doc without its trace: a repeated call has another trace. A doc without rules has its form of 0.1.0."""
    *lasting, _, rules = msgspec.structs.astuple(doc)
    return _encoder.encode(lasting if rules is None else [*lasting, rules])


_SHORTENED: dict[type[BatchDoc | JobSpec], list[tuple[str, Any, bytes]]] = {
    type(blank): [
        (field.name, getattr(blank, field.name), _encoder.encode(getattr(blank, field.name)))
        for field in reversed(msgspec.structs.fields(blank))
        if not field.required
    ]
    for blank in (BatchDoc(device=""), JobSpec())
}
"""The fields with a default by type, last first: name, default, and the packed default."""


def shorten(record: BatchDoc | JobSpec, packed: bytes) -> bytes:
    """Leave out the last fields of a packed record as far as they have their default, which decoding adds again.

    These defaults must therefore never change.
    """
    end, omitted = len(packed), 0
    for name, default, written in _SHORTENED[type(record)]:
        if getattr(record, name) != default or not packed.endswith(written, 0, end):
            break
        end -= len(written)
        omitted += 1
    return bytes((packed[0] - omitted,)) + packed[1:end]


def encode_doc(doc: BatchDoc) -> bytes:
    """Encode a doc for Redis."""
    return compress(shorten(doc, pack(doc)))


def decode_doc(data: bytes) -> BatchDoc:
    return _doc_decoder.decode(_decompress(data))


def encode_spec(spec: JobSpec) -> bytes:
    """Encode a job for Redis."""
    return compress(shorten(spec, pack(spec)))


def decode_spec(data: bytes) -> JobSpec:
    return _spec_decoder.decode(_decompress(data))


def compress(packed: bytes) -> bytes:
    """Compress a packed BatchDoc or JobSpec if that makes it shorter: sequences shrink to about a tenth.

    Compressed data starts with the byte 1; other data starts with a MessagePack array, as in older releases.
    """
    if len(packed) > _COMPRESS_ABOVE:
        compressed = _ZLIB + zlib.compress(packed, _LEVEL)
        if len(compressed) < len(packed):
            return compressed
    return packed


def _decompress(data: bytes) -> bytes:
    try:
        return zlib.decompress(data[1:]) if data[:1] == _ZLIB else data
    except zlib.error as error:
        raise msgspec.DecodeError(str(error)) from error


def encode_result(result: Result) -> bytes:
    """Pack a result: one byte that shows whether the rest is compressed, then MessagePack."""
    packed = _encoder.encode(result)
    if len(packed) > _COMPRESS_ABOVE:
        return _ZLIB + zlib.compress(packed, _LEVEL)
    return _RAW + packed


def decode_result(data: bytes) -> Result:
    """Unpack a result that is not in a file, see :func:`result_file`."""
    kind, body = data[:1], data[1:]
    assert kind != _FILE, "the result is in a file; use Results.unpack"
    return _result_decoder.decode(zlib.decompress(body) if kind == _ZLIB else body)


def encode_result_file(file: ResultFile) -> bytes:
    """Encode the reference that replaces a packed result which is in a file."""
    return _FILE + _encoder.encode(file)


def result_file(data: bytes) -> ResultFile | None:
    """Return the reference in a packed result; None if the result is not in a file."""
    return _result_file_decoder.decode(data[1:]) if data[:1] == _FILE else None


def stored_size(packed: bytes) -> int:
    """Return the size of a packed result or of its file, in bytes, which counts towards its project's quota."""
    file = result_file(packed)
    return len(packed) if file is None else file.size


def result_json(result: Result) -> bytes:
    """Encode a result as a JSON object, the format of API responses and of result files."""
    return msgspec.json.encode({"counter": None} | msgspec.to_builtins(result))


def decode_result_json(text: bytes) -> Result:
    return msgspec.json.decode(text, type=Result)


MAX_RETURN_LENGTH = 2000
"""The largest number of characters of the message of a failure after which a job is tried again."""


def shorten_fault(fault: Fault) -> Fault:
    """Cut the message of a failure after which a job is tried again: it is stored with its event."""
    if len(fault.message) <= MAX_RETURN_LENGTH:
        return fault
    return msgspec.structs.replace(fault, message=f"{fault.message[: MAX_RETURN_LENGTH - 1]}…")


def encode_fault(fault: Fault) -> bytes:
    """Encode a fault as JSON, not MessagePack, because scripts write faults too."""
    return msgspec.json.encode(fault)


def decode_fault(data: bytes) -> Fault:
    return msgspec.json.decode(data, type=Fault)


def derived_seed(job: UUID) -> int:
    """Return the 32-bit seed of a job without one; it is the same in each attempt."""
    return zlib.crc32(job.bytes)
