"""``tweezer webhooks``: manage the endpoints, secrets and deliveries of webhooks."""

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
from tweezer.cli.deliveries import COMMANDS, describe, format_deliveries, notify_couriers
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
_all_projects = click.option("--all-projects", is_flag=True, help="List all projects.")


@click.group()
def webhooks() -> None:
    """Manage webhooks, which notify other programs of events. Deliveries are signed, retried and logged.

    The `webhook` of a batch receives the events of that batch. An endpoint that you add here receives the events of all
    batches of a project.
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
    help="Event type to send; may be repeated  [default: batch.*, the ends of jobs, endpoint.disabled, schedule.*].",
)
@click.option("--description", default="", help="Description for people.")
@click.option("--ed25519", is_flag=True, help="Also sign with a private key, and print the public key.")
@json_option
@pass_options
def add(options: Options, *, url: str, types: Sequence[str], description: str, ed25519: bool, as_json: bool) -> None:
    """Add an endpoint: send the events of the project to URL. Prints the endpoint's id and its secret."""
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
        f"Events of project {made.project} will be sent to {_short(made.url)} from now on. The receiver verifies them "
        f"with the secret. To test it: tweezer webhooks test {made.id}",
        err=True,
    )


def _about(endpoint: Endpoint) -> dict[str, Any]:
    about: dict[str, Any] = msgspec.to_builtins(endpoint)
    del about["project_no"]  # internal to the database
    return about | {"types": sorted(endpoint.subscribed)}


@webhooks.command(name="list")
@click.option("--batches", is_flag=True, help="Include the webhooks of single batches.")
@_all_projects
@ledger_list(
    ("id", "project", "to", "types", "", ""),
    lambda it: (it.id, it.project, _short(it.url), _types(it), _state(it), it.description),
    none="No endpoints; add one with `tweezer webhooks add URL`.",
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
    """Show an endpoint and its last deliveries."""
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
        "kind": "registered" if found.kind is EndpointKind.PROJECT else "webhook of batches",
        "created": show.minute(found.created),
        "state": _state(found) or "active",
    }
    show.echo(f"Endpoint {found.id}")
    for name, value in about.items():
        if value:
            show.echo(f"  {name + ':':<13}{value}")
    for line in format_deliveries(last) if last else ["No deliveries yet."]:
        show.echo(line)


@webhooks.command(name="test")
@_id
@click.option(
    "--wait", "wait_s", type=click.FloatRange(0), default=30.0, show_default=True, metavar="S", help="Seconds to wait."
)
@json_option
@pass_options
def test_(options: Options, *, endpoint_id: UUID, wait_s: float, as_json: bool) -> None:
    """Send a ping to an endpoint and show the result.

    The event types of the endpoint do not matter. The exit code is 1 if the delivery failed.
    """
    with options.ledger() as database:
        with database.write() as connection:
            delivery_id = ping(connection, find_endpoint(connection, endpoint_id))
        notify_couriers(options, lambda alarms: alarms.arm(endpoint_id, None))
        found = _outcome(database, delivery_id, wait_s)
    if as_json:
        print_json(found)
    elif not found.log:
        show.echo(f"Not sent within {wait_s:g} s. Check that `tweezer courier` is running; it then sends the ping.")
    else:
        show.echo("\n".join(describe(found)))
    exit_unless(found.status is DeliveryStatus.DELIVERED)


@webhooks.command(name="enable")
@_id
@json_option
@pass_options
def enable(options: Options, *, endpoint_id: UUID, as_json: bool) -> None:
    """Enable a disabled endpoint: send new events to it again."""
    with _writing(options) as connection:
        found = ledger_endpoints.enable_endpoint(connection, endpoint_id)
        wanted = DeliveryFilter(endpoint=endpoint_id, status=DeliveryStatus.HELD)
        held = list_deliveries(connection, None, wanted, limit=1).rows
    _show_endpoint(found, "is enabled: new events are sent to it.", as_json=as_json)
    if held and not as_json:
        show.echo(
            f"Earlier events are held; to send them: tweezer webhooks resend --endpoint {found.id} --since TIME",
            err=True,
        )


@webhooks.command(name="disable")
@_id
@click.option("--reason", default=_BY_HAND, show_default=True, help="Reason, shown to the users of the endpoint.")
@json_option
@pass_options
def disable(options: Options, *, endpoint_id: UUID, reason: str, as_json: bool) -> None:
    """Disable an endpoint: hold its events.

    After `tweezer webhooks enable`, `tweezer webhooks resend` sends the held events.
    """
    with _writing(options) as connection:
        ledger_endpoints.disable_endpoint(connection, endpoint_id, reason)
        found = find_endpoint(connection, endpoint_id)
    _show_endpoint(found, "is disabled: its events are held.", as_json=as_json)


@webhooks.command(name="remove")
@_id
@yes_option
@pass_options
def remove(options: Options, *, endpoint_id: UUID, yes: bool) -> None:
    """Permanently remove an endpoint.

    Its secrets and its delivery log are removed, too.
    """
    with options.ledger() as database:
        with database.read() as connection:
            found = find_endpoint(connection, endpoint_id)
        if not yes:
            show.confirm(f"Permanently remove {_short(found.url)} ({found.id}) with its secrets and deliveries?")
        with database.write() as connection:
            ledger_endpoints.delete_endpoint(connection, endpoint_id)
    notify_couriers(options, Alarms.note_change)
    show.echo(f"Removed {found.id}.")


# -- secrets ------------------------------------------------------------------------------------------------


@webhooks.command(name="secret")
@_perhaps_id
@json_option
@pass_options
def secret_(options: Options, *, endpoint_id: UUID | None, as_json: bool) -> None:
    """Show the secret of an endpoint or of the project.

    Without ID, it shows the secret of the project.

    The secret of the project signs deliveries to the `webhook` of its batches.
    """
    with _writing(options) as connection:
        shown = show_secret(connection, options.settings().vault(), _find_owner(options, connection, endpoint_id))
    _show_secret(shown, as_json=as_json)


@webhooks.command(name="rotate")
@_perhaps_id
@overlap_option("24h", "How long the old secret also signs; 0 ends it now, and drops keys that cannot be decrypted.")
@click.option("--ed25519", is_flag=True, help="Create a new ed25519 key instead of a new secret.")
@json_option
@pass_options
def rotate(options: Options, *, endpoint_id: UUID | None, overlap_s: int, ed25519: bool, as_json: bool) -> None:
    """Replace the secret of an endpoint or of the project.

    Without ID, it replaces the secret of the project, which signs deliveries to the `webhook` of its batches.

    Deliveries are signed with both secrets during the overlap. The new secret is printed when all couriers use it.
    """
    with _writing(options) as connection:
        owner = _find_owner(options, connection, endpoint_id)
        shown = rotate_secret(connection, options.settings().vault(), owner, overlap_s=overlap_s, ed25519=ed25519)
    time.sleep(SECRETS_SURE_S)
    _show_secret(shown, as_json=as_json)


@webhooks.command(name="reseal")
@pass_options
def reseal(options: Options) -> None:
    """Encrypt all secrets again, with the current key.

    These are the secrets of webhooks and links, and the current key is the first one of TWEEZER_SECRETS_KEY.
    Afterwards, when every courier and API has that key, the other keys can be removed from the setting.
    """
    with _writing(options) as connection:
        vault = options.settings().vault()
        changed = reencrypt_secrets(connection, vault) + reencrypt_link_keys(connection, vault)
    show.echo(f"Encrypted {changed} secrets again; all secrets now use the first key.")


# -----------------------------------------------------------------------------------------------------------


@contextmanager
def _writing(options: Options) -> Iterator[Connection]:
    with options.writing() as connection:
        yield connection
    notify_couriers(options, Alarms.note_change)


def _find_owner(options: Options, connection: Connection, endpoint_id: UUID | None) -> SecretOwner:
    """Return the owner of an endpoint's secret, or without an id the project."""
    if endpoint_id is None:
        return SecretOwner(find_project(connection, options.settings().project_id).no)
    return find_endpoint(connection, endpoint_id).secret_owner


def _outcome(database: Database, delivery_id: UUID, wait_s: float) -> Delivery:
    """Return the delivery once an attempt was made or the time is over."""
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
        show.echo(f"The old secret also signs until {show.minute(shown.older_until)}.", err=True)


def _show_endpoint(endpoint: Endpoint, what: str, *, as_json: bool) -> None:
    print_result(_about(endpoint), f"{endpoint.id} ({_short(endpoint.url)}) {what}", as_json=as_json)


def _short(url: str) -> str:
    """Shorten the URL, and cut its query and credentials, which may be secret."""
    parts = urlsplit(url)
    text = f"{parts.scheme}://{parts.netloc}{parts.path}" + ("?…" if parts.query else "")
    return text if len(text) <= 60 else f"{text[:59]}…"


def _types(endpoint: Endpoint) -> str:
    if not endpoint.types:
        return "default"
    return " ".join(endpoint.types) if len(endpoint.types) <= 3 else f"{len(endpoint.types)} types"


def _state(endpoint: Endpoint) -> str:
    if endpoint.disabled is not None:
        return f"disabled since {show.minute(endpoint.disabled)}: {endpoint.disabled_why}"
    return "" if endpoint.failing is None else f"failing since {show.minute(endpoint.failing)}"
