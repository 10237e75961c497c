"""The users of Redis: their rules, and the command that makes them."""

from __future__ import annotations

import re
import stat
from importlib import resources
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from click.testing import CliRunner, Result

from tweezer.cli import main
from tweezer.store.acl import SCRIPTS, RedisUser, acl_lines, add_credentials, hash_password
from tweezer.store.scripts import script_names

DEPLOYED = Path(__file__).parents[3] / "deploy" / "redis-users.acl"
SERVER = "redis://127.0.0.1:6390/2"


def make(folder: Path, *, url: str = SERVER) -> Result:
    return CliRunner().invoke(main, ["--redis", url, "redis-users", str(folder)])


def rules(user: RedisUser, namespace: str = "tweezer") -> set[str]:
    lines = acl_lines(namespace, dict.fromkeys(RedisUser, "#0"))
    (line,) = [line for line in lines if line.startswith(f"user {namespace}-{user} ")]
    return set(line.split())


# --- rules


def test_the_deployed_file_is_what_the_command_prints() -> None:
    printed = CliRunner().invoke(main, ["redis-users"]).stdout
    assert DEPLOYED.read_text() == printed, "run `tweezer redis-users > deploy/redis-users.acl`"


def test_every_user_needs_a_password() -> None:
    first, *others = acl_lines("tweezer", dict.fromkeys(RedisUser, "#0"))
    assert first == "user default off"
    assert all(" on resetpass #0 " in line for line in others)


def test_only_the_admin_has_dangerous_commands_and_only_the_operator_reads_settings() -> None:
    for user in set(RedisUser) - {RedisUser.ADMIN}:
        granted = {rule for rule in rules(user) if rule.startswith("+")}
        assert not granted & {"+@all", "+keys", "+flushall", "+debug", "+acl", "+config", "+config|set", "+script"}
        assert ("+config|get" in granted) is (user is RedisUser.OPERATOR)


def test_every_key_of_every_user_begins_with_the_namespace_or_is_arqs() -> None:
    for user in set(RedisUser) - {RedisUser.ADMIN}:
        patterns = [rule[1:] for rule in rules(user, "lab") if rule[0] in "~&"]
        assert all(pattern.startswith(("lab:", "arq:")) for pattern in patterns), user


def test_scripts_name_their_commands_and_keys_in_words_that_the_rules_are_read_from() -> None:
    """A command or key that is assembled at run time would be missing from the rules."""
    for file in Path(str(resources.files("tweezer.store") / "lua")).rglob("*.lua"):
        text = file.read_text("utf-8")
        variable = re.findall(r"redis\.p?call\((?!')\w+", text)
        assert variable == (["redis.call(command"] if file.name == "lists.lua" else []), file.name
        assert not re.search(r"each_thousand\((?!')(?!command, name, list\))", text), file.name
        assert not re.search(r"key\(KEY[^)]*\)+ *\.\.|KEY\[|\bNS \.\.(?! string\.format)", text), file.name


def test_each_script_has_a_process_that_calls_it() -> None:
    called = {name for user, names in SCRIPTS.items() if user is not RedisUser.OPERATOR for name in names}
    by_operators_only = {"usage", "discard", "forget_device"}
    assert set(script_names()) - called == by_operators_only | {"arrive"}


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://h:1/0", "redis://u:p@h:1/0"),
        ("rediss://old:secret@h/0?ssl_ca_certs=/ca", "rediss://u:p@h/0?ssl_ca_certs=/ca"),
        ("unix:///run/redis.sock?db=1", "unix://u:p@/run/redis.sock?db=1"),
        ("redis+sentinel://:x@a:1,b:2/service/0", "redis+sentinel://u:p@a:1,b:2/service/0"),
    ],
)
def test_the_credentials_of_a_user_are_added_to_a_url(url: str, expected: str) -> None:
    assert add_credentials(url, "u", "p") == expected


# --- the command


def test_each_user_gets_a_password_and_a_url_that_only_its_owner_reads(tmp_path: Path) -> None:
    folder = tmp_path / "redis"
    assert make(folder).exit_code == 0
    acl = folder / "users.acl"
    assert stat.S_IMODE(acl.stat().st_mode) == 0o644
    lines = acl.read_text().splitlines()
    for user in RedisUser:
        env, password = folder / f"{user}.env", folder / f"{user}.password"
        assert {stat.S_IMODE(file.stat().st_mode) for file in (env, password)} == {0o600}
        url = urlsplit(env.read_text().strip().removeprefix("TWEEZER_REDIS_URL="))
        assert (url.username, url.hostname, url.port, url.path) == (f"tweezer-{user}", "127.0.0.1", 6390, "/2")
        assert url.password == password.read_text().strip()
        assert len(url.password) >= 32
        assert sum(hash_password(url.password) in line.split() for line in lines) == 1


def test_passwords_and_lines_of_other_users_are_kept(tmp_path: Path) -> None:
    make(tmp_path)
    acl = tmp_path / "users.acl"
    ours, theirs = acl.read_text(), "user exporter on #0 +info"
    acl.write_text(ours.replace("+blpop", "") + theirs + "\n")  # as an older version wrote it
    assert make(tmp_path).exit_code == 0
    assert acl.read_text() == ours + theirs + "\n"


def test_a_password_that_is_removed_is_made_anew(tmp_path: Path) -> None:
    make(tmp_path)
    acl = tmp_path / "users.acl"
    before = acl.read_text().splitlines()
    (tmp_path / "api.password").unlink()
    make(tmp_path)
    changed = [line for line, was in zip(acl.read_text().splitlines(), before, strict=True) if line != was]
    assert [line.split()[1] for line in changed] == ["tweezer-api"]


def test_a_url_with_options_is_quoted_for_the_shell(tmp_path: Path) -> None:
    make(tmp_path, url="rediss://h:1/0?ssl_ca_certs=/ca.pem&ssl_check_hostname=false")
    assert re.fullmatch(r"TWEEZER_REDIS_URL='rediss://.*&.*'\n", (tmp_path / "api.env").read_text())


@pytest.mark.parametrize("text", ["", "short", "x" * 31, "a password with spaces that is long enough"])
def test_a_password_that_is_weak_or_not_for_a_url_is_refused(text: str, tmp_path: Path) -> None:
    make(tmp_path)
    before = (tmp_path / "users.acl").read_text()
    (tmp_path / "api.password").write_text(text)
    result = make(tmp_path)
    assert result.exit_code == 1
    assert f"{tmp_path}/api.password: must contain 32 or more letters" in result.stderr
    assert (tmp_path / "users.acl").read_text() == before
