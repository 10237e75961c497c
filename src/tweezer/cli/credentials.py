"""``tweezer projects``, ``keys`` and ``users``: manage access to the queue."""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click
import msgspec

from tweezer.cli import show
from tweezer.cli.options import (
    Options,
    json_option,
    ledger_command,
    ledger_list,
    overlap_option,
    parse_duration,
    pass_options,
    print_json,
    print_list,
    print_result,
    yes_option,
)
from tweezer.ledger.access import keys as ledger_keys
from tweezer.ledger.access import projects as ledger_projects
from tweezer.ledger.access import users as ledger_users
from tweezer.ledger.access.credentials import Role, read_key_id
from tweezer.ledger.access.keys import ApiKey, KeyKind, NewKey
from tweezer.ledger.access.links import rotate_link_keys
from tweezer.ledger.access.projects import Project
from tweezer.ledger.access.users import User, check_password, hash_password
from tweezer.ledger.access.vault import SECRETS_SURE_S
from tweezer.ledger.retention import delete_project
from tweezer.model.errors import InvalidInput, Unavailable
from tweezer.model.quotas import BY_NAME
from tweezer.model.summaries import format_duration

if TYPE_CHECKING:
    from sqlalchemy import Connection

_SHOWN_ONCE = "is shown only once: store it in a safe place."


def parse_retention(text: str) -> int | None:
    """Parse a duration, ``forever`` (0) or ``default`` (None)."""
    return {"forever": 0, "default": None}[text] if text in ("forever", "default") else parse_duration(text)


# ---------------------------------------------------------------------------------------------------- projects


@click.group()
def projects() -> None:
    """Manage projects. A project owns batches and keys, which other projects cannot see."""


def _about(project: Project) -> dict[str, Any]:
    about: dict[str, Any] = msgspec.to_builtins(project)
    del about["no"]  # internal to the database
    return about


@projects.command(name="create")
@click.argument("name")
@click.option("--id", "identity", help="Id of letters, digits, dots, dashes and underscores  [default: a UUID].")
@ledger_command(lambda it, as_json: print_result(_about(it), it.id, as_json=as_json))
def create_project(connection: Connection, *, name: str, identity: str | None) -> Project:
    """Create a project and print its id."""
    return ledger_projects.create_project(connection, name, identity)


@projects.command(name="list")
@ledger_list(
    ("id", "name", "retention", "created", "last active"),
    lambda it: (it.id, it.name, _kept(it), _day(it.created), _day(it.last_activity)),
    none="No projects yet; create one with `tweezer projects create NAME`.",
    about=_about,
)
def list_projects(connection: Connection) -> list[Project]:
    """List all projects."""
    return ledger_projects.list_projects(connection)


@projects.command(name="retention")
@click.argument("project")
@click.argument("kept_s", type=parse_retention, metavar="DURATION|forever|default")
@ledger_command(
    lambda it, as_json: print_result(_about(it), f"{it.id}: retention of ended batches: {_kept(it)}", as_json=as_json)
)
def set_retention(connection: Connection, *, project: str, kept_s: int | None) -> Project:
    """Set the retention of ended batches: 90d, forever or default.

    The ledger keeps the project's ended batches with their results for this time. Older batches are permanently
    deleted. The default is the scheduler's TWEEZER_DATABASE_RETENTION_S.
    """
    return ledger_projects.set_retention(connection, project, kept_s)


def _limit_option(quota: str, flag: str, unit: str, what: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.option(
        f"--{flag}",
        quota,
        metavar=f"{unit}|none|default",
        help=f"{what}  [default: TWEEZER_QUOTA_{flag.upper().replace('-', '_')}]",
    )


@projects.command(name="limit")
@click.argument("project")
@_limit_option("queued_jobs", "queued-jobs", "N", "Maximum number of pending jobs.")
@_limit_option("queued_bytes", "queued-mb", "MIB", "Maximum memory in Redis for batches that have not ended.")
@_limit_option("result_bytes", "results-mb", "MIB", "Maximum size of all stored results.")
@json_option
@pass_options
def limit(
    options: Options,
    *,
    project: str,
    queued_jobs: str | None,
    queued_bytes: str | None,
    result_bytes: str | None,
    as_json: bool,
) -> None:
    """Set the limits of a project: a number, none or default. They apply immediately to all producers."""
    given = {"queued_jobs": queued_jobs, "queued_bytes": queued_bytes, "result_bytes": result_bytes}
    changes = {quota: _read_limit(quota, text) for quota, text in given.items() if text is not None}
    if not changes:
        raise click.UsageError("give a limit: --queued-jobs, --queued-mb or --results-mb")
    with options.writing() as connection:
        changed = ledger_projects.set_limits(connection, project, changes)
    try:
        options.run_store(lambda store: store.quotas.set_limits({changed.id: changed.limits}))
    except Unavailable as error:
        show.echo(f"{error.message}; the recorder copies the limits to Redis when it is back", err=True)
    own = ", ".join(f"{quota} {_amount(quota, value)}" for quota, value in changed.limits.items())
    print_result(_about(changed), f"{changed.id}: {own or 'the default limits'}", as_json=as_json)


@projects.command(name="show")
@click.argument("project")
@json_option
@pass_options
def show_project(options: Options, *, project: str, as_json: bool) -> None:
    """Show a project, its use of quotas, and their limits."""
    with options.reading() as connection:
        found = ledger_projects.find_project(connection, project)
    usage = options.run_store(lambda store: store.quotas.usage(found.id))
    if as_json:
        print_json(_about(found) | {"quotas": msgspec.to_builtins(usage)})
        return
    show.echo(f"{found.id} ({found.name}): retention of ended batches: {_kept(found)}\n")
    whose = {True: "set for the project", False: "default"}
    rows = [(it.quota, BY_NAME[it.quota].amount(it.used), _amount(it.quota, it.limit), whose[it.own]) for it in usage]
    show.print_table(("quota", "in use", "limit", ""), rows)


@projects.command(name="delete")
@click.argument("project")
@yes_option
@pass_options
def delete(options: Options, *, project: str, yes: bool) -> None:
    """Permanently delete a project and everything in it.

    That includes its keys, batches, results and statistics. All batches must have ended.
    """
    with options.ledger() as database:
        with database.read() as connection:
            found = ledger_projects.find_project(connection, project)
        if not yes:
            show.confirm(f"Permanently delete {found.name} ({found.id}) with its keys, batches and results?")
        batches = options.run_store(lambda store: delete_project(store, database, found.id))
    show.echo(f"Deleted {found.id} with {batches} batches.")


# -------------------------------------------------------------------------------------------------------- keys


@click.group()
def keys() -> None:
    """Manage keys for the HTTP API, sent as `Authorization: Bearer twz_…`. The ledger stores only their digests."""


def _show_once(made: NewKey, *, as_json: bool) -> None:
    if as_json:
        print_json({"key": made.text, **msgspec.to_builtins(made.about)})
        return
    key = made.about
    click.echo(made.text)
    until = "" if key.expires is None else f", until {show.minute(key.expires)}"
    scope = "all projects" if key.project is None else f"project {key.project}"
    show.echo(f"Key {key.id} ({key.name}): role {key.role} for {scope}{until}. It {_SHOWN_ONCE}", err=True)


@keys.command(name="create")
@click.argument("name")
@click.option(
    "--project",
    metavar="ID",
    help="Project of the key, for the roles user and read  [default: TWEEZER_PROJECT_ID].",
)
@click.option(
    "--role",
    type=click.Choice([role.value for role in Role]),
    default=Role.USER.value,
    show_default=True,
    help="Permissions of the key.",
)
@click.option("--user", metavar="NAME", help="Owner of the key, and of the batches submitted with it.")
@click.option(
    "--expires", "expires_s", type=parse_duration, metavar="DURATION", help="Expire after this time: 90d, 12h."
)
@ledger_command(_show_once)
@pass_options
def create_key(
    options: Options,
    connection: Connection,
    *,
    name: str,
    project: str | None,
    role: str,
    user: str | None,
    expires_s: int | None,
) -> NewKey:
    """Create a key and print it; it is shown only once. NAME describes its purpose.

    Roles: user may submit to and read its project. read may only read its project. metrics may only read /metrics, for
    Prometheus. operator may read and change the work of all projects.
    """
    owner = None if user is None else ledger_users.find_user(connection, user)
    return ledger_keys.create_key(
        connection,
        name=name,
        role=Role(role),
        project_id=options.settings().project_id if project is None and Role(role).of_projects else project,
        user_id=None if owner is None else owner.id,
        expires_s=expires_s,
    )


@keys.command(name="list")
@click.option("--project", metavar="ID", help="List only keys of this project.")
@click.option("--all", "everything", is_flag=True, help="Include revoked and expired keys, and user sessions.")
@ledger_list(
    ("id", "name", "role", "project", "created", "ends", "last used"),
    lambda it: (it.id, it.name, it.role, it.project or "-", _day(it.created), _end(it), show.minute(it.used)),
    none="No keys; create one with `tweezer keys create NAME --project ID`.",
)
def list_keys(connection: Connection, *, project: str | None, everything: bool) -> list[ApiKey]:
    """List keys by their ids, newest first."""
    found = ledger_keys.list_keys(connection, project_id=project, sessions=everything)
    now = datetime.now(UTC)
    return [it for it in found if everything or not (it.revoked or (it.expires and it.expires <= now))]


@keys.command(name="revoke")
@click.argument("key")
@ledger_command(lambda it, as_json: print_result(it, f"Revoked key {it.id} ({it.name}).", as_json=as_json))
def revoke(connection: Connection, *, key: str) -> ApiKey:
    """Revoke a key by its id, effective within a second. Sessions of users are keys, too."""
    return ledger_keys.revoke_key(connection, read_key_id(key))


@keys.command(name="rotate")
@click.argument("key")
@overlap_option("24h", "How long the old key remains valid; 0 revokes it now.")
@ledger_command(_show_once)
def rotate(connection: Connection, *, key: str, overlap_s: int) -> NewKey:
    """Replace a key with a new one and print it, once.

    The new key has the same permissions. The old key ends after the overlap.
    """
    return ledger_keys.rotate_key(connection, read_key_id(key), overlap_s=overlap_s)


@keys.command(name="rotate-links")
@overlap_option("7d", "How long existing links remain valid, 30d at most; 0 invalidates them now.")
@pass_options
def rotate_links(options: Options, *, overlap_s: int) -> None:
    """Replace the key that signs links to results.

    This is necessary if the key may have leaked. Processes read the key every second; the command returns when all of
    them have the new one.
    """
    with options.writing() as connection:
        rotate_link_keys(connection, options.settings().vault(), overlap_s=overlap_s)
    time.sleep(SECRETS_SURE_S)
    older = f"remain valid for at most {format_duration(overlap_s)}" if overlap_s else "are no longer valid"
    show.echo(f"New links are signed with a new key; existing links {older}.")


# ------------------------------------------------------------------------------------------------------- users


@click.group()
def users() -> None:
    """Manage users, who log in at /oauth/token with name and password, and see all their projects."""


def _show_user(user: User, password: str | None = None, *, as_json: bool) -> None:
    if as_json:
        secret = {} if password is None else {"password": password}
        print_json(msgspec.to_builtins(user) | secret)
        return
    if password is not None:
        click.echo(password)
        show.echo(f"The password {_SHOWN_ONCE}", err=True)
    projects = ", ".join(user.projects) or f"no project yet (add one with `tweezer users add-to {user.name} PROJECT`)"
    state = " (disabled)" if user.disabled else ""
    show.echo(f"{user.name}{state}: {projects}", err=password is not None)


def _add_password_command(command: str, store: Callable[[Connection, str, str], User], help: str) -> None:
    """Add a command that prompts for a password and stores its hash."""

    @users.command(name=command, help=help)
    @click.argument("name")
    @click.option("--stdin", "from_stdin", is_flag=True, help="Read the password from stdin, one line.")
    @click.option("--generate", is_flag=True, help="Generate a password and print it once.")
    @json_option
    @pass_options
    def run(options: Options, *, name: str, from_stdin: bool, generate: bool, as_json: bool) -> None:
        password = _choose_password(from_stdin=from_stdin, generate=generate)
        kept = hash_password(password)
        with options.writing() as connection:
            user = store(connection, name, kept)
        _show_user(user, password if generate else None, as_json=as_json)


_add_password_command("create", ledger_users.create_user, "Create a user without projects; prompts for the password.")
_add_password_command(
    "password",
    ledger_users.set_password,
    "Change a user's password, and end their sessions.",
)


@users.command(name="disable")
@click.argument("name")
@ledger_command(_show_user)
def disable(connection: Connection, *, name: str) -> User:
    """Disable a user and their keys; sessions end within a second."""
    return ledger_users.set_disabled(connection, name, disabled=True)


@users.command(name="enable")
@click.argument("name")
@ledger_command(_show_user)
def enable(connection: Connection, *, name: str) -> User:
    """Enable a user who was disabled."""
    return ledger_users.set_disabled(connection, name, disabled=False)


@users.command(name="sessions")
@click.argument("name")
@json_option
@pass_options
def list_sessions(options: Options, *, name: str, as_json: bool) -> None:
    """List the sessions of a user, newest first."""
    with options.reading() as connection:
        found = ledger_keys.list_sessions(connection, ledger_users.find_user(connection, name).id)
    print_list(
        found,
        ("id", "logged in", "ends", "last used"),
        lambda it: (it.id, show.minute(it.created), _end(it), show.minute(it.used)),
        none=f"{name} is not logged in.",
        as_json=as_json,
    )


@users.command(name="log-out")
@click.argument("name")
@click.argument("session", required=False)
@json_option
@pass_options
def log_out(options: Options, *, name: str, session: str | None, as_json: bool) -> None:
    """End the sessions of a user, or one SESSION, within a second."""
    with options.writing() as connection:
        user = ledger_users.find_user(connection, name)
        key_id = None if session is None else read_key_id(session, kind="session")
        ended = ledger_keys.end_sessions(connection, user.id, key_id)
    count = f"{len(ended)} session{'' if len(ended) == 1 else 's'}"
    print_result(ended, f"Ended {count} of {user.name}.", as_json=as_json)


@users.command(name="list")
@ledger_list(
    ("name", "id", "projects", ""),
    lambda it: (
        it.name,
        it.id,
        " ".join(it.projects) or "-",
        f"disabled since {_day(it.disabled)}" if it.disabled else "",
    ),
    none="No users; create one with `tweezer users create NAME`.",
)
def list_users(connection: Connection) -> list[User]:
    """List all users."""
    return ledger_users.list_users(connection)


@users.command(name="add-to")
@click.argument("name")
@click.argument("project")
@ledger_command(_show_user)
def add_to(connection: Connection, *, name: str, project: str) -> User:
    """Add a user to a project."""
    return ledger_users.add_to_project(connection, name, project)


@users.command(name="remove-from")
@click.argument("name")
@click.argument("project")
@ledger_command(_show_user)
def remove_from(connection: Connection, *, name: str, project: str) -> User:
    """Remove a user from a project, and revoke their keys for it."""
    return ledger_users.remove_from_project(connection, name, project)


# -------------------------------------------------------------------------------------------------------------


def _choose_password(*, from_stdin: bool, generate: bool) -> str:
    if from_stdin and generate:
        raise click.UsageError("--stdin and --generate cannot be combined")
    if generate:
        return secrets.token_urlsafe(18)
    password: str
    if from_stdin:
        password = sys.stdin.readline().rstrip("\r\n")
    else:
        password = click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    check_password(password)
    return password


def _read_limit(quota: str, text: str) -> int | None:
    """Parse a number, ``none`` for no limit (0), or ``default`` (None)."""
    try:
        limit = {"none": 0, "default": None}[text] if text in ("none", "default") else int(text)
    except ValueError:
        raise InvalidInput(quota, f"must be a number, none or default (got {text!r})") from None
    return limit if limit is None or BY_NAME[quota].unit != "bytes" else limit << 20


def _amount(quota: str, limit: int) -> str:
    return BY_NAME[quota].amount(limit) if limit else "none"


def _kept(project: Project) -> str:
    if project.retention_s is None:
        return "default"
    return format_duration(project.retention_s) if project.retention_s else "forever"


def _end(key: ApiKey) -> str:
    if key.revoked is not None:
        return f"revoked {_day(key.revoked)}"
    if key.expires is None:
        return "-"
    left_s = (key.expires - datetime.now(UTC)).total_seconds()
    if left_s <= 0:
        return f"expired {_day(key.expires)}"
    session = " (session)" if key.kind is KeyKind.SESSION else ""
    return f"in {format_duration(left_s)}{session}"


def _day(moment: datetime | None) -> str:
    return "-" if moment is None else f"{moment:%Y-%m-%d}"
