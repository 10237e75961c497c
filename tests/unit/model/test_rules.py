"""The rules of a batch: their stored form, and the error for each invalid value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tweezer.model.errors import InvalidInput
from tweezer.model.messages import BatchDoc, Limits, decode_doc, encode_doc, pack, pack_lasting
from tweezer.model.rules import MAX_DEPENDENCIES, Dependency, OnFailures, Rules, When, check_rules, check_start
from tweezer.store.producers import Submission

FIRST, SECOND = UUID(int=1 << 64), UUID(int=2 << 64)
ALL = Rules(60, 3600.0, 3, OnFailures.CANCEL, 10, 0, (Dependency(FIRST), Dependency(SECOND, When.ENDED)))
SECONDS = st.none() | st.floats(min_value=0.001, max_value=86_400)
COUNTS = st.none() | st.integers(1, 1000)


def make_doc(rules: Rules | None = None, *, trace: str | None = None) -> BatchDoc:
    limits = Limits(transient_retries=1)
    return BatchDoc("EMU", "{}", name="a sweep", tags=("x",), limits=limits, user="u", trace=trace, rules=rules)


@given(
    st.builds(
        Rules,
        schedule_threshold_s=SECONDS,
        queue_timeout_s=SECONDS,
        failure_threshold=COUNTS,
        on_failures=st.sampled_from(OnFailures),
        total_retries=COUNTS,
        keep_s=SECONDS,
        depends_on=st.lists(st.builds(Dependency, st.uuids(), st.sampled_from(When)), max_size=3).map(tuple),
    )
)
def test_rules_read_back_as_they_were_written(rules: Rules) -> None:
    assert decode_doc(encode_doc(make_doc(rules))) == make_doc(rules)


def test_a_record_without_rules_keeps_its_bytes_and_is_read() -> None:
    written = bytes.fromhex(
        "9aa3454d55a27b7da76120737765657091a178c0c0c093cb40ac200000000000cb4072c0000000000001a175c0"
    )
    assert pack_lasting(make_doc()) == written
    assert encode_doc(make_doc()) == bytes((0x99,)) + written[1:-1]  # without the last field, which has its default
    assert decode_doc(written) == make_doc()


def test_a_process_that_does_not_know_rules_reads_the_rest() -> None:
    class OlderDoc(msgspec.Struct, array_like=True):
        device: str
        sequence: str | None = None

    assert msgspec.msgpack.decode(pack(make_doc(ALL)), type=OlderDoc).sequence == "{}"


def test_calls_that_differ_in_their_rules_differ() -> None:
    plain, ruled, other = pack_lasting(make_doc()), pack_lasting(make_doc(ALL)), pack_lasting(make_doc(Rules(keep_s=1)))
    assert len({plain, ruled, other}) == 3
    assert ruled == pack_lasting(make_doc(ALL, trace="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"))


def test_rules_that_set_nothing_are_left_out() -> None:
    submission = Submission("{}", [], "EMU", rules=Rules())
    assert submission.doc("EMU").rules is None
    assert msgspec.structs.replace(submission, rules=ALL).doc("EMU").rules == ALL


def test_valid_rules_pass() -> None:
    for rules in (Rules(), ALL, Rules(total_retries=0, keep_s=0.0), Rules(failure_threshold=1)):
        check_rules(rules)
    check_start(None, has_start=False)
    check_start(Rules(queue_timeout_s=1), has_start=False)
    check_start(ALL, has_start=True)


UP_TO = "expected a number of seconds above 0, at most 31622400, got"
KEPT = "expected a number of seconds from 0 to 316224000, got"
COUNT = "expected a whole number from 1 to 1000000, got"
MANY = tuple(Dependency(UUID(int=number)) for number in range(MAX_DEPENDENCIES + 1))


@pytest.mark.parametrize(
    ("rules", "field", "problem"),
    [
        (Rules(queue_timeout_s=0), "queue_timeout_s", f"{UP_TO} 0"),
        (Rules(queue_timeout_s=True), "queue_timeout_s", f"{UP_TO} True"),
        (Rules(queue_timeout_s=float("nan")), "queue_timeout_s", f"{UP_TO} nan"),
        (Rules(schedule_threshold_s=1e9), "schedule_threshold_s", f"{UP_TO} 1000000000.0"),
        (Rules(keep_s=-1), "keep_s", f"{KEPT} -1"),
        (Rules(failure_threshold=0), "failure_threshold", f"{COUNT} 0"),
        (Rules(failure_threshold=1.0), "failure_threshold", f"{COUNT} 1.0"),  # type: ignore[arg-type]
        (Rules(total_retries=-1), "retries.total", "expected a whole number from 0 to 1000000, got -1"),
        (
            Rules(failure_threshold=1, on_failures="stop"),  # type: ignore[arg-type]
            "on_failures",
            "must be one of pause, cancel, got 'stop'",
        ),
        (
            Rules(on_failures=OnFailures.CANCEL),
            "on_failures",
            "has no effect without failure_threshold; give that too",
        ),
        (Rules(depends_on=[]), "depends_on", "expected a tuple of dependencies, got an empty list"),  # type: ignore[arg-type]
        (Rules(depends_on=MANY), "depends_on", "at most 50 batches are allowed (got 51)"),
        (
            Rules(depends_on=("x",)),  # type: ignore[arg-type]
            "depends_on[0]",
            "expected a batch and how it must end, got 'x'",
        ),
        (
            Rules(depends_on=(Dependency(FIRST, "NOW"),)),  # type: ignore[arg-type]
            "depends_on[0].when",
            "must be one of DONE, ENDED, ERROR, got 'NOW'",
        ),
        (
            Rules(depends_on=(Dependency(FIRST), Dependency(SECOND), Dependency(FIRST, When.ERROR))),
            "depends_on[2]",
            "names the same batch as depends_on[0]; name each batch once",
        ),
        ("x", "rules", "expected Rules, got 'x'"),
    ],
)
def test_an_invalid_rule_is_refused_with_its_field_and_the_reason(rules: Any, field: str, problem: str) -> None:
    refused = refusal_of(lambda: check_rules(rules))
    assert (refused.field, refused.problem) == (field, problem)


def test_lateness_needs_a_start_time() -> None:
    refused = refusal_of(lambda: check_start(ALL, has_start=False))
    assert (refused.field, refused.problem) == (
        "schedule_threshold_s",
        "has no effect without start_at; give that too",
    )


def refusal_of(call: Callable[[], Any]) -> InvalidInput:
    with pytest.raises(InvalidInput) as refused:
        call()
    return refused.value
