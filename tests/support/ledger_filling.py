"""Fill a ledger quickly with invented batches and jobs, for tests and benchmarks.

The same plan gives the same rows. Most batches have ended; the newest wait or run. The rows are like those of the
recorder, so that every query works. Times spread over some days before ``now_ms``.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any
from uuid import UUID

import msgspec
from sqlalchemy import Connection, update

from tweezer.ledger.access.projects import project_no
from tweezer.ledger.database import Database, load
from tweezer.ledger.schema import metadata, projects
from tweezer.model.ids import job_id, short_id
from tweezer.model.lifecycle import BATCH_BY_LETTER
from tweezer.model.messages import (
    BatchDoc,
    Fault,
    JobSpec,
    Result,
    encode_doc,
    encode_fault,
    encode_result,
    encode_spec,
)
from tweezer.model.tasks import task_status

DEVICES = ("EMU_FREE", "EMU_MPS", "EMU_SV", "FRESNEL")
TAGS = tuple(f"tag-{number}" for number in range(20))
SEQUENCE = '{"version": "1", "name": "made up"}'

_PRIORITIES = {"HIGH": 1, "MEDIUM": 8, "LOW": 1}
_ENDS = {"D": 92, "E": 5, "C": 3}
_HOUR_MS = 3_600_000
_DOOMED_EACH = 40  # one batch in this many cannot run
_COUNTS = {"P": "pending", "R": "running", "D": "done", "E": "error", "C": "canceled"}
_COLUMNS = {
    "batches": (
        *("id", "project", "device", "user", "priority", "origin", "status", "open", "jobs"),
        *("created_ms", "started_ms", "ended_ms", "updated_ms", "parent", "sequence_number", "record", "about"),
        *("failed", "shots", "device_ms", "previous", "changed_ms", "previous_ms", "archived_ms"),
    ),
    "sequences": ("id", "sequence"),
    "tags": ("project", "tag", "batch"),
    "batch_names": ("project", "kind", "name", "batch"),
    "jobs": (
        *("id", "project", "device", "user", "priority", "origin", "status", "runs", "failed"),
        *("created_ms", "started_ms", "ended_ms", "updated_ms", "spec", "state"),
    ),
    "results": ("id", "result", "fault"),
    "transitions": ("position", "batch", "project", "sequence_number", "time_us", "words"),
    "counters": ("project", "device", "kind", "status", "count"),
    "hours": (
        *("project", "device", "hour", "created", "done", "error", "canceled", "started", "queue_ms", "device_ms"),
    ),
}


class Plan(msgspec.Struct, frozen=True):
    """The size of the history.

    live: the number of the newest batches that have not ended. archived_each: each such batch of the ended ones is
    archived; 0: none.
    """

    jobs: int = 1000
    batches: int = 50
    projects: int = 2
    users: int = 5
    live: int = 5
    days: int = 30
    now_ms: int = 1_790_000_000_000
    archived_each: int = 0
    seed: int = 7

    def project(self, number: int) -> str:
        """Return the id of a project; numbers begin at 0."""
        return f"project-{number}"

    def user(self, project: int, number: int) -> str:
        return f"user-{project}-{number}"


class Filled(msgspec.Struct, frozen=True):
    """The invented history: the ids of the batches, oldest first, and the number of their jobs."""

    plan: Plan
    batches: tuple[UUID, ...]
    sizes: tuple[int, ...]

    def of_project(self, number: int) -> list[tuple[UUID, int]]:
        """Return the batches of a project and their sizes."""
        step = self.plan.projects
        return list(zip(self.batches[number::step], self.sizes[number::step], strict=True))


def fill(database: Database, plan: Plan | None = None, *, tables: bool = True) -> Filled:
    """Make the tables unless they exist, and fill them in one transaction."""
    making = _Making(database, plan or Plan())
    with database.write() as connection:
        if tables:
            metadata.create_all(connection)
        return making.fill(connection)


class _Making:
    def __init__(self, database: Database, plan: Plan) -> None:
        self._database = database
        self._plan = plan
        self._random = random.Random(plan.seed)
        self._entries = 0
        self._numbers: list[int] = []
        self._rows: dict[str, list[Sequence[Any]]] = {table: [] for table in _COLUMNS}
        self._counters: defaultdict[tuple[int, str, str, str], int] = defaultdict(int)
        self._hours: defaultdict[tuple[int, str, int], list[int]] = defaultdict(lambda: [0] * 7)

    def fill(self, connection: Connection) -> Filled:
        plan = self._plan
        self._numbers = [self._project(connection, number) for number in range(plan.projects)]
        ids, sizes = [], []
        for number, size in enumerate(self._sizes()):
            ids.append(self._batch(number, size))
            sizes.append(size)
            if len(self._rows["jobs"]) > 20_000:
                self._load(connection)
        self._rows["counters"] = [(*place, count) for place, count in self._counters.items()]
        self._rows["hours"] = [(*place, *sums) for place, sums in self._hours.items()]
        self._load(connection)
        return Filled(plan, tuple(ids), tuple(sizes))

    def _project(self, connection: Connection, number: int) -> int:
        no = project_no(connection, self._plan.project(number))
        values = {"last_activity_ms": self._plan.now_ms - number * 1000}
        connection.execute(update(projects).where(projects.c.no == no).values(values))
        return no

    def _load(self, connection: Connection) -> None:
        for table, rows in self._rows.items():
            if rows:
                load(connection, table, _COLUMNS[table], rows)
                rows.clear()

    def _sizes(self) -> Iterator[int]:
        """Yield the size of each batch: uneven, and with the sum of all jobs."""
        plan, left = self._plan, self._plan.jobs
        for number in range(plan.batches):
            mean = left / (plan.batches - number)
            last = number == plan.batches - 1
            size = left if last else min(left, round(mean * self._random.choice((0.1, 0.5, 1.0, 1.4, 2.0))))
            left -= size
            yield size

    def _batch(self, number: int, size: int) -> UUID:
        plan, chance = self._plan, self._random
        created = plan.now_ms - (plan.batches - number) * (plan.days * 24 * _HOUR_MS // plan.batches)
        created += chance.randrange(1000)
        batch_id = UUID(
            int=(created << 16 | 8 << 12 | chance.randrange(1 << 12)) << 64 | 2 << 62 | chance.randrange(1 << 38) << 24
        )
        of = number % plan.projects
        project, device = self._numbers[of], chance.choice(DEVICES)
        user = plan.user(of, chance.randrange(plan.users)) if chance.random() < 0.9 else None
        priority = chance.choices(list(_PRIORITIES), list(_PRIORITIES.values()))[0]
        live = number >= plan.batches - plan.live
        waits = live and number % 2 == 0
        started = None if waits or not size else created + chance.randrange(100, 600_000)
        tags = chance.sample(TAGS, chance.randrange(4))
        head = (project, device, user, priority[0], "C")
        doomed = not live and number % _DOOMED_EACH == 7
        counts, last, events, amounts = self._jobs(batch_id, size, head, created, started, live=live, doomed=doomed)
        status = "P" if waits else "R" if live and started else "E" if doomed else "D"
        if live and not waits and number % 3 == 0:
            status = "S"
        ended = None if live else last + 5
        updated = max(last, created)
        each = plan.archived_each
        archived = last + 60_000 if each and not live and number % each == 0 else None
        record = {
            "v": "1",
            "project": plan.project(of),
            "device": device,
            "priority": priority,
            "status": status,
            "created": created * 1000 + 123,
            "open": int(live and number % 3 == 0),
            "jobs": size,
            "started": started or 0,
            "ended": ended or 0,
            "updated": updated,
            "seq": events,
            **{name: counts[letter] for letter, name in _COUNTS.items()},
        }
        packed = {name: str(value).encode() for name, value in record.items()}
        if doomed:
            packed["fault"] = encode_fault(Fault("user", "the sequence does not fit the device", "sequence"))
        doc = BatchDoc(device=device, name=f"batch {number}", tags=tuple(tags), user=user)
        identity = self._database.id(batch_id)
        self._rows["batches"].append(
            (
                *(identity, *head, status, live and number % 3 == 0, size),
                *(created, started, ended, updated, None, events, msgspec.msgpack.encode(packed), encode_doc(doc)),
                *(counts["E"], *amounts, "P" if started else None, ended or started or created),
                *(started if ended else created if started else None, archived),
            )
        )
        if archived is None:
            task = task_status(BATCH_BY_LETTER[status], has_failures=counts["E"] > 0)
            self._counters[project, device, "T", task.letter] += 1
        self._rows["sequences"].append((identity, SEQUENCE))
        self._rows["tags"].extend((project, tag, identity) for tag in tags)
        self._rows["batch_names"].append((project, "S", short_id(batch_id), identity))
        self._rows["batch_names"].append((project, "N", doc.name, identity))
        self._counters[project, device, "B", status] += 1
        self._transition(batch_id, project, 1, created, f"NP:{size}")
        return batch_id

    def _jobs(
        self,
        batch_id: UUID,
        size: int,
        head: tuple[Any, ...],
        created: int,
        started: int | None,
        *,
        live: bool,
        doomed: bool,
    ) -> tuple[dict[str, int], int, int, tuple[int, int]]:
        """Add the jobs.

        Return their number by status, the time of the last change, the number of events, and the sums of their shots
        and their times on the device.
        """
        shots = device_ms = 0
        chance, counts, at, events = self._random, dict.fromkeys(_COUNTS, 0), started or created, 1
        project, device, now_ms = head[0], head[1], self._plan.now_ms
        for index in range(size):
            status = "E" if doomed else chance.choices(list(_ENDS), list(_ENDS.values()))[0]
            begun: int | None = at
            ended: int | None = at + chance.randrange(1, 5000)
            if live and (started is None or index >= size // 2):
                status, begun, ended = ("R", at, None) if started and index == size // 2 else ("P", None, None)
            elif status == "C":
                begun = None
            runs = chance.choice((10, 50, 100, 500, 1000, None))
            spec = encode_spec(JobSpec(runs=runs, variables={"omega": round(chance.random() * 12, 3), "t": index}))
            state = None if status == "P" else _state(status, begun, ended)
            shots += runs or 1
            device_ms += 0 if begun is None or ended is None else ended - begun
            row_id = self._database.id(job_id(batch_id, index))
            updated = ended or begun or created
            self._rows["jobs"].append(
                (
                    *(row_id, *head, status, runs, status == "E", created, begun, ended, updated),
                    *(f"{created * 1000 + 123} ".encode() + spec, state),
                )
            )
            if status == "D":
                self._rows["results"].append((row_id, encode_result(Result(counter={"01": 60, "10": 40})), None))
            elif status == "E" and not doomed:
                self._rows["results"].append((row_id, None, encode_fault(Fault("user", "it broke", "variables.omega"))))
            counts[status] += 1
            self._counters[project, device, "J", status] += 1
            self._hours[project, device, created // _HOUR_MS][0] += 1
            if ended is not None:
                sums = self._hours[project, device, ended // _HOUR_MS]
                sums["DEC".index(status) + 1] += 1
                if begun is not None:
                    sums[4] += 1
                    sums[5] += begun - created
                    sums[6] += ended - begun
                at = ended
            if index < 3 and status in "DE":
                assert begun is not None
                self._transition(batch_id, project, events + 1, begun, f"{index}PR")
                self._transition(batch_id, project, events + 2, at, f"{index}R{status}")
                events += 2
        return counts, min(at, now_ms), events, (shots, device_ms)

    def _transition(self, batch_id: UUID, project: int, first: int, time_ms: int, words: str) -> None:
        self._entries += 1
        position = time_ms << 20 | self._entries & 0xFFFFF
        identity = self._database.id(batch_id)
        self._rows["transitions"].append((position, identity, project, first, time_ms * 1000, words))


def _state(status: str, begun: int | None, ended: int | None) -> str:
    """Return a job's state in the format of Redis."""
    took = "-" if begun is None or ended is None else str(ended - begun)
    words = [status, "0" if begun is None else "1", "1790000000000001", begun, ended, "12", took]
    words += ["on_device", begun, "40"] if status == "R" else ["-", "-", "-"]
    words += [ended, "1", "-", "-", "-", "prevented"] if status == "C" else ["-", "-", "-", "-", "-"]
    return " ".join("-" if word is None else str(word) for word in words)
