"""Shared parts of all commands: the global options, access to queue and ledger, output, and parsers of values."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from tweezer.cli import show
from tweezer.data_folder import API_URL, REDIS_URL
from tweezer.model.errors import InvalidInput, TweezerError, Unavailable, install_command

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from tweezer.client import AsyncQueue
    from tweezer.ledger.config import OpenDatabase
    from tweezer.ledger.database import Database
    from tweezer.settings import Settings
    from tweezer.store.connection import Store
    from tweezer.transports.protocol import Address

S = TypeVar("S")
T = TypeVar("T")

_IMPATIENT_S = 2.0
_PATIENT_S = 60.0


class Options(NamedTuple):
    """The global options; None leaves a setting to the environment."""

    redis: str | None = None
    api: str | None = None
    key_file: Path | None = None
    project: str | None = None
    namespace: str | None = None

    def settings(self, given: Mapping[str, object] | None = None) -> Settings:
        """Load the settings, overridden by the global options and by ``given`` (key to value; None is not set).

        Raises InvalidInput.
        """
        from tweezer.settings import load

        options = {"redis.url": self.redis, "namespace": self.namespace, "project_id": self.project, **(given or {})}
        return load({key: value for key, value in options.items() if value is not None})

    @property
    def api_url(self) -> str | None:
        """URL of the API, if the commands for users work through it: that of an option, else of the environment."""
        if self.api is not None:
            return self.api
        has_redis = self.redis or (os.environ.get(REDIS_URL) and self.key_file is None)
        return None if has_redis else os.environ.get(API_URL) or None

    @asynccontextmanager
    async def queue(self, *, patient: bool = False) -> AsyncIterator[AsyncQueue]:
        """Open the project's queue. Raises Unavailable when Redis or the API does not answer.

        patient: retry for a minute if it goes away later.
        """
        from tweezer.client import AsyncQueue
        from tweezer.transports.direct import DirectTransport

        transport = self._address().open()
        async with AsyncQueue(transport, retry_s=_PATIENT_S if patient else _IMPATIENT_S) as queue:
            if isinstance(transport, DirectTransport):
                with _explaining_outage():
                    await transport.store.reader.ping()
            elif patient:
                await transport.devices()  # if it is away now, report that at once
            yield queue

    def _address(self) -> Address:
        """Return where the queue is. Raises InvalidInput."""
        from tweezer.client import locate_api
        from tweezer.model.arguments import read_secret
        from tweezer.transports.direct import DirectAddress

        if (url := self.api_url) is not None:
            key = None if self.key_file is None else read_secret("--key-file", self.key_file)
            project = self.project or os.environ.get("TWEEZER_PROJECT_ID") or None
            try:
                return locate_api(url, os.environ, key=key, project=project)
            except InvalidInput as error:
                where = "--api" if self.api is not None else API_URL
                raise InvalidInput(where if error.field == "url" else error.field, error.problem) from error
        if self.key_file is not None:
            raise InvalidInput("--key-file", "is for the API; give its URL with --api or TWEEZER_API_URL")
        settings = self.settings()
        return DirectAddress(settings.connect(), settings.project_id, _ledger(settings))

    def run(self, act: Callable[[AsyncQueue], Awaitable[T]], *, patient: bool = False) -> T:
        """Call ``act`` with the project's queue and return its result."""
        return _run(self.queue(patient=patient), act)

    @asynccontextmanager
    async def store(self) -> AsyncIterator[Store]:
        """Open the store, for commands that need Redis itself. Raises Unavailable when Redis does not answer."""
        from tweezer.store.connection import Store

        async with Store.open(self.settings().connect()) as store:
            with _explaining_outage(instead_of=self.api_url):
                await store.reader.ping()
            yield store

    def run_store(self, act: Callable[[Store], Awaitable[T]]) -> T:
        """Call ``act`` with the store and return its result."""
        return _run(self.store(), act)

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """Open a transaction of the ledger. Raises TweezerError."""
        with self.ledger() as database, database.write() as connection:
            yield connection

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Open the ledger for reading. Raises TweezerError."""
        with self.ledger() as database, database.read() as connection:
            yield connection

    def ledger(self, *, at_any_step: bool = False) -> AbstractContextManager[Database]:
        """Open the ledger's database for the running command; see :func:`open_ledger`."""
        names, context = list[str](), click.get_current_context()
        while context.parent is not None:
            names.insert(0, str(context.info_name))
            context = context.parent
        settings = self.settings()
        if self.api_url is not None and not at_any_step and _ledger(settings) is None:
            raise TweezerError(f"there is no ledger here; {name_host('the ledger', self.api_url)}", code="schema")
        return open_ledger(settings, " ".join(names), at_any_step=at_any_step)


def name_host(what: str, api_url: str) -> str:
    """Return where to run a command for operators that needs more than the API."""
    return (
        f"this command is for operators: it needs {what} itself, not the API at {api_url}; run it on a host of the "
        "installation, with its settings (such as TWEEZER_REDIS_URL)"
    )


def advise_on_redis(error: TweezerError, api_url: str | None) -> str | None:
    """Return what to do if Redis cannot be used, else None. api_url: the API that the other commands use."""
    if not isinstance(error, Unavailable) and error.code != "redis_auth":
        return None
    if api_url is not None:
        return name_host("Redis", api_url)
    if isinstance(error, Unavailable):
        return "start it (`tweezer up` starts one), or give its URL with --redis or TWEEZER_REDIS_URL"
    return "give its URL with the user and the password in TWEEZER_REDIS_URL"


@contextmanager
def _explaining_outage(*, instead_of: str | None = None) -> Iterator[None]:
    """Add advice to the error of a Redis that cannot be used. instead_of: URL of the API that does not suffice."""
    try:
        yield
    except TweezerError as error:
        advice = advise_on_redis(error, instead_of)
        if advice is None:
            raise
        message = f"{error.message.rstrip('.')}; {advice}"
        if isinstance(error, Unavailable):
            raise Unavailable(message) from error
        raise TweezerError(message, code=error.code) from error


def _run(opening: AbstractAsyncContextManager[S], act: Callable[[S], Awaitable[T]]) -> T:
    import asyncio

    async def run() -> T:
        async with opening as opened:
            return await act(opened)

    return asyncio.run(run())


@contextmanager
def open_ledger(settings: Settings, command: str, *, at_any_step: bool = False) -> Iterator[Database]:
    """Open the ledger's database for a command. Raises TweezerError unless its tables are up to date.

    at_any_step: accept tables of any version, and create a missing SQLite file.
    """
    require(command, "server", "sqlalchemy", "alembic", "psycopg")
    from tweezer.ledger.database import Database
    from tweezer.ledger.migrate import require_schema

    with closing(Database.open(settings.locate_ledger(), create=at_any_step)) as database:
        if not at_any_step:
            require_schema(database)
        yield database


def _ledger(settings: Settings) -> OpenDatabase | None:
    """Return the ledger if it exists. A command that only reads must not create the default file."""
    from tweezer.ledger.config import sqlite_file

    place = settings.locate_ledger()
    file = sqlite_file(place.url)
    return place if file is None or file.exists() else None


pass_options = click.make_pass_decorator(Options)

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
yes_option = click.option("--yes", is_flag=True, help="Do not ask for confirmation.")


def overlap_option(default: str, help: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return the option for how long an old key or secret remains valid after its rotation."""
    return click.option(
        "--overlap", "overlap_s", type=parse_overlap, default=default, show_default=True, metavar="DURATION", help=help
    )


def ledger_command(
    present: Callable[..., None], *, reads_only: bool = False
) -> Callable[[Callable[..., object]], Callable[..., None]]:
    """Make a command from a function that works on the ledger, and print what the function returns.

    The function is called in a transaction with the connection and the command's parameters (with ``pass_options``, the
    global options come first). ``present`` prints its result, given ``as_json``.
    """

    def decorate(act: Callable[..., object]) -> Callable[..., None]:
        @pass_options
        def run(options: Options, /, *, as_json: bool, **given: Any) -> None:
            with options.reading() if reads_only else options.writing() as connection:
                found = act(connection, **given)
            present(found, as_json=as_json)

        functools.update_wrapper(run, act)
        return json_option(run)

    return decorate


def ledger_list(
    header: Sequence[str],
    row: Callable[[Any], Sequence[object]],
    *,
    none: str,
    about: Callable[[Any], object] | None = None,
) -> Callable[[Callable[..., object]], Callable[..., None]]:
    """Make a command from a function that reads a list from the ledger, printed with :func:`print_list`."""
    return ledger_command(
        functools.partial(print_list, header=header, row=row, none=none, about=about), reads_only=True
    )


def exit_unless(is_good: bool) -> None:
    """End the command with exit code 1 unless the flag is true."""
    if not is_good:
        raise click.exceptions.Exit(1)


def print_json(value: object) -> None:
    """Print a value as one line of JSON."""
    import msgspec

    click.echo(msgspec.json.encode(value))


def print_result(value: object, text: str, *, as_json: bool) -> None:
    """Print the result of a command: the value as JSON, else the text."""
    if as_json:
        print_json(value)
    else:
        show.echo(text)


def print_list(
    found: Sequence[T],
    header: Sequence[str],
    row: Callable[[T], Sequence[object]],
    *,
    none: str,
    as_json: bool,
    about: Callable[[T], object] | None = None,
) -> None:
    """Print a list: as JSON (of ``about(item)``, if given), as a table, or as the text ``none`` if it is empty."""
    if as_json:
        print_json(found if about is None else [about(it) for it in found])
    elif not found:
        show.echo(none)
    else:
        show.print_table(header, [row(it) for it in found])


def require(command: str, extra: str, *modules: str) -> None:
    """Raise TweezerError with the extra to install unless all these modules are installed."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise TweezerError(
            f"`tweezer {command}` needs {' and '.join(missing)}; run {install_command(extra)}", code="missing_extra"
        )


_JOB = re.compile(r"(.+)/(\d{1,8})", re.ASCII)


def split_job(text: str) -> tuple[str, int | None]:
    """Split ``BATCH/3``, or the id of a job, into the batch and the number of the job; None for a batch."""
    from uuid import UUID

    from tweezer.model.ids import split_job_id

    if match := _JOB.fullmatch(text):
        return match[1], int(match[2])
    with contextlib.suppress(ValueError):
        batch_id, index = split_job_id(UUID(text))
        return (str(batch_id), index) if index else (text, None)
    return text, None


_UNITS_S = {"s": 1, "min": 60, "h": 3600, "d": 86_400, "w": 604_800, "y": 31_536_000}
_DURATION = re.compile(rf"(\d{{1,9}})\s*({'|'.join(_UNITS_S)})", re.ASCII)


def parse_duration(text: str) -> int:
    """Parse an option such as ``90d``, ``12h`` or ``30min`` into seconds."""
    match = _DURATION.fullmatch(text.strip())
    if match is None or not int(match[1]):
        raise click.BadParameter(f"{text!r} is not a duration; use e.g. 90d, 12h or 30min")
    return int(match[1]) * _UNITS_S[match[2]]


def parse_overlap(text: str) -> int:
    """Parse a duration, or ``0``."""
    return 0 if text.strip() == "0" else parse_duration(text)


def parse_time(text: str) -> datetime:
    """Parse an option such as ``2027-01-31T08:00``, in the local time zone or with an offset; return it in UTC.

    Raises BadParameter, also for a local time that the clocks skip or repeat, which needs an offset.
    """
    try:
        given = datetime.fromisoformat(text)
        found = given.astimezone(UTC)
        if given.tzinfo is None:
            _check_local(text, given)
    except (ValueError, OverflowError, OSError):
        raise click.BadParameter(
            f"{text!r} is not a valid time; use e.g. 2027-01-31T08:00 or 2027-01-31T08:00+01:00"
        ) from None
    return found


def _check_local(text: str, given: datetime) -> None:
    earlier, later = given.replace(fold=0).astimezone(), given.replace(fold=1).astimezone()
    if earlier.utcoffset() == later.utcoffset():
        return
    examples = " or ".join(given.replace(tzinfo=it.tzinfo).isoformat(timespec="minutes") for it in (earlier, later))
    if earlier.replace(tzinfo=None) != given:
        raise click.BadParameter(f"{text!r} does not exist here, because the clocks go forward; write {examples}")
    raise click.BadParameter(f"{text!r} is ambiguous here, because the clocks go back; write {examples}")


def clock(moment: datetime) -> str:
    """Format a time in the local time zone: ``14:00 CET`` if today, ``2027-01-31 08:00 CET`` on another day."""
    here = moment.astimezone()
    return f"{here:%H:%M %Z}" if here.date() == datetime.now().astimezone().date() else f"{here:%Y-%m-%d %H:%M %Z}"
