"""Jobs as a data frame, and counters as arrays."""

from __future__ import annotations

import copy
import pickle
import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.records import BEGAN, make_job

from tweezer.client import Finished, JobFailed
from tweezer.display.data import JobList, to_arrays
from tweezer.model.errors import TweezerError
from tweezer.model.lifecycle import JobStatus
from tweezer.model.messages import Fault, JobSpec, Result

JOBS: list[Any] = [
    Finished.of(make_job(0, started=BEGAN, ended=BEGAN, device_s=0.5, attempt=1), Result({"01": 30, "10": 70})),
    Finished.of(
        make_job(2, JobStatus.ERROR, spec=JobSpec(variables={"phases": [0, 1]}), faults=(Fault("user", "broke"),)), None
    ),
    make_job(5, JobStatus.PENDING, spec=JobSpec(runs_shown=7, variables={"status": 4})),
]


def test_a_data_frame_has_a_row_per_job() -> None:
    frame = JobList(JOBS).to_dataframe()
    assert list(frame.index) == [0, 2, 5]
    assert frame.index.name == "job"
    assert list(frame.columns[:4]) == ["status", "omega", "phases", "variables.status"]
    assert list(frame["status"]) == ["DONE", "ERROR", "PENDING"]
    assert frame.loc[0, ["omega", "runs", "shots", "top", "share", "device_s"]].tolist() == [
        6.5,
        500,
        100,
        "10",
        0.7,
        0.5,
    ]
    assert frame.loc[0, "counter"] == {"01": 30, "10": 70}
    assert frame.loc[2, "phases"] == [0, 1]
    assert (frame.loc[2, "error"], frame.loc[5, "variables.status"], frame.loc[5, "runs"]) == ("broke", 4, 7)
    assert frame.loc[0, "ended"] == pd.Timestamp(BEGAN)


@pytest.mark.parametrize("jobs", [JOBS, JOBS[1:2], []])
def test_the_types_of_the_columns_do_not_depend_on_the_jobs(jobs: list[Any]) -> None:
    types = JobList(jobs).to_dataframe().dtypes
    assert all(isinstance(types[name], pd.DatetimeTZDtype) for name in ("created", "started", "ended"))
    assert all(types[name] == np.float64 for name in ("share", "queue_s", "preparation_s", "device_s"))
    assert all(types[name] == pd.Int64Dtype() for name in ("runs", "shots"))
    assert str(types["created"]).endswith("UTC]")


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for library, call in (("pandas", JobList(JOBS).to_dataframe), ("numpy", lambda: to_arrays({"0": 1}))):
        monkeypatch.setitem(sys.modules, library, None)
        with pytest.raises(TweezerError, match=f"needs {library}; run `pip install {library}`") as raised:
            call()
        assert raised.value.code == "missing_extra"


def test_a_counter_becomes_bits_and_shots() -> None:
    bits, shots = Finished.of(make_job(), Result({"011": 3, "100": 5, "000": 3})).to_arrays()
    assert bits.tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 1]]
    assert shots.tolist() == [5, 3, 3]
    assert bits.dtype == np.uint8
    assert shots.dtype == np.int64
    assert np.repeat(bits, shots, axis=0).shape == (11, 3)
    with pytest.raises(JobFailed):
        Finished.of(make_job(), Result(None)).to_arrays()


@given(st.integers(0, 8).flatmap(lambda n: st.dictionaries(st.text("01", min_size=n, max_size=n), st.integers(1, 99))))
def test_arrays_have_the_same_shots_as_the_counter(counter: dict[str, int]) -> None:
    bits, shots = to_arrays(counter)
    assert bits.shape == (len(counter), len(next(iter(counter), "")))
    assert {"".join(map(str, row)): int(count) for row, count in zip(bits, shots, strict=True)} == counter


@pytest.mark.parametrize("counter", [{"01": 1, "0": 2}, {"0a": 1}, {"02": 1}, {"0é": 1}, {"": 1, "0": 1}, {"/0": 1}])
def test_keys_that_are_not_bitstrings_are_refused(counter: dict[str, int]) -> None:
    with pytest.raises(TweezerError, match="not bitstrings of one length"):
        to_arrays(counter)


def test_a_list_of_jobs_is_a_list() -> None:
    jobs = JobList(JOBS)
    assert jobs == JOBS
    assert pickle.loads(pickle.dumps(jobs)) == copy.copy(jobs) == jobs  # noqa: S301
    assert type(pickle.loads(pickle.dumps(jobs))) is JobList  # noqa: S301
    assert repr(jobs).startswith("[<job 0 DONE omega=6.5, 100 shots, 10 70%>, <job 2 ERROR")
