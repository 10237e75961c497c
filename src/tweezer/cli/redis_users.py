"""``tweezer redis-users``: write the Redis users to an ACL file, with a password for each."""

from __future__ import annotations

import os
import re
import secrets
import shlex
from pathlib import Path

import click

from tweezer.cli import show
from tweezer.cli.options import Options, pass_options
from tweezer.model.errors import InvalidInput, TweezerError
from tweezer.store.acl import RedisUser, acl_lines, add_credentials, hash_password, user_name

ACL_FILE = "users.acl"
PLACEHOLDER = "#SHA256_OF_THE_PASSWORD"
"""Redis rejects a file that contains it, so that no user can remain without a password."""

_PASSWORD = re.compile(r"[A-Za-z0-9_-]{32,}")
_PASSWORD_BYTES = 32
_SHOWN_TO_REDIS, _OWNER_ONLY = 0o644, 0o600


@click.command(name="redis-users")
@click.argument("folder", required=False, type=click.Path(file_okay=False, path_type=Path))
@pass_options
def redis_users(options: Options, folder: Path | None) -> None:
    """Write a Redis user for each kind of process to FOLDER. Without FOLDER, print the users without passwords.

    FOLDER gets `users.acl` for Redis, and for each user its password (`worker.password`) and its URL (`worker.env`).
    Existing passwords are kept; remove a file to get a new password. Lines of other users in `users.acl` are kept, too.
    Run it again after each upgrade of Tweezer: the new version may need other permissions.
    """
    settings = options.settings()
    if folder is None:
        click.echo("\n".join(acl_lines(settings.namespace, dict.fromkeys(RedisUser, PLACEHOLDER))))
        return
    try:
        _write(folder, settings.redis.url, settings.namespace)
    except OSError as error:
        raise TweezerError(f"{error.filename or folder}: cannot be written: {error.strerror}", code="file") from error
    acl = (folder / ACL_FILE).absolute()
    show.echo(f"Wrote {ACL_FILE}, and the password and URL of each user, to {folder}.")
    show.echo(f"Load it in Redis: add `aclfile {acl}` to redis.conf, or run `redis-cli ACL LOAD` if it has that line.")


def _write(folder: Path, url: str, namespace: str) -> None:
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    hashes = {}
    for user in RedisUser:
        password = _password(folder / f"{user}.password")
        line = f"TWEEZER_REDIS_URL={shlex.quote(add_credentials(url, user_name(user, namespace), password))}\n"
        _replace(folder / f"{user}.env", line, _OWNER_ONLY)
        hashes[user] = hash_password(password)
    lines = acl_lines(namespace, hashes)
    ours = {_read_user(line) for line in lines}
    acl = folder / ACL_FILE
    before = acl.read_text("utf-8").splitlines() if acl.exists() else []
    lines += [line for line in before if line.strip() and _read_user(line) not in ours]
    _replace(acl, "\n".join(lines) + "\n", _SHOWN_TO_REDIS)


def _read_user(line: str) -> str:
    return " ".join(line.split()[:2])


def _password(path: Path) -> str:
    """Return the password in the file, creating the file if needed."""
    if not path.exists():
        _replace(path, secrets.token_urlsafe(_PASSWORD_BYTES) + "\n", _OWNER_ONLY)
    password = path.read_text("utf-8-sig").strip()
    if not _PASSWORD.fullmatch(password):
        raise InvalidInput(
            str(path), "must contain 32 or more letters, digits, '-' and '_'; remove the file to get a new password"
        )
    return password


def _replace(path: Path, text: str, mode: int) -> None:
    """Replace a file atomically. It never has wider permissions than ``mode``."""
    new = path.with_suffix(".new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8") as file:
        file.write(text)
    new.chmod(mode)  # independent of the umask
    new.replace(path)
