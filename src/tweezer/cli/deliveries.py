"""The commands of ``tweezer webhooks`` about deliveries: the log, resend, replay, samples and the schema."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from uuid import UUID

import click
import msgspec

from tweezer.cli import show
from tweezer.cli.options import (
    Options,
    exit_unless,
    json_option,
    parse_duration,
    pass_options,
    print_json,
    print_list,
    print_result,
)
from tweezer.ledger.access.projects import find_project
from tweezer.ledger.access.vault import Vault
from tweezer.ledger.schema import as_datetime
from tweezer.model.errors import InvalidInput, Unavailable
from tweezer.model.signatures import ID_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER, check_secret, sign
from tweezer.model.webhooks import EventType, envelope, schemas
from tweezer.webhooks import delivery_log
from tweezer.webhooks.deliveries import Alarms, Attempt
from tweezer.webhooks.delivery_log import Delivery, DeliveryFilter, DeliveryStatus, find_delivery, list_deliveries
from tweezer.webhooks.endpoints import find_endpoint
from tweezer.webhooks.samples import sample as sample_of
from tweezer.webhooks.secrets import SecretOwner, show_secret

if TYPE_CHECKING:
    from tweezer.ledger.database import Database


_ANSWER_SHOWN = 200


def moment(text: str) -> datetime:
    """Parse an option such as ``2h`` (ago), or a time in ISO 8601, by default in UTC."""
    try:
        found = datetime.fromisoformat(text.strip())
    except ValueError:
        try:
            return datetime.now(UTC) - timedelta(seconds=parse_duration(text))
        except click.BadParameter:
            raise click.BadParameter(
                f"{text!r} is not a valid time; use e.g. 2h (ago), 30min or 2026-11-22T10:00:00"
            ) from None
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found


_endpoint = click.option("--endpoint", type=click.UUID, metavar="ID", help="Select deliveries to this endpoint.")
_batch = click.option("--batch", type=click.UUID, metavar="ID", help="Select events of this batch.")
_type = click.option(
    "--type",
    "type_",
    type=click.Choice([it.value for it in EventType]),
    metavar="TYPE",
    help="Select events of this type.",
)
_since = click.option(
    "--since", type=moment, metavar="TIME", help="Select deliveries since 2h (ago), or a time in ISO 8601."
)


@click.command()
@click.argument("delivery", type=click.UUID, required=False)
@_endpoint
@_batch
@click.option(
    "--status", type=click.Choice([it.value for it in DeliveryStatus]), help="Select deliveries with this status."
)
@_type
@_since
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="Maximum number to list.")
@click.option("--all-projects", is_flag=True, help="Select all projects.")
@json_option
@pass_options
def deliveries(
    options: Options,
    *,
    delivery: UUID | None,
    endpoint: UUID | None,
    batch: UUID | None,
    status: str | None,
    type_: str | None,
    since: datetime | None,
    limit: int,
    all_projects: bool,
    as_json: bool,
) -> None:
    """List deliveries, newest first, or show one DELIVERY.

    With the id of a DELIVERY, all its attempts and its body are shown.
    """
    if delivery is not None:
        with options.reading() as connection:
            one = find_delivery(connection, delivery)
        print_result(_about(one), "\n".join([*describe(one), "", one.body or ""]), as_json=as_json)
        return
    wanted = DeliveryFilter(endpoint, batch, None if status is None else DeliveryStatus(status), type_, since)
    projects = None if all_projects or endpoint or batch else [options.settings().project_id]
    with options.ledger() as database:
        found = _newest_first(database, projects, wanted, limit)
    print_list(found, _HEADER, _row, none="No matching deliveries.", as_json=as_json, about=_about)


@click.command()
@click.argument("delivery", type=click.UUID, required=False)
@_endpoint
@_since
@click.option("--all", "everything", is_flag=True, help="Include successful deliveries.")
@json_option
@pass_options
def resend(
    options: Options,
    *,
    delivery: UUID | None,
    endpoint: UUID | None,
    since: datetime | None,
    everything: bool,
    as_json: bool,
) -> None:
    """Send a delivery again, or all that failed since a time.

    Give the id of a DELIVERY, or --endpoint and --since. The receiver gets the same id and body, with a new signature.
    """
    if (delivery is None) == (endpoint is None) or (endpoint is None) != (since is None):
        raise click.UsageError("give the id of a delivery, or --endpoint ID and --since TIME")
    with options.writing() as connection:
        if delivery is not None:
            endpoint, count = delivery_log.resend(connection, delivery).endpoint, 1
        else:
            assert endpoint is not None
            assert since is not None
            find_endpoint(connection, endpoint)
            count = delivery_log.resend_since(connection, endpoint, since, all=everything)
    if count:
        notify_couriers(options, lambda alarms: alarms.arm(endpoint, None))
    print_result({"count": count}, f"Resending {count} deliver{'y' if count == 1 else 'ies'}.", as_json=as_json)


@click.command()
@click.argument("url")
@_endpoint
@_batch
@_type
@_since
@click.option(
    "--limit", type=click.IntRange(1), default=1000, show_default=True, help="Maximum number; the newest ones are sent."
)
@json_option
@pass_options
def replay(
    options: Options,
    *,
    url: str,
    endpoint: UUID | None,
    batch: UUID | None,
    type_: str | None,
    since: datetime | None,
    limit: int,
    as_json: bool,
) -> None:
    """Send stored deliveries to URL, to test a receiver.

    URL may be local. The oldest delivery is sent first. Each keeps its id and body, and gets a new signature with its
    endpoint's secret. Nothing is logged or retried. The exit code is 1 if a delivery failed.
    """
    _check_local(url)
    wanted = DeliveryFilter(endpoint, batch, None, type_, since)
    projects = None if endpoint or batch else [options.settings().project_id]
    with options.ledger() as database:
        found = _newest_first(database, projects, wanted, limit)
        posts = list(_signed(database, options.settings().vault(), found[::-1]))
    failed = asyncio.run(_post_all(url, posts, options.settings().webhook.timeout_s, as_json=as_json))
    if not as_json:
        show.echo(f"{len(posts) - failed} of {len(posts)} were accepted.")
    exit_unless(not failed)


@click.command()
@click.argument("type_", metavar="[TYPE]", type=click.Choice([it.value for it in EventType]), default="job.done")
@click.option("--url", help="Post the sample to this URL, signed.")
@click.option("--secret", help="Secret to sign with  [default: that of the project].")
@pass_options
def sample(options: Options, *, type_: str, url: str | None, secret: str | None) -> None:
    """Print or post a sample webhook of TYPE (default: job.done)."""
    example = sample_of(type_)
    body = envelope(example.type, example.timestamp, example.data)
    if url is None:
        click.echo(json.dumps(json.loads(body), indent=2, ensure_ascii=False))
        return
    _check_local(url)
    settings = options.settings()
    if secret is None:
        with options.writing() as connection:
            owner = SecretOwner(find_project(connection, settings.project_id).no)
            secret = show_secret(connection, options.settings().vault(), owner).secret
    check_secret(secret)
    posts = [_Post(example.id, example.type, body, secret)]
    exit_unless(not asyncio.run(_post_all(url, posts, settings.webhook.timeout_s, as_json=False)))


@click.command()
def schema() -> None:
    """Print the JSON Schemas of all webhook bodies."""
    click.echo(json.dumps(schemas(), indent=2, ensure_ascii=False))


COMMANDS = (deliveries, resend, replay, sample, schema)


# -- how deliveries are shown -------------------------------------------------------------------------------


_HEADER = ("delivery", "written", "type", "batch", "", "last attempt")


def _row(it: Delivery) -> tuple[object, ...]:
    last = _attempt(it.log[-1]) if it.log else "none yet"
    return it.id, show.minute(it.created), it.type, it.batch or "-", it.status.value, last


def format_deliveries(found: Sequence[Delivery]) -> list[str]:
    """Return a table of deliveries."""
    return show.table(_HEADER, [_row(it) for it in found])


def describe(delivery: Delivery) -> list[str]:
    """Describe a delivery, with a line for each attempt."""
    number = "" if delivery.sequence is None else f", event {delivery.sequence} of batch {delivery.batch}"
    lines = [
        f"Delivery {delivery.id}: {delivery.type}{number}, to endpoint {delivery.endpoint}",
        f"  webhook-id {delivery.event}",
        f"  {delivery.status.value}" + ("" if delivery.due is None else f", next attempt {_second(delivery.due)}"),
    ]
    for attempt in delivery.log:
        lines.append(f"  {attempt.number}. {_second(as_datetime(attempt.at_ms))}  {_attempt(attempt)}")
        if attempt.answer:
            lines.append(f"     {_one_line(attempt.answer)}")
    return lines


def _attempt(attempt: Attempt) -> str:
    outcome = attempt.error or f"HTTP {attempt.status}"
    following = "" if attempt.next_ms is None else f", next {_second(as_datetime(attempt.next_ms))}"
    return f"{outcome} after {attempt.ms} ms{following}"


def _one_line(text: str) -> str:
    """Return the beginning of an untrusted response, safe to print on a terminal."""
    plain = "".join(letter if letter.isprintable() else " " for letter in text[:_ANSWER_SHOWN])
    return plain + ("…" if len(text) > _ANSWER_SHOWN else "")


def _second(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"


def _about(delivery: Delivery) -> dict[str, Any]:
    """Return a delivery for ``--json``, with its attempts as objects."""
    log = [msgspec.structs.asdict(attempt) for attempt in delivery.log]
    about: dict[str, Any] = msgspec.to_builtins(delivery) | {"log": log}
    if delivery.body is None:
        del about["body"]
    return about


def _newest_first(
    database: Database, projects: Sequence[str] | None, wanted: DeliveryFilter, most: int
) -> list[Delivery]:
    """Return deliveries, newest first; events of a batch from the same millisecond are ordered by sequence number."""
    found: list[Delivery] = []
    after: str | None = None
    while len(found) < most:
        with database.read() as connection:
            limit = min(most - len(found), delivery_log.LIMIT_MAX)
            page = list_deliveries(connection, projects, wanted, limit=limit, after=after)
        found += page.rows
        after = page.after
        if after is None:
            break
    return sorted(found, key=lambda it: (it.created, it.sequence or 0), reverse=True)


# -- sending from here --------------------------------------------------------------------------------------


class _Post(msgspec.Struct, frozen=True):
    """A webhook to post."""

    id: str
    type: str
    body: bytes
    secret: str

    def headers(self) -> Mapping[str, str]:
        """Return the headers, signed with the current time."""
        sent = int(time.time())
        return {
            "Content-Type": "application/json",
            ID_HEADER: self.id,
            TIMESTAMP_HEADER: str(sent),
            SIGNATURE_HEADER: sign(self.secret, self.id, sent, self.body),
        }


def _check_local(url: str) -> None:
    """Raise InvalidInput unless this is an HTTP URL. The operator's command may call any address."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidInput("url", "is not a complete http or https URL; use e.g. http://127.0.0.1:8808/")


def _signed(database: Database, vault: Vault, found: Sequence[Delivery]) -> Iterator[_Post]:
    secrets: dict[UUID, str] = {}
    for it in found:
        with database.write() as connection:
            if it.endpoint not in secrets:
                owner = find_endpoint(connection, it.endpoint).secret_owner
                secrets[it.endpoint] = show_secret(connection, vault, owner).secret
            body = find_delivery(connection, it.id).body or ""
        yield _Post(it.event, it.type, body.encode(), secrets[it.endpoint])


async def _post_all(url: str, posts: Sequence[_Post], timeout_s: float, *, as_json: bool) -> int:
    """Post the webhooks in order and print each result; return the number of failures."""
    import aiohttp

    failed = 0
    async with aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=timeout_s), cookie_jar=aiohttp.DummyCookieJar()
    ) as session:
        for post in posts:
            began, status, error = time.monotonic(), None, None
            try:
                async with session.post(url, data=post.body, headers=post.headers(), allow_redirects=False) as answer:
                    status = answer.status
            except TimeoutError:
                error = f"no answer within {timeout_s:g} s"
            except aiohttp.ClientError as raised:
                error = str(raised) or type(raised).__name__
            taken = status is not None and 200 <= status < 300
            failed += not taken
            outcome = {"id": post.id, "type": post.type, "status": status, "error": error}
            milliseconds = round((time.monotonic() - began) * 1000)
            if as_json:
                print_json(outcome | {"ms": milliseconds})
            else:
                show.echo(f"{post.type:<16}  {post.id}  {error or f'HTTP {status}'} after {milliseconds} ms")
    return failed


def notify_couriers(options: Options, act: Callable[[Alarms], Awaitable[None]]) -> None:
    """Set an alarm, or report a change of endpoints. Without Redis, warn: couriers notice the change later."""
    try:
        options.run_store(lambda store: act(Alarms(store)))
    except Unavailable as error:
        show.echo(f"The couriers could not be notified and will notice the change later: {error.message}", err=True)
