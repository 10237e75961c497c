"""The frames between a worker and a lane's process."""

from __future__ import annotations

import msgspec
import pytest

from tweezer.adapters.lane.messages import (
    HEADER_BYTES,
    MAX_BODY_BYTES,
    Abort,
    Advanced,
    ChildRefused,
    Prepare,
    Run,
    RunFinished,
    Start,
    ToChild,
    ToWorker,
    pack,
    read_body_size,
    unpack_for_child,
    unpack_for_worker,
)
from tweezer.model.errors import FaultKind
from tweezer.model.ids import job_id, new_batch_id
from tweezer.model.messages import (
    BatchDoc,
    BatchWork,
    Fault,
    JobSpec,
    JobWork,
    Outcome,
    OutcomeKind,
    Provenance,
    Result,
)

BATCH_ID = new_batch_id()
TO_CHILD: list[ToChild] = [
    Start("module:factory", 64, 0.2),
    Prepare(1, BatchWork(BATCH_ID, BatchDoc(device="EMU_FREE", sequence="{}", backend_configuration="Infinity"))),
    Run(2, JobWork(job_id(BATCH_ID, 3), 3, JobSpec(runs=5, variables={"omega": [1.0, 2], "qubits": {"q0": 1}}), 9)),
    Abort(2),
]
TO_WORKER: list[ToWorker] = [
    ChildRefused(1, FaultKind.USER, Fault("user", "no", "sequence")),
    Advanced(2, 0.5),
    RunFinished(2, Outcome(OutcomeKind.DONE, Result({"01": 5}, "{}", Provenance("qutip", seed=9)), device_s=0.1), 4),
]


@pytest.mark.parametrize("message", TO_CHILD, ids=lambda message: type(message).__name__)
def test_messages_of_a_worker_arrive_unchanged(message: ToChild) -> None:
    frame = pack(message)
    assert read_body_size(frame[:HEADER_BYTES]) == len(frame) - HEADER_BYTES
    assert unpack_for_child(frame[HEADER_BYTES:]) == message


@pytest.mark.parametrize("message", TO_WORKER, ids=lambda message: type(message).__name__)
def test_messages_of_a_lane_arrive_unchanged(message: ToWorker) -> None:
    assert unpack_for_worker(pack(message)[HEADER_BYTES:]) == message


@pytest.mark.parametrize("message", TO_CHILD, ids=lambda message: type(message).__name__)
def test_a_worker_accepts_no_requests(message: ToChild) -> None:
    with pytest.raises(msgspec.DecodeError):
        unpack_for_worker(pack(message)[HEADER_BYTES:])


@pytest.mark.parametrize("junk", [b"", b"\xc1", b"\x80", msgspec.msgpack.encode({"type": "Eval", "code": "1"})])
def test_junk_is_refused(junk: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        unpack_for_child(junk)


def test_a_header_with_a_too_large_length_is_refused() -> None:
    with pytest.raises(ValueError, match="too large"):
        read_body_size((MAX_BODY_BYTES + 1).to_bytes(HEADER_BYTES, "big"))
