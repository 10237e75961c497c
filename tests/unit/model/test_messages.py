"""Messages and records: round trips, and that older and newer ones remain readable."""

from __future__ import annotations

import json
import random
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tweezer.model.ids import job_id, new_batch_id
from tweezer.model.lifecycle import Stage
from tweezer.model.messages import (
    BatchDoc,
    Fault,
    JobSpec,
    Limits,
    Progress,
    Provenance,
    Result,
    Steps,
    compress,
    decode_doc,
    decode_fault,
    decode_result,
    decode_spec,
    derived_seed,
    encode_doc,
    encode_fault,
    encode_result,
    encode_spec,
    fit_progress,
    pack,
    pack_steps,
    read_steps,
    shorten_fault,
)

finite = st.floats(allow_nan=False, allow_infinity=False)
values = st.one_of(finite, st.integers(-(2**63), 2**63 - 1), st.lists(finite, max_size=4))
specs = st.builds(
    JobSpec,
    runs=st.none() | st.integers(1, 10**6),
    variables=st.dictionaries(st.text(max_size=8), values, max_size=4),
    seed=st.none() | st.integers(0, 2**32 - 1),
    sequence=st.none() | st.text(max_size=20),
)
docs = st.builds(
    BatchDoc,
    device=st.text(min_size=1, max_size=10),
    sequence=st.none() | st.text(max_size=50),
    name=st.none() | st.text(max_size=10),
    tags=st.lists(st.text(max_size=5), max_size=3).map(tuple),
    configuration=st.none() | st.dictionaries(st.text(max_size=5), values, max_size=3),
    limits=st.builds(Limits, job_timeout_s=finite, open_timeout_s=finite, transient_retries=st.integers(0, 20)),
)
results = st.builds(
    Result,
    counter=st.none() | st.dictionaries(st.text("01", min_size=1, max_size=8), st.integers(1, 10**6), max_size=5),
    serialised_results=st.none() | st.text(max_size=3000),
    provenance=st.none() | st.builds(Provenance, backend=st.text(max_size=5), seed=st.none() | st.integers(0, 99)),
)


@given(specs)
def test_a_job_reads_back_as_it_was_written(spec: JobSpec) -> None:
    assert decode_spec(encode_spec(spec)) == spec


@given(docs)
def test_a_batch_reads_back_as_it_was_written(doc: BatchDoc) -> None:
    assert decode_doc(encode_doc(doc)) == doc


@given(results)
def test_a_result_reads_back_as_it_was_written(result: Result) -> None:
    assert decode_result(encode_result(result)) == result


@pytest.mark.parametrize("fault", [Fault("user", 'a "quote",\na line, ü', "jobs[0].x"), Fault("lost", "")])
def test_a_fault_reads_back_as_it_was_written(fault: Fault) -> None:
    assert decode_fault(encode_fault(fault)) == fault


def test_a_large_result_is_compressed_and_a_small_one_is_not() -> None:
    small = Result(counter={"01": 3})
    large = Result(serialised_results="0" * 100_000)
    assert encode_result(small)[:1] == b"\x00"
    assert encode_result(large)[:1] == b"\x01"
    assert len(encode_result(large)) < 2000
    assert decode_result(encode_result(large)) == large


def test_a_large_batch_or_job_is_compressed_and_reads_back_as_it_was_written() -> None:
    sequence = json.dumps([{"x": index * 1.37} for index in range(1000)])
    doc, spec = BatchDoc(device="EMU", sequence=sequence), JobSpec(runs=5, sequence=sequence)
    assert len(encode_doc(doc)) < len(sequence) / 2
    assert len(encode_spec(spec)) < len(sequence) / 2
    assert (decode_doc(encode_doc(doc)), decode_spec(encode_spec(spec))) == (doc, spec)


def test_large_records_of_the_previous_release_are_read() -> None:
    doc, spec = BatchDoc(device="EMU", sequence="x" * 5000), JobSpec(runs=5, sequence="x" * 5000)
    assert decode_doc(msgspec.msgpack.encode(doc)) == doc
    assert decode_spec(msgspec.msgpack.encode(spec)) == spec


def test_incompressible_records_are_stored_uncompressed() -> None:
    noise = random.Random(1).randbytes(4000)
    assert compress(noise) is noise


@pytest.mark.parametrize(
    ("older", "expected"),
    [([], JobSpec()), ([5], JobSpec(runs=5)), ([5, {"t": 1.0}], JobSpec(runs=5, variables={"t": 1.0}))],
)
def test_a_job_of_an_older_version_has_the_defaults_of_the_fields_it_lacks(older: list[Any], expected: JobSpec) -> None:
    assert decode_spec(msgspec.msgpack.encode(older)) == expected


def test_a_batch_of_an_older_version_has_the_defaults_of_the_fields_it_lacks() -> None:
    assert decode_doc(msgspec.msgpack.encode(["EMU"])) == BatchDoc(device="EMU")


def test_fields_appended_by_a_newer_version_are_ignored() -> None:
    spec = JobSpec(runs=5, variables={"t": 1.0}, seed=3, sequence="s")
    appended = [*msgspec.msgpack.decode(pack(spec)), "new", {"field": 1}]
    assert decode_spec(msgspec.msgpack.encode(appended)) == spec

    doc = BatchDoc(device="EMU", sequence="s", limits=Limits(1, 2, 3))
    fields = msgspec.msgpack.decode(pack(doc))
    limits = fields.index([1, 2, 3])
    fields[limits] = [1, 2, 3, "new"]
    assert decode_doc(msgspec.msgpack.encode([*fields, "new"])) == doc


def test_fields_added_to_a_result_by_a_newer_version_are_ignored() -> None:
    newer = msgspec.msgpack.encode({"counter": {"0": 1}, "new": [1, 2]})
    assert decode_result(b"\x00" + newer) == Result(counter={"0": 1})
    assert decode_fault(b'{"code": "user", "message": "m", "new": 1}') == Fault("user", "m")


def test_a_job_with_defaults_takes_a_few_bytes() -> None:
    assert len(encode_spec(JobSpec(runs=100, variables={"omega": 1.5, "t": 2.5}))) < 40


def test_bytes_that_are_not_a_record_are_refused() -> None:
    for broken in (b"\xc1", b"\x01", b"\x01broken", encode_spec(JobSpec(sequence="x" * 5000))[:-9]):
        with pytest.raises(msgspec.DecodeError):
            decode_spec(broken)
    with pytest.raises(msgspec.ValidationError):
        decode_doc(msgspec.msgpack.encode([]))
    with pytest.raises(msgspec.ValidationError):
        decode_spec(msgspec.msgpack.encode(["many"]))


def test_messages_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        JobSpec(runs=1).runs = 2  # type: ignore[misc]


def test_a_fault_begins_with_its_field() -> None:
    assert str(Fault("user", "is missing", "jobs[0].runs")) == "jobs[0].runs: is missing"
    assert str(Fault("lost", "the worker is gone")) == "the worker is gone"


def test_a_derived_seed_is_the_same_each_time_and_differs_between_jobs() -> None:
    batch_id = new_batch_id()
    seeds = [derived_seed(job_id(batch_id, index)) for index in range(1000)]
    assert seeds == [derived_seed(UUID(int=batch_id.int + index)) for index in range(1000)]
    assert len(set(seeds)) == 1000
    assert all(0 <= seed < 2**32 for seed in seeds)


@pytest.mark.parametrize(
    ("record", "length"),
    [
        (JobSpec(), 1),
        (JobSpec(runs=100), 2),
        (JobSpec(runs=100, runs_shown=192), 8),
        (JobSpec(runs=192, variables={"a": 0.5}), 15),
        (BatchDoc("D"), 3),
        (BatchDoc("D", limits=Limits(3600, 300, 3)), 17),  # whole numbers are written differently
        (BatchDoc("D", tags=("a",)), 8),
        (BatchDoc("D", parent_id="\xc0"), 33),
    ],
)
def test_stored_records_leave_out_trailing_defaults(record: BatchDoc | JobSpec, length: int) -> None:
    stored = encode_doc(record) if isinstance(record, BatchDoc) else encode_spec(record)
    assert len(stored) == length
    assert (decode_doc if isinstance(record, BatchDoc) else decode_spec)(stored) == record


def test_the_defaults_of_stored_records_do_not_change() -> None:
    """Stored records leave them out, so a change would change what is stored."""
    assert decode_spec(b"\x90") == JobSpec(None, {}, None, None, None, None)
    assert decode_doc(b"\x91\xa1D") == BatchDoc(
        "D", None, None, (), None, None, None, Limits(3600.0, 300.0, 3), None, None, None, None
    )


def fitted(steps: Steps, fraction: float | None = None) -> Progress:
    return fit_progress(Progress(Stage.ON_DEVICE, fraction, steps))


@pytest.mark.parametrize(
    "steps", [Steps(3, 2), Steps(-1, 2), Steps(0, 0), Steps(1, None), Steps(None, 4), Steps(1, 10**15)]
)
def test_numbers_of_steps_that_cannot_be_are_left_out(steps: Steps) -> None:
    assert fitted(steps) == Progress(Stage.ON_DEVICE)
    assert fitted(msgspec.structs.replace(steps, message="warm")).steps == Steps(message="warm")


@pytest.mark.parametrize("fraction", [float("nan"), float("inf"), float("-inf")])
def test_a_fraction_must_be_finite(fraction: float) -> None:
    assert fitted(Steps(), fraction) == Progress(Stage.ON_DEVICE)


def test_a_fraction_is_between_0_and_1_and_follows_from_the_steps() -> None:
    assert fitted(Steps(), 1.5).fraction == 1.0
    assert fitted(Steps(), -1).fraction == 0.0
    assert fitted(Steps(1, 4)).fraction == 0.25
    assert fitted(Steps(1, 4), 0.5).fraction == 0.5


def test_a_message_is_one_line_of_at_most_200_characters() -> None:
    assert fitted(Steps(message="two\nlines\x1b[31m\u202e \u2028 end\ud800")).steps == Steps(
        message="two lines [31m end"
    )
    long = fitted(Steps(message="é" * 500)).steps
    assert long == Steps(message="é" * 200)
    assert fitted(Steps(message=" \n\t")).steps is None


@given(st.text(max_size=300), st.integers(-3, 10), st.integers(-3, 10))
def test_steps_are_two_words_for_scripts_and_are_read_again(message: str, done: int, total: int) -> None:
    steps = fitted(Steps(done, total, message)).steps
    numbers, text = pack_steps(steps)
    assert len(f"{numbers} {text}".split()) == 2
    assert len(text) <= 200
    assert read_steps(numbers, text) == steps


def test_the_fault_of_a_retried_attempt_is_cut() -> None:
    short, long = Fault("transient", "it broke"), Fault("transient", "x" * 5000, "jobs[0]")
    assert shorten_fault(short) is short
    assert shorten_fault(long) == Fault("transient", f"{'x' * 1999}…", "jobs[0]")
