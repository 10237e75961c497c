"""Checks of a batch and its jobs before anything is written.

Each failure is an InvalidInput that names the field (``jobs[3].variables.omega``). Problems that only Pulser or the
device can find surface later, when a worker prepares the batch.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from math import isfinite
from typing import Any, Never
from urllib.parse import urlsplit

import msgspec

from tweezer.model.arguments import NAME_LENGTH, check_list, quote_name
from tweezer.model.arguments import shown as _shown
from tweezer.model.errors import InvalidInput
from tweezer.model.messages import MAX_JOBS_PER_CALL, BatchDoc, JobSpec, Limits
from tweezer.model.rules import check_rules
from tweezer.model.sequence import (
    ANYWHERE,
    MAX_SEQUENCE_BYTES,
    DeclaredVariable,
    Geometry,
    SequenceHeader,
    VariableType,
    check_register,
    read_sequence,
    sequence_text,
)

MAX_SEED = 2**32 - 1
MAX_INTEGER = 2**63 - 1
"""The largest absolute value of a whole number in a variable or a configuration (64 bits)."""

MAX_TAGS = 50
MAX_TAG_LENGTH = 100
MAX_NAME_LENGTH = 255
MAX_DEVICE_LENGTH = 64
MAX_WEBHOOK_LENGTH = 2048
MAX_KEY_LENGTH = 255
"""Maximum length of an idempotency key, in characters."""

MAX_REASON_LENGTH = 500
MAX_VARIABLES_BYTES = 1 << 20
MAX_CONFIGURATION_BYTES = 1 << 20
MAX_CONFIGURATION_DEPTH = 32

MAX_JOB_TIMEOUT_S = 7 * 86_400.0
MAX_OPEN_TIMEOUT_S = 30 * 86_400.0
MAX_TRANSIENT_RETRIES = 20

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")  # category Cc
_NOT_LINES = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")  # the same without tab and line ends
_HALF = re.compile("[\ud800-\udfff]")  # half of a surrogate pair: UTF-8 cannot hold it

_JOB_KEYS = ("runs", "variables", "seed", "sequence")
_LISTED_NAMES = 10
_COMPARED_NAMES = 200


def check_text(field: str, value: object, most: int, *, least: int = 1, lines: bool = False) -> str:
    """Return a user's string if it has a valid length and no control characters. Raises InvalidInput.

    Terminals, logs and databases do not all accept control characters (category Cc), so no string may contain any.
    ``lines``: several lines and tabs are allowed.
    """
    if not isinstance(value, str) or not least <= len(value) <= most:
        raise InvalidInput(field, f"expected a string of {least} to {most} characters, got {_shown(value)}")
    check_characters(field, value, lines=lines)
    return value


def check_characters(field: str, text: str, *, lines: bool = False) -> None:
    """Raise InvalidInput if the text has control characters or lone surrogates."""
    found = (_NOT_LINES if lines else _CONTROL).search(text)
    if found is not None:
        code = f"U+{ord(found[0]):04X}"
        raise InvalidInput(field, f"has a control character ({code}, character {found.start() + 1}); remove it")
    if _HALF.search(text):
        raise InvalidInput(field, "is not valid Unicode text (it contains half of a surrogate pair)")


def check_key(idempotency_key: object) -> str:
    """Return an idempotency key; '' means no key. Raises InvalidInput."""
    return check_text("idempotency_key", idempotency_key, MAX_KEY_LENGTH, least=0)


TRACEPARENT = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})", re.ASCII)
"""A context of W3C Trace Context: the ids of a trace and of a span, and flags."""


def check_batch(doc: BatchDoc, *, checks_sequence: bool = True) -> SequenceHeader | None:
    """Check a batch without its jobs, and return the header of its sequence for ``check_jobs`` (None without one).

    Only the form of the device's name is checked. checks_sequence: False for a device that accepts any text as a
    sequence; the header is then None.
    """
    check_text("device", doc.device, MAX_DEVICE_LENGTH)
    for field in ("name", "user", "parent_id"):
        if getattr(doc, field) is not None:
            check_text(field, getattr(doc, field), MAX_NAME_LENGTH)
    if doc.trace is not None:
        _check_trace(doc.trace)
    check_tags(doc.tags)
    if doc.webhook is not None:
        _check_webhook(doc.webhook)
    if doc.backend_configuration is not None:
        _check_backend_configuration(doc.backend_configuration)
    if doc.configuration is not None:
        _check_configuration(doc.configuration)
    _check_limits(doc.limits)
    if doc.rules is not None:
        check_rules(doc.rules)
    if not checks_sequence:
        _check_any_sequence("sequence", doc.sequence)
        return None
    return None if doc.sequence is None else read_sequence(doc.sequence)


def _check_trace(trace: object) -> None:
    if not isinstance(trace, str) or not TRACEPARENT.fullmatch(trace):
        raise InvalidInput("trace", f"is not a valid traceparent of W3C Trace Context (got {_shown(trace)})")


def check_jobs(
    jobs: Sequence[JobSpec],
    header: SequenceHeader | None,
    *,
    max_runs: int,
    needs_runs: bool,
    geometry: Geometry = ANYWHERE,
    checks_sequence: bool = True,
) -> None:
    """Check the jobs of one call against the header of their batch's sequence.

    Args:
        jobs: The jobs of one call.
        header: The header of the batch's sequence; None if the batch has no sequence and each job has its own.
        max_runs: The most shots of a job on the device.
        needs_runs: Whether ``runs`` is required, because no ``backend_configuration`` sets the number of shots.
        geometry: The limits of the device on the register.
        checks_sequence: False for a device that accepts any sequence and variables: only their types are checked.

    Raises:
        InvalidInput: Names the field of the invalid value.
    """
    if not isinstance(jobs, (list, tuple)):
        raise InvalidInput("jobs", f"expected a list of jobs, got {_shown(jobs)}")
    if len(jobs) > MAX_JOBS_PER_CALL:
        raise InvalidInput(
            "jobs",
            f"at most {MAX_JOBS_PER_CALL} jobs are allowed in one call (got {len(jobs)}); add the rest with more calls",
        )
    if header is not None:
        check_register(header, geometry)
    values = None if header is None else _ExpectedValues(header)
    own_sequences: set[str] = set()
    for index, job in enumerate(jobs):
        if not isinstance(job, JobSpec):
            raise InvalidInput(f"jobs[{index}]", f"expected a job, got {_shown(job)}")
        if type(job.runs) is not int or not 1 <= job.runs <= max_runs:
            _check_runs(index, job.runs, max_runs, needs_runs)
        if job.seed is not None:
            _check_seed(index, job.seed)
        if not checks_sequence:
            _check_any_sequence(f"jobs[{index}].sequence", job.sequence)
            _check_any_variables(index, job.variables)
        elif job.sequence is not None:
            _check_own_sequence(index, job, own_sequences, geometry)
        elif values is not None:
            values.check(index, job.variables)
        else:
            raise InvalidInput(f"jobs[{index}].sequence", "is required because the batch has no sequence")


def list_jobs(jobs: object) -> list[Any]:
    """Return the jobs of a call as a list. Raises InvalidInput, also for a single job outside a list."""
    if isinstance(jobs, (JobSpec, dict)):
        raise InvalidInput("jobs", "expected a list of jobs, got a single job; put it in a list: [job]")
    return check_list("jobs", jobs, "jobs")


def as_limits(limits: object) -> Limits:
    """Convert a dictionary with some of the fields of ``Limits``; None means the defaults. Raises InvalidInput."""
    if limits is None or isinstance(limits, Limits):
        return limits or Limits()
    if not isinstance(limits, dict):
        raise InvalidInput("limits", f"expected Limits or a dictionary of its fields, got {_shown(limits)}")
    fields = Limits.__struct_fields__
    for name in limits:
        if name not in fields:
            raise InvalidInput(
                f"limits.{quote_name(name)}",
                f"is not a limit{suggest_name(name, fields)}; the limits are {', '.join(fields)}",
            )
    return Limits(**{name: _plain(f"limits.{name}", value) for name, value in limits.items()})


def as_job_spec(job: object, index: int) -> JobSpec:
    """Convert a JobSpec, or a dictionary with some of its keys, to a JobSpec of plain values.

    numpy numbers and arrays, and other objects with ``tolist()``, become plain numbers and lists. Integer qubit ids
    become strings, as in Pulser's format. A Pulser ``Sequence`` is serialised. ``runs`` and ``seed`` may be floats
    without a fraction. The values are checked later, by
    ``check_jobs``. index: position of the job, for the field names of errors.
    """
    parent_id, runs_shown = None, None
    if isinstance(job, JobSpec):
        given = {key: getattr(job, key) for key in _JOB_KEYS}
        parent_id, runs_shown = job.parent_id, job.runs_shown
    elif isinstance(job, dict):
        for key in job:
            if key not in _JOB_KEYS:
                raise InvalidInput(
                    f"jobs[{index}].{quote_name(key)}",
                    f"is not a field of a job{suggest_name(key, _JOB_KEYS)}; the fields are {', '.join(_JOB_KEYS)}",
                )
        given = job
    else:
        raise InvalidInput(
            f"jobs[{index}]", f"expected a JobSpec or a dictionary with {', '.join(_JOB_KEYS)}, got {_shown(job)}"
        )
    sequence = given.get("sequence")
    if sequence is not None:
        with _in_job(index):
            sequence = sequence_text(sequence)
    variables = given.get("variables")
    if isinstance(variables, dict):
        variables = {
            _plain_name(name): value
            if type(value) is float
            else _plain(f"jobs[{index}].variables.{quote_name(name)}", value)
            for name, value in variables.items()
        }
    return JobSpec(
        runs=_whole(_plain(f"jobs[{index}].runs", given.get("runs"))),
        variables={} if variables is None else variables,
        seed=_whole(_plain(f"jobs[{index}].seed", given.get("seed"))),
        sequence=sequence,
        parent_id=parent_id,
        runs_shown=runs_shown,
    )


class _ExpectedValues:
    """The values that a job without its own sequence must provide, compiled once from the header.

    Pulser needs the values of the declared variables only to build the sequence. A sequence that does not
    use its variables runs as it is, so their values may be omitted.
    """

    def __init__(self, header: SequenceHeader) -> None:
        self._header = header
        self._names = header.variables.keys() | ({"qubits"} if header.mappable else set())
        self._variables = [
            (name, declared, declared.size == 1, declared.type is VariableType.FLOAT)
            for name, declared in header.variables.items()
        ]

    def check(self, index: int, variables: object) -> None:
        if not isinstance(variables, dict):
            raise InvalidInput(
                f"jobs[{index}].variables", f"expected a dictionary of values by name, got {_shown(variables)}"
            )
        if variables.keys() != self._names:
            self._check_names(index, variables)
            if not variables:
                return
        for name, declared, is_scalar, takes_fractions in self._variables:
            value = variables.get(name)
            if is_scalar:  # by far the most frequent case, without a call
                if takes_fractions and type(value) is float and isfinite(value):
                    continue
                if type(value) is int and -MAX_INTEGER <= value <= MAX_INTEGER:
                    continue
            if name in variables:
                _check_value(f"jobs[{index}].variables.{quote_name(name)}", value, declared)
        if self._header.mappable:
            self._check_qubits(f"jobs[{index}].variables.qubits", variables["qubits"])

    def _check_names(self, index: int, variables: dict[Any, Any]) -> None:
        for name in variables:
            if name not in self._names:
                self._refuse_name(f"jobs[{index}].variables.{quote_name(name)}", name)
        if self._header.needs_build:
            for name in self._header.variables:
                if name not in variables:
                    raise InvalidInput(
                        f"jobs[{index}].variables.{quote_name(name)}", "is missing; the sequence declares this variable"
                    )
            if self._header.mappable and "qubits" not in variables:
                raise InvalidInput(
                    f"jobs[{index}].variables.qubits",
                    "is missing; the register is mappable, so each job must assign a trap to each qubit",
                )

    def _refuse_name(self, field: str, name: object) -> Never:
        if name == "qubits":
            raise InvalidInput(field, "is only allowed with a mappable register; this register has fixed positions")
        if not self._names:
            raise InvalidInput(field, "is not a variable of the sequence, which declares none")
        known = f"it declares {list_names(sorted(self._names))}"
        raise InvalidInput(field, f"is not a variable of the sequence{suggest_name(name, self._names)}; {known}")

    def _check_qubits(self, field: str, places: object) -> None:
        """Apply the rules of Pulser's ``MappableRegister.build_register`` and ``RegisterLayout.define_register``."""
        if not isinstance(places, dict) or not places:
            raise InvalidInput(field, f"expected a dictionary from qubit ids to trap ids, got {_shown(places)}")
        ids, traps = self._header.qubit_ids, self._header.traps or 0
        first = ids[: len(places)]
        if places.keys() != set(first):
            for qubit in places.keys() - set(ids):
                raise InvalidInput(
                    f"{field}.{quote_name(qubit)}",
                    f"is not a qubit of the register{suggest_name(qubit, ids)}; its qubits are {list_names(ids)}",
                )
            raise InvalidInput(
                field, f"must place the first {len(places)} qubits of the register, in any order: {list_names(first)}"
            )
        taken: dict[int, str] = {}
        for qubit, trap in places.items():
            if type(trap) is not int or not 0 <= trap < traps:
                raise InvalidInput(
                    f"{field}.{quote_name(qubit)}", f"expected the id of a trap, 0 to {traps - 1}, got {_shown(trap)}"
                )
            if trap in taken:
                raise InvalidInput(f"{field}.{quote_name(qubit)}", f"trap {trap} is already taken by {taken[trap]}")
            taken[trap] = qubit


def _check_value(field: str, value: object, declared: DeclaredVariable) -> None:
    whole = declared.type is VariableType.INT
    if not isinstance(value, (list, tuple)):
        _check_number(field, value, whole=whole)
        if declared.size != 1:
            raise InvalidInput(field, f"expected a list of {declared.size} values, got a single number")
        return
    if len(value) != declared.size:
        plural = "value" if declared.size == 1 else "values"
        raise InvalidInput(field, f"expected {declared.size} {plural}, got {len(value)}")
    for position, item in enumerate(value):
        if whole or type(item) is not float or not isfinite(item):
            _check_number(f"{field}[{position}]", item, whole=whole)


def _check_number(field: str, value: object, *, whole: bool) -> None:
    if type(value) is int:
        fits = -MAX_INTEGER <= value <= MAX_INTEGER
    elif type(value) is float and isfinite(value):
        fits = not whole or (value.is_integer() and abs(value) <= MAX_INTEGER)
    else:
        fits = False
    if not fits:
        expected = "a whole number (the variable is of type int)" if whole else "a finite number"
        raise InvalidInput(field, f"expected {expected} that fits in 64 bits, got {_shown(value)}")


def _check_runs(index: int, runs: object, max_runs: int, needs_runs: bool) -> None:
    field = f"jobs[{index}].runs"
    if runs is None:
        if needs_runs:
            raise InvalidInput(field, f"is missing; give the number of shots, 1 to {max_runs}")
    elif type(runs) is not int or not 1 <= runs <= max_runs:
        raise InvalidInput(field, f"expected a whole number from 1 to {max_runs}, got {_shown(runs)}")


def _check_seed(index: int, seed: object) -> None:
    if type(seed) is not int or not 0 <= seed <= MAX_SEED:
        raise InvalidInput(f"jobs[{index}].seed", f"expected a whole number from 0 to {MAX_SEED}, got {_shown(seed)}")


def _check_own_sequence(index: int, job: JobSpec, read_before: set[str], geometry: Geometry) -> None:
    variables: object = job.variables
    if not isinstance(variables, dict) or variables:
        raise InvalidInput(
            f"jobs[{index}].variables", "cannot be combined with the job's own sequence; build the sequence with them"
        )
    text: object = job.sequence
    if isinstance(text, str) and text in read_before:
        return
    with _in_job(index):
        header = read_sequence(text)  # type: ignore[arg-type]  # it checks the type too
        if header.mappable:
            raise InvalidInput("sequence", "has a mappable register; a job's own sequence must be built first")
        if header.parametrized:
            raise InvalidInput(
                "sequence",
                f"needs values of {list_names(list(header.variables))}; a job's own sequence must be built first",
            )
        check_register(header, geometry)
    read_before.add(str(text))


@contextmanager
def _in_job(index: int) -> Iterator[None]:
    """Prefix the field of an InvalidInput with ``jobs[…]``."""
    try:
        yield
    except InvalidInput as error:
        raise InvalidInput(f"jobs[{index}].{error.field}", error.problem) from error.__cause__


def _check_any_sequence(field: str, sequence: object) -> None:
    """Check the sequence for a device that accepts any text."""
    if sequence is not None:
        check_text(field, sequence, MAX_SEQUENCE_BYTES, least=0, lines=True)


def _check_any_variables(index: int, variables: object) -> None:
    """Check the variables for a device that accepts any JSON values."""
    field = f"jobs[{index}].variables"
    if not isinstance(variables, dict):
        raise InvalidInput(field, f"expected a dictionary of values by name, got {_shown(variables)}")
    for name, value in variables.items():
        if type(name) is not str:
            raise InvalidInput(field, f"names must be strings, got {_shown(name)}")
        check_characters(field, name)
        if type(value) is not float or not isfinite(value):
            _check_json(f"{field}.{quote_name(name)}", value, MAX_VARIABLES_BYTES)


def check_tags(tags: object) -> None:
    """Check the number and length of the tags of a batch, and that none is repeated."""
    if not isinstance(tags, (list, tuple)):
        raise InvalidInput("tags", f"expected a list of strings, got {_shown(tags)}")
    if len(tags) > MAX_TAGS:
        raise InvalidInput("tags", f"at most {MAX_TAGS} tags are allowed (got {len(tags)})")
    for position, tag in enumerate(tags):
        check_text(f"tags[{position}]", tag, MAX_TAG_LENGTH)
        if tag in tags[:position]:
            raise InvalidInput(f"tags[{position}]", f"is a duplicate: {_shown(tag)}")


def _check_webhook(webhook: object) -> None:
    """Check the form of the URL only: its target is checked when it is called."""
    url = check_text("webhook", webhook, MAX_WEBHOOK_LENGTH)
    if any(character.isspace() or character == "\\" for character in url):
        raise InvalidInput("webhook", "must not contain spaces, backslashes or control characters")
    try:
        parts = urlsplit(url)
        complete = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError as error:  # the port is not a number, or the brackets do not contain an IPv6 address
        raise InvalidInput("webhook", f"expected a complete http or https URL, got {_shown(url)}") from error
    if not complete:
        raise InvalidInput("webhook", f"expected a complete http or https URL, got {_shown(url)}")
    if "@" in parts.netloc:
        raise InvalidInput("webhook", "must not contain a user name or password; deliveries are signed instead")


def _check_backend_configuration(text: object) -> None:
    """Check that it is a JSON object as Python and Pulser read it: a bare ``Infinity`` is a number."""
    field, expected = "backend_configuration", "expected a JSON object in a string (EmulationConfig.to_abstract_repr())"
    if not isinstance(text, str):
        raise InvalidInput(field, f"{expected}, got {_shown(text)}")
    check_characters(field, text, lines=True)
    if len(text.encode()) > MAX_CONFIGURATION_BYTES:
        raise InvalidInput(field, f"must be at most {MAX_CONFIGURATION_BYTES >> 20} MiB")
    try:
        document = json.loads(text)
    except RecursionError as error:
        raise InvalidInput(field, "is nested too deeply") from error
    except ValueError as error:
        raise InvalidInput(field, f"{expected}, but it is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise InvalidInput(field, f"{expected}, got {_shown(document)}")


def _check_configuration(configuration: object) -> None:
    if not isinstance(configuration, dict):
        raise InvalidInput("configuration", f"expected a dictionary of emulator options, got {_shown(configuration)}")
    _check_json("configuration", configuration, MAX_CONFIGURATION_BYTES)


def _check_json(whole: str, given: object, most: int) -> None:
    """Raise InvalidInput unless it is a JSON value of at most ``most`` bytes that is not nested too deeply."""
    too_large = InvalidInput(whole, f"must be at most {most >> 20} MiB as JSON")
    left = most  # a value takes at least one byte, an item one more; this also stops at values that contain themselves
    pending: list[tuple[str, object, int]] = [(whole, given, 0)]
    while pending:
        field, value, depth = pending.pop()
        left -= 1 + (len(value) if isinstance(value, (str, list, tuple, dict)) else 0)
        if left < 0:
            raise too_large
        if depth > MAX_CONFIGURATION_DEPTH:
            raise InvalidInput(field, f"is nested more than {MAX_CONFIGURATION_DEPTH} levels deep")
        for key, item in _json_items(field, value):
            pending.append((f"{whole}.{quote_name(key)}" if depth == 0 else field, item, depth + 1))
    if isinstance(given, (str, list, tuple, dict)) and len(msgspec.json.encode(given)) > most:
        raise too_large


def _json_items(field: str, value: object) -> Iterable[tuple[object, object]]:
    """Return the parts of a JSON value by key or position. Raises InvalidInput when it is not a JSON value."""
    if type(value) is dict:
        for key in value:
            if type(key) is not str:
                raise InvalidInput(field, f"keys must be strings, got {_shown(key)}")
            check_characters(field, key)
        return value.items()
    if type(value) is list or type(value) is tuple:
        return enumerate(value)
    if type(value) is int or type(value) is float:
        _check_number(field, value, whole=False)
    elif type(value) is str:
        check_characters(field, value, lines=True)
    elif value is not None and type(value) is not bool:
        raise InvalidInput(field, f"expected a JSON value, got {_shown(value)}")
    return ()


def _check_limits(limits: object) -> None:
    if not isinstance(limits, Limits):
        raise InvalidInput("limits", f"expected Limits, got {_shown(limits)}")
    for name, most in (("job_timeout_s", MAX_JOB_TIMEOUT_S), ("open_timeout_s", MAX_OPEN_TIMEOUT_S)):
        value = getattr(limits, name)
        if type(value) not in (int, float) or not 0 < value <= most:
            raise InvalidInput(
                f"limits.{name}", f"expected a number of seconds above 0, at most {most:.0f}, got {_shown(value)}"
            )
    retries: object = limits.transient_retries
    if type(retries) is not int or not 0 <= retries <= MAX_TRANSIENT_RETRIES:
        raise InvalidInput(
            "limits.transient_retries",
            f"expected a whole number from 0 to {MAX_TRANSIENT_RETRIES}, got {_shown(retries)}",
        )


def _plain(field: str, value: Any) -> Any:
    """Convert numpy types and the like to plain values; what cannot be converted stays for the checks to reject."""
    if value is None or type(value) in (int, float, bool, str):
        return value
    if isinstance(value, (list, tuple)):
        return [item if type(item) is float else _plain_item(f"{field}[{i}]", item) for i, item in enumerate(value)]
    if isinstance(value, dict):
        plain = {_plain_qubit(qubit): _plain_item(field, trap) for qubit, trap in value.items()}
        if len(plain) != len(value):
            raise InvalidInput(field, "has the same qubit id twice, as a number and as a string")
        return plain
    return _plain_item(field, value)


def _whole(value: Any) -> Any:
    """Convert a float without a fraction, as computations with numpy return, to an integer."""
    return int(value) if type(value) is float and value.is_integer() else value


def _plain_item(field: str, value: Any) -> Any:
    to_list = getattr(value, "tolist", None)
    if not callable(to_list):
        return value
    try:
        return to_list()
    except Exception as error:  # foreign code
        raise InvalidInput(field, f"cannot be read as numbers: {error}") from error


def _plain_name(name: Any) -> Any:
    return str(name) if isinstance(name, str) else name


def _plain_qubit(qubit: Any) -> Any:
    plain = qubit if type(qubit) is str else _plain_item("qubits", qubit)
    return str(plain) if type(plain) is int else _plain_name(plain)


def list_names(names: Sequence[str]) -> str:
    """Return names separated by commas; of many, the first and the number of the others."""
    listed = ", ".join(quote_name(name) for name in names[:_LISTED_NAMES])
    return f"{listed} and {len(names) - _LISTED_NAMES} more" if len(names) > _LISTED_NAMES else listed


def suggest_name(name: object, known: Collection[str]) -> str:
    """Return `` (did you mean …?)`` if a known name is close; '' for names that would take long to compare."""
    if not isinstance(name, str) or len(name) > NAME_LENGTH or len(known) > _COMPARED_NAMES:
        return ""
    candidates = {candidate.lower(): candidate for candidate in known if len(candidate) <= NAME_LENGTH}
    matches = difflib.get_close_matches(name.lower(), candidates, n=1)
    return f" (did you mean {quote_name(candidates[matches[0]])}?)" if matches else ""
