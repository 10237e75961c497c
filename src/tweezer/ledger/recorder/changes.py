"""Makes the rows of the ledger from entries of the stream and the current batches in Redis.

An entry shows which batch and jobs changed; their current state is read from Redis. Therefore many entries make few
rows, and a row may be newer than the position up to which the stream is recorded, but never older.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple
from uuid import UUID

import msgspec

from tweezer.ledger.dead_letters import NewLetter, WaitingEntries
from tweezer.ledger.schema import NAME, PARENT, SHORT_ID
from tweezer.model.checks import MAX_NAME_LENGTH
from tweezer.model.events import count_events, read_words
from tweezer.model.ids import short_id
from tweezer.model.messages import BatchDoc, decode_doc, decode_spec, encode_doc
from tweezer.store.records import STATE_FIELDS
from tweezer.store.snapshots import Snapshot
from tweezer.store.streams.feed import Entry, position_number

DriverId = UUID | bytes | str

_TEXT_MAX = 200
_RUNS_MAX = (1 << 63) - 1
_SHOTS_MAX = 10**12  # of one job, so that the sum of a batch fits into its column

ORIGIN = "C"  # CLIENT: the only origin in Tweezer

_STATUS, _BEGUN, _ENDED = (STATE_FIELDS.index(name) for name in ("status", "begun", "ended"))
_EXECUTION, _STAGED, _CANCEL = (STATE_FIELDS.index(name) for name in ("execution", "staged", "cancel"))

BATCH_COLUMNS = (
    *("id", "project", "device", "user", "priority", "origin", "status", "open", "jobs"),
    *("created_ms", "started_ms", "ended_ms", "updated_ms", "parent", "sequence_number", "record", "about"),
    *("failed", "keep_ms", "previous", "changed_ms", "previous_ms"),
)
JOB_COLUMNS = (
    *("id", "project", "device", "user", "priority", "origin", "status", "runs", "failed"),
    *("created_ms", "started_ms", "ended_ms", "updated_ms", "spec", "state"),
)
JOB_AMOUNTS = ("device_ms", "shots")  # for the sums: of a job that has ended, of a new job; follow the other columns
NAME_COLUMNS = ("project", "kind", "name", "batch")
SIZE_COLUMNS = ("batch", "project", "bytes")
RESULT_COLUMNS = ("id", "result", "fault")
TRANSITION_COLUMNS = ("position", "batch", "project", "sequence_number", "time_us", "words", "holder", "faults")
NOTICE_COLUMNS = ("position", "id", "type", "project", "time_us", "data")


class KnownBatch(msgspec.Struct):
    """The recorder's cache of a batch that is in the ledger.

    jobs: the number of its jobs in the ledger. ended: 1 for each job whose end is known to be in the ledger. tags: the
    last replacement of its tags, if the recorder has read one.
    """

    project: str
    device: str
    user: str | None
    priority: str
    jobs: int
    ended: bytearray = msgspec.field(default_factory=bytearray)
    tags: bytes | None = None

    def find_open(self, indices: Iterable[int]) -> list[int]:
        """Return the jobs whose end may not be in the ledger."""
        ended = self.ended
        return [index for index in indices if index >= len(ended) or not ended[index]]


class Changes(msgspec.Struct):
    """Rows to write, with the columns above; the project is an id, which the writer replaces by its number.

    submitted: batches that the ledger does not have yet. priorities: the new ones, by their letter.
    """

    submitted: dict[UUID, KnownBatch] = {}
    batches: list[list[Any]] = []
    sequences: list[tuple[DriverId, str]] = []
    tags: list[tuple[str, str, DriverId]] = []
    names: list[tuple[str, str, str, DriverId]] = []
    result_sizes: list[list[Any]] = []
    retagged: dict[UUID, tuple[str, ...]] = {}
    priorities: dict[UUID, str] = {}
    jobs: list[list[Any]] = []
    results: list[tuple[DriverId, bytes | None, bytes | None]] = []
    transitions: list[list[Any]] = []
    notices: list[list[Any]] = []
    activity_ms: dict[str, int] = {}
    letters: list[NewLetter] = []
    behind: dict[UUID, WaitingEntries] = {}


class _Moves(NamedTuple):
    """The last transition of a batch itself in some entries: its status before, the time, and that of the one before.

    None: there is no such transition, or none before.
    """

    previous: str | None
    changed_ms: int | None
    previous_ms: int | None


_UNMOVED = _Moves(None, None, None)


class JobIds:
    """Makes ids of jobs in the form that the driver accepts: text for COPY, bytes for SQLite."""

    def __init__(self, *, text: bool) -> None:
        self._text = text

    def for_batch(self, batch_id: UUID) -> Callable[[int], DriverId]:
        """Return a function from index to id, for the jobs of a batch."""
        if self._text:
            prefix = batch_id.hex[:-6]
            return lambda index: f"{prefix}{index:06x}"
        packed = batch_id.bytes[:-3]
        return lambda index: packed + index.to_bytes(3, "big")

    def id(self, identity: UUID) -> DriverId:
        return identity.hex if self._text else identity.bytes


def touched(entries: Iterable[Entry]) -> dict[UUID, set[int]]:
    """Return the batches of the entries, and the indices of the jobs in the words."""
    found: dict[UUID, set[int]] = {}
    for entry in entries:
        if entry.notice is not None:
            continue
        indices = found.setdefault(entry.batch_id, set())
        for word in read_words(entry.words):
            indices.update(word.jobs)
    return found


def make_changes(
    entries: Sequence[Entry],
    snapshots: dict[UUID, Snapshot],
    known: dict[UUID, KnownBatch],
    looked_at: dict[UUID, set[int]],
    ids: JobIds,
    parked: Mapping[UUID, str | None],
) -> Changes:
    """Return the rows of the entries; without entries, those of the snapshots of whole batches.

    ``known`` is updated accordingly. Nothing is recorded of a batch that is neither in Redis nor known, because it was
    deleted. The transitions of a parked batch (``parked`` has its project) are recorded, so that the feed is complete.
    """
    changes = Changes()
    last: dict[UUID, int] = {}
    moves: dict[UUID, _Moves] = {}
    for entry in entries:
        last[entry.batch_id] = entry.first + count_events(entry.words) - 1
        for word in read_words(entry.words):
            if word.moves_batch:
                before = moves.get(entry.batch_id, _UNMOVED)
                previous = None if word.letters[0] == "N" else word.letters[0]
                moves[entry.batch_id] = _Moves(previous, entry.time_us // 1000, before.changed_ms)
    for batch_id, snapshot in snapshots.items():
        recorded = last.get(batch_id, snapshot.sequence_number)
        moved = moves.get(batch_id, _UNMOVED)
        _add_batch(changes, snapshot, known, looked_at[batch_id], recorded, moved, ids)
    for entry in entries:
        batch = known.get(entry.batch_id)
        project = parked.get(entry.batch_id) if batch is None else batch.project
        if (it := entry.notice) is not None:
            changes.notices.append([position_number(entry.id), it.id, it.type, it.project, it.time_us, it.data])
        elif project is not None:
            row = [position_number(entry.id), ids.id(entry.batch_id), project, entry.first, entry.time_us]
            changes.transitions.append([*row, entry.words, entry.holder or None, entry.faults or None])
            changes.activity_ms[project] = entry.time_us // 1000
    return changes


def _add_batch(
    changes: Changes,
    snapshot: Snapshot,
    known: dict[UUID, KnownBatch],
    looked_at: set[int],
    last: int,
    moved: _Moves,
    ids: JobIds,
) -> None:
    fields = snapshot.fields
    batch = known.get(snapshot.batch_id)
    about: bytes | None = None
    keep_ms: int | None = None
    parent: DriverId | None = None
    if batch is None:
        assert snapshot.doc is not None
        doc = decode_doc(snapshot.doc)
        batch = known[snapshot.batch_id] = KnownBatch(
            project=fields["project"].decode(),
            device=fields["device"].decode(),
            user=None if doc.user is None else _fitting(doc.user),
            priority=fields["priority"].decode()[0],
            jobs=0,
        )
        changes.submitted[snapshot.batch_id] = batch
        tags_submitted = tuple(dict.fromkeys(map(_fitting, doc.tags)))
        about = encode_doc(msgspec.structs.replace(doc, sequence=None, tags=tags_submitted))
        parent = _parent(doc, ids)
        if doc.rules is not None and doc.rules.keep_s is not None:
            keep_ms = round(doc.rules.keep_s * 1000)
        own_id = ids.id(snapshot.batch_id)
        if doc.sequence is not None:
            changes.sequences.append((own_id, doc.sequence.replace("\0", "")))
        changes.tags.extend((batch.project, tag, own_id) for tag in tags_submitted)
        changes.names.append((batch.project, SHORT_ID, short_id(snapshot.batch_id), own_id))
        if name := _fitting(doc.name or "", MAX_NAME_LENGTH):
            changes.names.append((batch.project, NAME, name, own_id))
        for dependency in doc.rules.depends_on if doc.rules is not None else ():
            changes.names.append((batch.project, PARENT, dependency.batch.hex, own_id))
    priority = fields["priority"].decode()[0]
    if priority != batch.priority:
        changes.priorities[snapshot.batch_id] = batch.priority = priority
    tags = fields.pop("tags", None)  # in the ledger the tags are in the column about, replaced or not
    if tags is not None and tags != batch.tags:
        replaced = msgspec.json.decode(tags, type=tuple[str, ...])
        changes.retagged[snapshot.batch_id] = tuple(dict.fromkeys(map(_fitting, replaced)))
        batch.tags = tags
    status = fields["status"].decode()
    row: list[Any] = [ids.id(snapshot.batch_id), batch.project, batch.device, batch.user, batch.priority, ORIGIN]
    row += [status, fields.get("open") == b"1", snapshot.jobs, int(fields["created"]) // 1000]
    row += [_time(fields.get("started")), _time(fields.get("ended")), int(fields["updated"]), parent]
    row += [last, msgspec.msgpack.encode(fields), b"" if about is None else about]
    row += [int(fields.get("error", b"0")), keep_ms, *moved]
    changes.batches.append(row)
    if size := int(fields.get("results", b"0")):
        changes.result_sizes.append([ids.id(snapshot.batch_id), batch.project, size])
    head = [batch.project, batch.device, batch.user, batch.priority, ORIGIN]
    _add_jobs(changes, snapshot, batch, head, looked_at, ids)
    batch.jobs = snapshot.jobs


def _add_jobs(
    changes: Changes, snapshot: Snapshot, batch: KnownBatch, head: list[Any], looked_at: set[int], ids: JobIds
) -> None:
    identity, specs, states = ids.for_batch(snapshot.batch_id), snapshot.specs, snapshot.states
    batch.ended.extend(bytes(max(snapshot.jobs - len(batch.ended), 0)))
    for index in (*specs, *batch.find_open(looked_at.difference(specs))):
        if index >= snapshot.jobs:
            continue
        state, spec = states.get(index), specs.get(index, b"")
        created, runs, shots = 0, None, 0  # an existing job keeps its values
        if spec:
            created, (runs, shots) = int(spec[: spec.index(b" ")]) // 1000, _runs(spec)
        if state is None:
            changes.jobs.append(
                [identity(index), *head, "P", runs, False, created, None, None, created, spec, None, None, shots]
            )
            continue
        text = state.decode()
        words = text.split()
        status, begun, ended = words[_STATUS], _number(words[_BEGUN]), _number(words[_ENDED])
        if status == "P":
            begun = None
        fault = snapshot.faults.get(index)
        changed = max(created, begun or 0, ended or 0, _number(words[_STAGED]) or 0, _number(words[_CANCEL]) or 0)
        row = [identity(index), *head, status, runs, fault is not None or status == "E", created, begun, ended]
        changes.jobs.append([*row, changed, spec, text, _number(words[_EXECUTION]), shots])
        if status in "DEC":
            batch.ended[index] = 1
            result = snapshot.results.get(index)
            if result is not None or fault is not None:
                changes.results.append((identity(index), result, fault))


def _runs(packed: bytes) -> tuple[int | None, int]:
    """Return the job's own number of shots, if it has one, and the number that it is shown with."""
    spec = decode_spec(packed[packed.index(b" ") + 1 :])
    runs = spec.runs if spec.runs is None else min(spec.runs, _RUNS_MAX)
    return runs, min(spec.runs or spec.runs_shown or 1, _SHOTS_MAX)


def _fitting(text: str, most: int = _TEXT_MAX) -> str:
    """Shorten a text to a column's size: devices without checks accept any text, and no batch may stop the recorder."""
    return text.replace("\0", "")[:most]


def _number(word: str) -> int | None:
    return None if word == "-" else int(word)


def _time(raw: bytes | None) -> int | None:
    return int(raw) if raw not in (None, b"0") else None


def _parent(doc: BatchDoc, ids: JobIds) -> DriverId | None:
    try:
        return None if doc.parent_id is None else ids.id(UUID(doc.parent_id))
    except ValueError:
        return None
