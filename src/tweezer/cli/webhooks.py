"""``tweezer webhooks``: where webhooks go, with which secrets, and whether they arrive."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from uuid import UUID

import click
import msgspec

from tweezer.cli import show
from tweezer.cli.deliveries import COMMANDS, describe, format_deliveries, tell_couriers
from tweezer.cli.listen import listen
from tweezer.cli.options import (
    Options,
    exit_unless,
    json_option,
    ledger_list,
    overlap_option,
    pass_options,
    print_json,
    print_result,
    yes_option,
)
from tweezer.ledger.access.links import reencrypt_link_keys
from tweezer.ledger.access.projects import find_project
from tweezer.ledger.access.vault import SECRETS_SURE_S
from tweezer.model.webhooks import EventType
from tweezer.webhooks import endpoints as ledger_endpoints
from tweezer.webhooks.deliveries import Alarms
from tweezer.webhooks.delivery_log import (
    Delivery,
    DeliveryFilter,
    DeliveryStatus,
    find_delivery,
    list_deliveries,
    ping,
)
from tweezer.webhooks.endpoints import Endpoint, EndpointKind, find_endpoint
from tweezer.webhooks.secrets import SecretOwner, ShownSecret, reencrypt_secrets, rotate_secret, show_secret

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from tweezer.ledger.database import Database

_BY_HAND = "disabled by hand"
_LOOK_S = 0.1
_SHOWN_DELIVERIES = 5

_id = click.argument("endpoint_id", metavar="ID", type=click.UUID)
_perhaps_id = click.argument("endpoint_id", metavar="[ID]", type=click.UUID, required=False)
_all_projects = click.option("--all-projects", is_flag=True, help="Of all projects.")


@click.group()
def webhooks() -> None:
    """Webhooks tell programs what happens: signed, tried again until they arrive, and logged.

    The `webhook` of a batch is told of that batch, an endpoint that is registered here of all batches of a project.
    """


for command in (*COMMANDS, listen):
    webhooks.add_command(command)


# -- endpoints ----------------------------------------------------------------------------------------------


@webhooks.command(name="add")
@click.argument("url")
@click.option(
    "--type",
    "types",
    multiple=True,
    type=click.Choice([it.value for it in EventType if it is not EventType.PING]),
    metavar="TYPE",
    help="Of the events that it is sent; may be repeated  [default: batch.*, the ends of jobs, endpoint.disabled].",
)
@click.option("--description", default="", help="For people.")
@click.option("--ed25519", is_flag=True, help="Sign with a private key, too; its public key is printed.")
@json_option
@pass_options
def add(options: Options, *, url: str, types: Sequence[str], description: str, ed25519: bool, as_json: bool) -> None:
    """Send the events of a project to URL from now on; prints the endpoint's id and its secret."""
    settings = options.settings()
    with _writing(options) as connection:
        made = ledger_endpoints.create_endpoint(
            connection,
            settings.webhook_policy(),
            project_id=settings.project_id,
            url=url,
            types=types,
            description=description,
        )
        vault, owner = options.settings().vault(), made.secret_owner
        secret = (
            rotate_secret(connection, vault, owner, ed25519=True) if ed25519 else show_secret(connection, vault, owner)
        )
    if as_json:
        print_json(_about(made) | msgspec.to_builtins(secret))
        return
    click.echo(made.id)
    _show_secret(secret)
    show.echo(
        f"Events of project {made.project} go there from now on. The receiver verifies them with the secret; "
        f"try it: tweezer webhooks test {made.id}",
        err=True,
    )


def _about(endpoint: Endpoint) -> dict[str, Any]:
    about: dict[str, Any] = msgspec.to_builtins(endpoint)
    del about["project_no"]  # the database's own
    return about | {"types": sorted(endpoint.subscribed)}


@webhooks.command(name="list")
@click.option("--batches", is_flag=True, help="Those, too, that batches were submitted with.")
@_all_projects
@ledger_list(
    ("id", "project", "to", "types", "", ""),
    lambda it: (it.id, it.project, _short(it.url), _types(it), _state(it), it.description),
    none="There is no endpoint; make one with `tweezer webhooks add URL`.",
    about=_about,
)
@pass_options
def list_(options: Options, connection: Connection, *, batches: bool, all_projects: bool) -> list[Endpoint]:
    """List the endpoints of a project, newest first."""
    projects = None if all_projects else [options.settings().project_id]
    return ledger_endpoints.list_endpoints(connection, projects, kind=None if batches else EndpointKind.PROJECT)


@webhooks.command(name="show")
@_id
@json_option
@pass_options
def show_(options: Options, *, endpoint_id: UUID, as_json: bool) -> None:
    """Show an endpoint, and what became of the last deliveries to it."""
    with options.reading() as connection:
        found = find_endpoint(connection, endpoint_id)
        wanted = DeliveryFilter(endpoint=endpoint_id)
        last = list_deliveries(connection, None, wanted, limit=_SHOWN_DELIVERIES).rows
    if as_json:
        print_json(_about(found))
        return
    about = {
        "project": found.project,
        "to": found.url,
        "types": " ".join(sorted(found.subscribed)),
        "description": found.description,
        "kind": "registered" if found.kind is EndpointKind.PROJECT else "the webhook of batches",
        "made": show.minute(found.created),
        "state": _state(found) or "works",
    }
    show.echo(f"Endpoint {found.id}")
    for name, value in about.items():
        if value:
            show.echo(f"  {name + ':':<13}{value}")
    for line in format_deliveries(last) if last else ["Nothing was delivered there yet."]:
        show.echo(line)


@webhooks.command(name="test")
@_id
@click.option(
    "--wait", "wait_s", type=click.FloatRange(0), default=30.0, show_default=True, metavar="S", help="How long to wait."
)
@json_option
@pass_options
def test_(options: Options, *, endpoint_id: UUID, wait_s: float, as_json: bool) -> None:
    """Send a ping, whatever the endpoint's types are, and show what became of it; the exit code is 1 if it failed."""
    with options.ledger() as database:
        with database.write() as connection:
            delivery_id = ping(connection, find_endpoint(connection, endpoint_id))
        tell_couriers(options, lambda alarms: alarms.arm(endpoint_id, None))
        found = _outcome(database, delivery_id, wait_s)
    if as_json:
        print_json(found)
    elif not found.log:
        show.echo(f"No courier has sent it within {wait_s:g} s: does `tweezer courier` run? It is sent when one does.")
    else:
        show.echo("\n".join(describe(found)))
    exit_unless(found.status is DeliveryStatus.DELIVERED)


@webhooks.command(name="enable")
@_id
@json_option
@pass_options
def enable(options: Options, *, endpoint_id: UUID, as_json: bool) -> None:
    """Send what happens from now on to an endpoint again that was disabled."""
    with _writing(options) as connection:
        found = ledger_endpoints.enable_endpoint(connection, endpoint_id)
        wanted = DeliveryFilter(endpoint=endpoint_id, status=DeliveryStatus.HELD)
        held = list_deliveries(connection, None, wanted, limit=1).rows
    _show_endpoint(found, "is sent what happens from now on", as_json=as_json)
    if held and not as_json:
        show.echo(
            f"What happened meanwhile is held: tweezer webhooks resend --endpoint {found.id} --since TIME sends it",
            err=True,
        )


@webhooks.command(name="disable")
@_id
@click.option("--why", default=_BY_HAND, show_default=True, help="For people.")
@json_option
@pass_options
def disable(options: Options, *, endpoint_id: UUID, why: str, as_json: bool) -> None:
    """Send nothing more to an endpoint; what happens is held until it is enabled and sent again."""
    with _writing(options) as connection:
        ledger_endpoints.disable_endpoint(connection, endpoint_id, why)
        found = find_endpoint(connection, endpoint_id)
    _show_endpoint(found, "is sent nothing any more", as_json=as_json)


@webhooks.command(name="remove")
@_id
@yes_option
@pass_options
def remove(options: Options, *, endpoint_id: UUID, yes: bool) -> None:
    """Remove an endpoint for good, with its secrets and the log of its deliveries."""
    with options.ledger() as database:
        with database.read() as connection:
            found = find_endpoint(connection, endpoint_id)
        if not yes:
            show.confirm(f"Remove {_short(found.url)} ({found.id}) with its secrets and deliveries?")
        with database.write() as connection:
            ledger_endpoints.delete_endpoint(connection, endpoint_id)
    tell_couriers(options, Alarms.note_change)
    show.echo(f"{found.id} is removed")


# -- secrets ------------------------------------------------------------------------------------------------


@webhooks.command(name="secret")
@_perhaps_id
@json_option
@pass_options
def secret_(options: Options, *, endpoint_id: UUID | None, as_json: bool) -> None:
    """Show the secret of an endpoint, or without ID that of the project, which signs the `webhook` of its batches."""
    with _writing(options) as connection:
        shown = show_secret(connection, options.settings().vault(), _find_owner(options, connection, endpoint_id))
    _show_secret(shown, as_json=as_json)


@webhooks.command(name="rotate")
@_perhaps_id
@overlap_option(
    "24h", "How long the old one signs, too; 0: no more from now on, and keys that cannot be decrypted are dropped."
)
@click.option("--ed25519", is_flag=True, help="Make a new ed25519 key, or the first one, instead of a new secret.")
@json_option
@pass_options
def rotate(options: Options, *, endpoint_id: UUID | None, overlap_s: int, ed25519: bool, as_json: bool) -> None:
    """Make a new secret of an endpoint, or without ID of the project; everything is signed with both for a while.

    It is printed once everything is signed with it.
    """
    with _writing(options) as connection:
        owner = _find_owner(options, connection, endpoint_id)
        shown = rotate_secret(connection, options.settings().vault(), owner, overlap_s=overlap_s, ed25519=ed25519)
    time.sleep(SECRETS_SURE_S)
    _show_secret(shown, as_json=as_json)


@webhooks.command(name="reseal")
@pass_options
def reseal(options: Options) -> None:
    """Encrypt all secrets, of all projects and of links, with the first key of TWEEZER_SECRETS_KEY.

    When every courier and API has that key, and this was done, the keys behind it can be dropped.
    """
    with _writing(options) as connection:
        vault = options.settings().vault()
        changed = reencrypt_secrets(connection, vault) + reencrypt_link_keys(connection, vault)
    show.echo(f"{changed} secrets encrypted anew; all are encrypted with the first key now")


# -----------------------------------------------------------------------------------------------------------


@contextmanager
def _writing(options: Options) -> Iterator[Connection]:
    with options.writing() as connection:
        yield connection
    tell_couriers(options, Alarms.note_change)


def _find_owner(options: Options, connection: Connection, endpoint_id: UUID | None) -> SecretOwner:
    """Return the owner of an endpoint's secret, or without an id the project."""
    if endpoint_id is None:
        return SecretOwner(find_project(connection, options.settings().project_id).no)
    return find_endpoint(connection, endpoint_id).secret_owner


def _outcome(database: Database, delivery_id: UUID, wait_s: float) -> Delivery:
    """Return the delivery, once an attempt was made or that time is over."""
    deadline = time.monotonic() + wait_s
    while True:
        with database.read() as connection:
            found = find_delivery(connection, delivery_id)
        if found.log or time.monotonic() > deadline:
            return found
        time.sleep(_LOOK_S)


def _show_secret(shown: ShownSecret, *, as_json: bool = False) -> None:
    if as_json:
        print_json(shown)
        return
    click.echo(shown.secret)
    if shown.public_key is not None:
        click.echo(shown.public_key)
    if shown.older_until is not None:
        show.echo(f"Older ones sign, too, until {show.minute(shown.older_until)}", err=True)


def _show_endpoint(endpoint: Endpoint, what: str, *, as_json: bool) -> None:
    print_result(_about(endpoint), f"{endpoint.id} ({_short(endpoint.url)}) {what}", as_json=as_json)


def _short(url: str) -> str:
    """Return the URL without what may be secret, and no longer than a line has room for."""
    parts = urlsplit(url)
    text = f"{parts.scheme}://{parts.netloc}{parts.path}" + ("?…" if parts.query else "")
    return text if len(text) <= 60 else f"{text[:59]}…"


def _types(endpoint: Endpoint) -> str:
    if not endpoint.types:
        return "the usual"
    return " ".join(endpoint.types) if len(endpoint.types) <= 3 else f"{len(endpoint.types)} types"


def _state(endpoint: Endpoint) -> str:
    if endpoint.disabled is not None:
        return f"disabled since {show.minute(endpoint.disabled)}: {endpoint.disabled_why}"
    return "" if endpoint.failing is None else f"failing since {show.minute(endpoint.failing)}"
