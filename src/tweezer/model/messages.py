"""What travels: between producers, Redis, workers and lane processes.

All are frozen msgspec structs. What is stored in Redis (``BatchDoc``, ``JobSpec``, ``Result``) is
MessagePack, versioned by the batch record's ``v``; new fields are appended with a default, so that old
records stay readable.
"""

from __future__ import annotations

import zlib
from enum import StrEnum
from typing import Any
from uuid import UUID

import msgspec

from tweezer.model.errors import FaultKind
from tweezer.model.lifecycle import Stage

RECORD_VERSION = 1
"""Version of the records in Redis. A worker leaves batches of a version that it does not know alone."""

MAX_JOBS_PER_CALL = 10_000
MAX_JOBS_PER_BATCH = 100_000
MAX_SETTLE_BYTES = 1 << 20


class Priority(StrEnum):
    """Where a batch stands among those of other projects; age beats it in the end."""

    HIGH = "HIGH"
    MEDIUM = "MEDIUM"
    LOW = "LOW"


class JobSpec(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """One job as its producer wrote it.

    runs: number of shots; None leaves it to ``backend_configuration``.
    variables: values of the sequence's variables by name (a number or a list of numbers), and
    ``qubits`` (qubit id → trap id) where the register is mappable.
    seed: of all random numbers of the job; None derives it from the job's id.
    sequence: a sequence of the job's own, instead of the batch's; excludes variables.
    parent_id: the job that this one repeats.
    runs_shown: where ``runs`` is None, the number that clients are shown: the shots of the configuration, or what an
    old client sent for ``runs`` without meaning it.
    """

    runs: int | None = None
    variables: dict[str, Any] = {}
    seed: int | None = None
    sequence: str | None = None
    parent_id: str | None = None
    runs_shown: int | None = None


class Limits(msgspec.Struct, frozen=True, array_like=True):
    """What a batch may use.

    job_timeout_s: wall time of one job on its lane.
    open_timeout_s: how long an open batch may be without work before it is TIMED_OUT.
    transient_retries: how often a job is tried again after a transient failure.
    """

    job_timeout_s: float = 3600.0
    open_timeout_s: float = 300.0
    transient_retries: int = 3


class BatchDoc(msgspec.Struct, frozen=True, array_like=True):
    """What never changes in a batch after its submit.

    sequence: Pulser's abstract representation (a JSON string); None when each job has its own.
    backend_configuration: Pulser's ``EmulationConfig`` as a JSON string, kept opaque (it may contain a
    bare ``Infinity``). configuration: the older dictionary of emulator options.
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


class Fault(msgspec.Struct, frozen=True):
    """Why a job or a batch failed, for its user. ``field`` names the input at fault where there is one."""

    code: str
    message: str
    field: str | None = None

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.field else self.message


class Provenance(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where a result comes from: what is needed to compute it again.

    backend: name of the emulator or machine. versions: package name → version (pulser, emulator,
    tweezer). specs_digest: SHA-256 of the device's specs in the sequence. configuration: the emulator's
    configuration as run. seed: of the job's random numbers. remote_id: of the job on the machine that ran it.
    server: the address of the other server that it was forwarded to.
    """

    backend: str
    versions: dict[str, str] = {}
    specs_digest: str | None = None
    configuration: str | None = None
    seed: int | None = None
    remote_id: str | None = None
    server: str | None = None


class Result(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a job measured.

    counter: bitstring → number of shots, bits in the register's qubit order; None when the
    configuration asked for no final bitstrings. serialised_results: ``Results.to_abstract_repr()`` of
    Pulser.
    """

    counter: dict[str, int] | None = None
    serialised_results: str | None = None
    provenance: Provenance | None = None


class ResultFile(msgspec.Struct, frozen=True, array_like=True):
    """Where a result is kept that is too large for Redis: a file of the results folder.

    name: relative to the folder. size: in bytes, sha256: of the file, which holds :func:`result_json`, gzipped.
    """

    name: str
    size: int
    sha256: bytes


class OutcomeKind(StrEnum):
    """How an execution ended; ``retry`` asks for another attempt, which the attempt limits may refuse."""

    DONE = "done"
    ERROR = "error"
    CANCELED = "canceled"
    RETRY = "retry"


class Outcome(msgspec.Struct, frozen=True):
    """What a lane made of one job. Durations in seconds. began: False of one that was canceled before any of it ran."""

    kind: OutcomeKind
    result: Result | None = None
    fault: Fault | None = None
    cause: FaultKind | None = None
    retry_in_s: float = 0.0
    preparation_s: float = 0.0
    device_s: float = 0.0
    began: bool = True


class Progress(msgspec.Struct, frozen=True):
    """How far a running job is; ``fraction`` from 0 to 1 where the emulator tells."""

    stage: Stage
    fraction: float | None = None


class BatchWork(msgspec.Struct, frozen=True):
    """A batch as an adapter gets it."""

    batch_id: UUID
    doc: BatchDoc


class JobWork(msgspec.Struct, frozen=True):
    """A job as an adapter gets it. ``attempt`` counts from 1."""

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
    """The doc or the job as MessagePack."""
    return _encoder.encode(record)


def encode_doc(doc: BatchDoc) -> bytes:
    """The doc as Redis holds it."""
    return compress(pack(doc))


def decode_doc(data: bytes) -> BatchDoc:
    return _doc_decoder.decode(_decompress(data))


def encode_spec(spec: JobSpec) -> bytes:
    """The job as Redis holds it."""
    return compress(pack(spec))


def decode_spec(data: bytes) -> JobSpec:
    return _spec_decoder.decode(_decompress(data))


def compress(packed: bytes) -> bytes:
    """Compress a packed BatchDoc or JobSpec if that makes it shorter: sequences shrink to about a tenth.

    The first byte of a compressed one is 1; of another it starts an array, as in all records of older releases.
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
    """The result, packed: one byte that says whether the rest is compressed, then MessagePack."""
    packed = _encoder.encode(result)
    if len(packed) > _COMPRESS_ABOVE:
        return _ZLIB + zlib.compress(packed, _LEVEL)
    return _RAW + packed


def decode_result(data: bytes) -> Result:
    """The result that is packed here; not for one that is in a file, see :func:`result_file`."""
    kind, body = data[:1], data[1:]
    assert kind != _FILE, "the result is in a file: Results.unpack reads it"
    return _result_decoder.decode(zlib.decompress(body) if kind == _ZLIB else body)


def encode_result_file(file: ResultFile) -> bytes:
    """What stands for the packed result when that is in a file."""
    return _FILE + _encoder.encode(file)


def result_file(data: bytes) -> ResultFile | None:
    """The file that a packed result is in; None when it is here."""
    return _result_file_decoder.decode(data[1:]) if data[:1] == _FILE else None


def stored_size(packed: bytes) -> int:
    """How many bytes a packed result takes, here or in its file: what the quota of its project counts."""
    file = result_file(packed)
    return len(packed) if file is None else file.size


def result_json(result: Result) -> bytes:
    """The result as a JSON object: as the API answers it, and as files hold it."""
    return msgspec.json.encode({"counter": None} | msgspec.to_builtins(result))


def decode_result_json(text: bytes) -> Result:
    return msgspec.json.decode(text, type=Result)


def encode_fault(fault: Fault) -> bytes:
    """JSON, not MessagePack: scripts write faults too."""
    return msgspec.json.encode(fault)


def decode_fault(data: bytes) -> Fault:
    return msgspec.json.decode(data, type=Fault)


def derived_seed(job: UUID) -> int:
    """The seed (32 bits) of a job that was given none: the same each time the job is run."""
    return zlib.crc32(job.bytes)
