"""Errors cross processes: a pool of workers sends them back pickled."""

from __future__ import annotations

import copy
import importlib
import pickle
import pkgutil

import pytest

import tweezer
from tweezer.adapters.remote.errors import RemoteRefused
from tweezer.model.errors import (
    Conflict,
    ExecutionError,
    FaultKind,
    InvalidInput,
    NotFound,
    QueueFull,
    TweezerError,
    Unavailable,
)

ERRORS = [
    TweezerError("it failed", code="finer"),
    InvalidInput("jobs[3].runs", "is missing"),
    NotFound("batch", "01a2014a"),
    Conflict("batch 7 has ended", code="terminal"),
    QueueFull("no new work is accepted for now"),
    Unavailable("Redis does not answer"),
    ExecutionError(FaultKind.USER, "cannot be played", field="operations[0]"),
    tweezer.WaitTimeout("batch 7 still has jobs to run"),
    tweezer.WebhookInvalid("the webhook's timestamp is 900 s in the past", code="too_old"),
    RemoteRefused("no", status=409, remote_code="JOB1", by_api=False),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("copied", [lambda it: pickle.loads(pickle.dumps(it)), copy.copy, copy.deepcopy])  # noqa: S301
def test_an_error_survives_pickle_and_copy(error: TweezerError, copied: object) -> None:
    assert callable(copied)
    twin = copied(error)
    assert type(twin) is type(error)
    assert (str(twin), twin.args, vars(twin)) == (str(error), error.args, vars(error))
    assert (twin.code, twin.retryable) == (error.code, error.retryable)


def test_every_error_of_the_package_is_rebuilt_without_its_constructor() -> None:
    for module in pkgutil.walk_packages(tweezer.__path__, "tweezer."):
        if module.name.startswith(("tweezer.model", "tweezer.store", "tweezer.adapters.remote")):
            importlib.import_module(module.name)
    kinds = [TweezerError]
    for kind in kinds:
        assert kind.__reduce__ is TweezerError.__reduce__, kind
        kinds += kind.__subclasses__()
    assert len(kinds) > 15
