"""The reprs of records: one line, what a person wants to know, no sequence and no secret."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.records import BATCH_ID, make_batch, make_job

from tweezer.client import Finished
from tweezer.model.errors import ResultUnavailable
from tweezer.model.ids import short_id
from tweezer.model.lifecycle import BatchStatus, JobStatus, Stage
from tweezer.model.messages import BatchDoc, Fault, JobSpec, Limits, Priority, Result
from tweezer.model.summaries import cut, cut_middle, describe_counter, describe_values, format_count, format_duration
from tweezer.store.connection import Connect
from tweezer.store.producers import Submission

SEQUENCE = '{"version": "1", "name": "' + "pulse" * 1000 + '"}'
SECRET = "hunter2"
HOSTILE = "a\nb\x1b[31m\u202e\ud800" + "x" * 500


def test_a_batch_shows_its_status_and_its_jobs() -> None:
    batch = make_batch({JobStatus.DONE: 2, JobStatus.ERROR: 1}, doc=BatchDoc("EMU_FREE", SEQUENCE, name="scan"))
    assert repr(batch) == f"<batch {short_id(BATCH_ID)} DONE on EMU_FREE, 3 jobs: 2 DONE, 1 ERROR, 'scan'>"
    failed = make_batch({JobStatus.ERROR: 1}, status=BatchStatus.ERROR, fault=Fault("user", "is too long", "sequence"))
    assert repr(failed) == f"<batch {short_id(BATCH_ID)} ERROR on EMU_FREE, 1 job: 1 ERROR: sequence: is too long>"


@pytest.mark.parametrize(
    ("job", "expected"),
    [
        (make_job(3), "<job 3 DONE omega=6.5, 500 runs>"),
        (make_job(spec=JobSpec()), "<job 0 DONE>"),
        (make_job(spec=JobSpec(runs_shown=1)), "<job 0 DONE 1 run>"),
        (
            make_job(status=JobStatus.RUNNING, stage=Stage.ON_DEVICE, progress=0.4),
            "<job 0 RUNNING omega=6.5, 500 runs, on_device 40%>",
        ),
        (
            make_job(status=JobStatus.ERROR, faults=(Fault("user", "is too long", "sequence"),)),
            "<job 0 ERROR omega=6.5, 500 runs, sequence: is too long>",
        ),
    ],
)
def test_a_job_shows_its_status_and_its_values(job: Any, expected: str) -> None:
    assert repr(job) == expected


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (Result({"101101": 105, "010010": 395}, SEQUENCE), "<job 3 DONE omega=6.5, 500 shots, 010010 79%>"),
        (Result({"01": 1}), "<job 3 DONE omega=6.5, 1 shot, 01 100%>"),
        (Result({}), "<job 3 DONE omega=6.5, 0 shots>"),
        (Result(None, SEQUENCE), "<job 3 DONE omega=6.5, no bitstrings>"),
        (None, "<job 3 DONE omega=6.5>"),
        (ResultUnavailable("the file is missing"), "<job 3 DONE omega=6.5, the file is missing>"),
    ],
)
def test_a_job_with_a_result_shows_the_most_frequent_bitstring(result: Any, expected: str) -> None:
    assert repr(Finished.of(make_job(3), result)) == expected


def test_what_is_submitted_is_shown_without_long_texts() -> None:
    assert repr(JobSpec(runs=5, variables={"omega": 6.5, "phases": [0, 1.5]})) == (
        "Job(runs=5, variables={'omega': 6.5, 'phases': [0, 1.5]})"
    )
    assert repr(JobSpec()) == "Job()"
    assert len(repr(JobSpec(runs=5, sequence=SEQUENCE, variables={"x": list(range(10_000))}))) < 250
    assert repr(JobSpec(runs=10**5000, variables={"x": 10**5000, "y": {"z": [10**5000]}})) == (
        "Job(runs=a whole number of 16610 bits, variables={'x': a whole number of 16610 bits, 'y': a dict})"
    )
    assert repr(Limits(job_timeout_s=5)).startswith("Limits(")
    assert repr(Result({"01": 3}, SEQUENCE)) == "<result: 3 shots, 01 100%>"


def test_no_repr_has_a_secret_or_a_second_line() -> None:
    url = f"https://hooks.example/x?token={SECRET}"
    doc = BatchDoc(HOSTILE, SEQUENCE, name=HOSTILE, webhook=url, backend_configuration=SEQUENCE)
    fault = Fault("user", HOSTILE, HOSTILE)
    for thing in (
        doc,
        Connect(f"redis://:{SECRET}@host"),
        Submission(SEQUENCE, [JobSpec(sequence=SEQUENCE)] * 1000, HOSTILE, webhook=url, priority=Priority.HIGH),
        make_batch(doc=doc, fault=fault),
        make_job(spec=JobSpec(variables={HOSTILE: HOSTILE, "b": {HOSTILE: [HOSTILE] * 100}}), faults=(fault,) * 9),
        Result({HOSTILE: 3}),
        Finished.of(make_job(), ResultUnavailable(HOSTILE)),
    ):
        text = repr(thing)
        assert text.isprintable(), text
        assert SECRET not in text
        assert len(text) < 500, text


@given(st.text(max_size=200), st.integers(3, 80))
def test_a_cut_text_is_on_one_line_and_names_what_it_begins_with(text: str, length: int) -> None:
    assert cut(text, length).isprintable()
    assert cut_middle(text, length).isprintable()
    if text.isprintable():
        assert len(cut(text, length)) <= length
        assert len(cut_middle(text, length)) <= length
        assert cut(text, length)[: length - 1] == text[: length - 1]


@given(st.dictionaries(st.text("01", min_size=4, max_size=4), st.integers(1, 1000), min_size=1))
def test_the_most_frequent_bitstring_is_the_first_of_equal_ones(counter: dict[str, int]) -> None:
    most = max(counter.values())
    best = min(bits for bits, count in counter.items() if count == most)
    assert f", {best} " in describe_counter(counter)


def test_values_and_durations_are_brief() -> None:
    assert describe_values({"omega": 1 / 3, "n": 4, "phases": [1e-9, 2]}) == "omega=0.333333 n=4 phases=[1e-09, 2]"
    assert [
        format_duration(seconds) for seconds in (0, 0.0001, 0.04, 0.0999, 0.43, 12.4, 60, 185, 7800, 86_400, 273_600)
    ] == [
        *("0.0 s", "1 ms", "40 ms", "0.1 s", "0.4 s", "12 s", "1 min", "3 min 5 s", "2 h 10 min", "1 d", "3 d 4 h"),
    ]


def test_a_count_has_the_right_plural() -> None:
    shown = [format_count(number, noun) for number, noun in ((1, "job"), (0, "job"), (1, "batch"), (2, "batch"))]
    assert shown == ["1 job", "0 jobs", "1 batch", "2 batches"]
