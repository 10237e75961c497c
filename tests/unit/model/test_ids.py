"""Ids: of a batch, and of its jobs from it."""

from __future__ import annotations

import re
import time
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tweezer.model.ids import (
    INDEX_BITS,
    SHORT_ID_PATTERN,
    job_id,
    new_batch_id,
    new_worker_id,
    read_short_id,
    short_id,
    short_job_id,
    split_job_id,
)

MOST = (1 << INDEX_BITS) - 1


def test_a_batch_id_is_a_uuid_of_version_8_with_room_for_an_index() -> None:
    batch_id = new_batch_id()
    assert (batch_id.version, batch_id.variant) == (8, "specified in RFC 4122")
    assert batch_id.int & MOST == 0


def test_batch_ids_differ_within_a_millisecond() -> None:
    assert len({new_batch_id() for _ in range(5000)}) == 5000


def test_batch_ids_sort_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = []
    for milliseconds in (1, 2, 1_000, 1_720_000_000_000, 1_720_000_000_001, (1 << 48) - 1):
        monkeypatch.setattr(time, "time_ns", lambda now=milliseconds: now * 1_000_000)
        ids.append(new_batch_id())
    assert ids == sorted(ids)
    assert [str(each) for each in ids] == sorted(str(each) for each in ids)
    assert [each.int >> 80 for each in ids[:3]] == [1, 2, 1_000]


@given(st.integers(0, MOST))
def test_a_job_id_contains_its_batch_and_its_index(index: int) -> None:
    batch_id = new_batch_id()
    job = job_id(batch_id, index)
    assert split_job_id(job) == (batch_id, index)
    assert job.version == 8
    assert (job == batch_id) is (index == 0)


def test_job_ids_sort_by_index_and_stay_before_the_next_batch() -> None:
    batch_id = new_batch_id()
    jobs = [job_id(batch_id, index) for index in (0, 1, 255, 256, MOST)]
    assert jobs == sorted(jobs)
    assert jobs[-1].int < batch_id.int + (1 << INDEX_BITS)


@pytest.mark.parametrize("index", [-1, MOST + 1])
def test_an_index_that_does_not_fit_is_refused(index: int) -> None:
    with pytest.raises(ValueError, match="index"):
        job_id(new_batch_id(), index)


def test_worker_ids_differ_and_have_three_parts() -> None:
    one, two = new_worker_id(), new_worker_id()
    assert one != two
    assert len(one.split(":")) == 3


@given(st.integers(0, (1 << 50) - 1), st.integers(0, (1 << 48) - 1))
def test_a_short_id_is_the_random_bits_of_an_id(bits: int, milliseconds: int) -> None:
    batch_id = UUID(
        int=milliseconds << 80 | 8 << 76 | bits >> 38 << 64 | 2 << 62 | (bits & (1 << 38) - 1) << INDEX_BITS
    )
    short = short_id(batch_id)
    value = 0
    for letter in short:
        value = value << 5 | "0123456789abcdefghjkmnpqrstvwxyz".index(letter)
    assert value == bits
    assert re.fullmatch(SHORT_ID_PATTERN, short)
    assert read_short_id(short) == read_short_id(short.upper()) == short


def test_a_job_is_named_by_its_batch_and_its_number() -> None:
    batch_id = UUID("01a22c92-349d-8ffd-be30-b83fcc000000")
    assert short_id(batch_id) == "zzfrrbgfyc"
    assert [short_job_id(job_id(batch_id, index)) for index in (0, 12)] == ["zzfrrbgfyc/0", "zzfrrbgfyc/12"]
    assert short_id(job_id(batch_id, 12)) == "zzfrrbgfyc"


def test_letters_that_look_like_digits_are_read_as_these() -> None:
    assert read_short_id("oOiIlL0123") == "0011110123"


@pytest.mark.parametrize(
    "text", ["", "zzfrrbgfy", "zzfrrbgfycc", "zzfrrbgfyu", "zzfrrbgfy-", "zzfrrbgfy ", "zzfrrbgfyé", "İ" * 10]
)
def test_other_texts_are_not_short_ids(text: str) -> None:
    assert read_short_id(text) is None
