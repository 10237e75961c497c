"""Random but realistic queries: filters with values that occur, and pages, for one project at a time."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from tests.support.ledger_filling import DEVICES, TAGS, Filled

from tweezer.ledger.access.credentials import Principal, Role
from tweezer.ledger.queries.filters import PageRequest
from tweezer.model.ids import job_id
from tweezer.model.lifecycle import BatchStatus, JobStatus
from tweezer.model.messages import Priority

Part = Callable[[], dict[str, Any]]


class Questions:
    """A source of random queries."""

    def __init__(self, filled: Filled, seed: int = 1) -> None:
        self._filled = filled
        self._plan = filled.plan
        self._random = random.Random(seed)
        self._project = 0

    def next_caller(self) -> Principal:
        self._project = self._random.randrange(self._plan.projects)
        return Principal("user", Role.USER, frozenset({self._plan.project(self._project)}))

    def job_parts(self) -> dict[str, Part]:
        """Return a value for each filter of jobs."""
        return {
            **self._common_parts(),
            "ids": lambda: {"ids": tuple(job_id(self._batch(), 0) for _ in range(20))},
            "batches": lambda: {"batches": tuple(self._batch() for _ in range(5))},
            "one batch": lambda: {"batches": (self._batch(),)},
            "statuses": lambda: {"statuses": tuple(self._random.sample(list(JobStatus), 2))},
            "runs": lambda: {"runs_min": self._random.choice((0, 50, 500)), "runs_max": 1000},
            "errors": lambda: {"failed": self._random.random() < 0.5},
        }

    def batch_parts(self) -> dict[str, Part]:
        """Return a value for each filter of batches."""
        return {
            **self._common_parts(),
            "ids": lambda: {"ids": tuple(self._batch() for _ in range(20))},
            "statuses": lambda: {"statuses": tuple(self._random.sample(list(BatchStatus), 2))},
            "open": lambda: {"open": self._random.random() < 0.5},
            "jobs": lambda: {"jobs_min": self._random.choice((0, 20, 80)), "jobs_max": 100},
        }

    def some(self, number: int, parts: dict[str, Part]) -> dict[str, Any]:
        """Return this number of the filters together."""
        together: dict[str, Any] = {}
        for name in self._random.sample(list(parts), number):
            together |= parts[name]()
        return together

    def paging(self) -> PageRequest:
        return PageRequest(descending=self._random.random() < 0.5, offset=self._random.choice((0, 0, 100, 1000)))

    def one_of(self, orders: Any) -> Any:
        return self._random.choice(list(orders))

    def _common_parts(self) -> dict[str, Part]:
        return {
            "nothing": dict,
            "id prefix": lambda: {"id_prefix": self._batch().hex[: self._random.choice((3, 6, 9, 26))]},
            "project": lambda: {"projects": (self._plan.project(self._project),)},
            "users": lambda: {"users": tuple(self._plan.user(self._project, n) for n in range(2))},
            "devices": lambda: {"devices": tuple(self._random.sample(DEVICES, 2))},
            "priorities": lambda: {"priorities": (self._random.choice(list(Priority)),)},
            "started": lambda: {"started_from": self._time()},
            "ended": lambda: {"ended_to": self._time()},
            "created": lambda: {"created_from": self._time() - timedelta(days=8), "created_to": self._time()},
            "any tag": lambda: {"tags_any": tuple(self._random.sample(TAGS, 3))},
            "all tags": lambda: {"tags_all": tuple(self._random.sample(TAGS, 2))},
        }

    def _batch(self) -> UUID:
        return self._random.choice(self._filled.of_project(self._project))[0]

    def _time(self) -> datetime:
        now = datetime.fromtimestamp(self._plan.now_ms / 1000, UTC)
        return now - timedelta(days=self._random.random() * self._plan.days)
