"""``tweezer projects``, ``keys`` and ``users``, and the key of ``tweezer up``."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tests.support.api_rig import SECRETS_KEY

from tweezer.cli import main
from tweezer.cli.local.ledger_setup import check_given_key, get_or_create_key
from tweezer.ledger.access.credentials import key_id, new_key
from tweezer.ledger.access.keys import create_session, list_keys, revoke_key
from tweezer.ledger.access.links import ensure_link_keys
from tweezer.ledger.access.users import find_login, find_user
from tweezer.ledger.access.vault import Vault
from tweezer.ledger.database import Database
from tweezer.model.errors import Conflict, InvalidInput, install_command
from tweezer.settings import ApiSettings, DatabaseSettings, Settings

NOWHERE = "redis://127.0.0.1:1/0"
PASSWORD = "correct horse battery"


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in os.environ:
        if name.startswith("TWEEZER_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


class Line:
    """The command line on a ledger, without Redis, which these commands do not need."""

    def __init__(self, ledger: Database) -> None:
        self._environment = {"TWEEZER_DATABASE_URL": str(ledger.engine.url)}

    def call(self, *arguments: str, input: str | None = None) -> Result:
        return CliRunner(env=self._environment).invoke(main, ["--redis", NOWHERE, *arguments], input=input)

    def output(self, *arguments: str, input: str | None = None) -> str:
        result = self.call(*arguments, input=input)
        assert result.exit_code == 0, result.output
        return result.stdout.strip()

    def json(self, *arguments: str) -> Any:
        return json.loads(self.output(*arguments, "--json"))

    def refused(self, *arguments: str, code: int = 1, input: str | None = None) -> str:
        """Return the last line of stderr."""
        result = self.call(*arguments, input=input)
        assert result.exit_code == code, result.output
        assert result.stdout == ""
        return result.stderr.strip().splitlines()[-1]


@pytest.fixture
def line(ledger: Database) -> Line:
    line = Line(ledger)
    line.output("projects", "create", "Lab", "--id", "lab")
    return line


# -- sessions -------------------------------------------------------------------------------------------


def test_the_sessions_of_a_user_are_listed_and_ended(line: Line, ledger: Database) -> None:
    for name in ("ada", "bob"):
        line.output("users", "create", name, "--generate")
    assert line.output("users", "sessions", "ada") == "ada is not logged in."
    with ledger.write() as connection:
        made = {
            name: [create_session(connection, find_user(connection, name).id, session_s=100).about.id for _ in "ab"]
            for name in ("ada", "bob")
        }
    assert {it["id"] for it in line.json("users", "sessions", "ada")} == set(made["ada"])
    assert made["ada"][0] in line.output("users", "sessions", "ada")
    assert f"there is no session {made['bob'][0]}" in line.refused("users", "log-out", "ada", made["bob"][0])
    assert line.output("users", "log-out", "ada", made["ada"][0]) == "Ended 1 session of ada."
    assert [it["id"] for it in line.json("users", "sessions", "ada")] == made["ada"][1:]
    assert [it["id"] for it in line.json("users", "log-out", "ada")] == made["ada"][1:]
    assert line.json("users", "sessions", "ada") == []
    assert len(line.json("users", "sessions", "bob")) == 2


# -- links to results -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "former", "said"),
    [([], 1, "remain valid for at most 7 d"), (["--overlap", "0"], 0, "existing links are no longer valid")],
)
def test_the_key_that_signs_links_is_rotated(
    monkeypatch: pytest.MonkeyPatch, line: Line, ledger: Database, options: list[str], former: int, said: str
) -> None:
    monkeypatch.setattr("tweezer.cli.credentials.SECRETS_SURE_S", 0)
    monkeypatch.setenv("TWEEZER_SECRETS_KEY", SECRETS_KEY)
    vault = Vault.of(SECRETS_KEY, Path())
    with ledger.write() as connection:
        (before,) = ensure_link_keys(connection, vault)
    assert said in line.output("keys", "rotate-links", *options)
    with ledger.write() as connection:
        signing, *accepted = ensure_link_keys(connection, vault)
    assert signing.secret != before.secret
    assert [key.secret for key in accepted] == [before.secret] * former


def test_an_overlap_longer_than_the_validity_of_links_is_refused(monkeypatch: pytest.MonkeyPatch, line: Line) -> None:
    monkeypatch.setenv("TWEEZER_SECRETS_KEY", SECRETS_KEY)
    assert "overlap_s: must be 0 to 2592000 seconds" in line.refused("keys", "rotate-links", "--overlap", "31d")


# -- projects -------------------------------------------------------------------------------------------


def test_limits_of_a_project_are_saved_while_redis_is_unavailable(line: Line) -> None:
    arguments = ("projects", "limit", "lab", "--queued-jobs", "5", "--queued-mb", "2", "--results-mb", "none")
    result = line.call(*arguments)
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == "lab: queued_bytes 2.0 MiB, queued_jobs 5, result_bytes none"
    assert "the recorder copies the limits to Redis when it is back" in result.stderr
    about = line.json("projects", "limit", "lab", "--queued-jobs", "default")
    assert about["limits"] == {"queued_bytes": 2 << 20, "result_bytes": 0}


def test_an_invalid_limit_is_refused(line: Line) -> None:
    for text in ("many", "-1", "1e3", ""):
        assert "queued_jobs: must be" in line.refused("projects", "limit", "lab", f"--queued-jobs={text}")
    assert "give a limit" in line.refused("projects", "limit", "lab", code=2)
    assert "there is no project other" in line.refused("projects", "limit", "other", "--queued-jobs", "5")
    assert all(project["limits"] == {} for project in line.json("projects", "list"))


def test_a_project_is_made_and_listed(line: Line) -> None:
    identity = line.output("projects", "create", "Spin models")
    made = line.json("projects", "create", "Third")
    assert {it["id"]: it["name"] for it in line.json("projects", "list")} == {
        "lab": "Lab",
        identity: "Spin models",
        made["id"]: "Third",
    }
    assert "no" not in made
    table = line.output("projects", "list")
    assert all(word in table for word in ("lab", "Lab", identity, "Spin models"))
    assert "already" in line.refused("projects", "create", "Lab", "--id", "lab")


@pytest.mark.parametrize(
    ("given", "seconds"), [("90d", 7_776_000), ("12h", 43_200), ("5min", 300), ("forever", 0), ("default", None)]
)
def test_the_retention_of_a_project_is_set_in_words(line: Line, given: str, seconds: int | None) -> None:
    assert line.output("projects", "retention", "lab", given).startswith("lab: retention of ended batches:")
    assert line.json("projects", "list")[0]["retention_s"] == seconds


@pytest.mark.parametrize("given", ["", "x", "0d", "1", "1.5d", "d", "1 fortnight", "99999999999d"])
def test_an_invalid_retention_is_reported(line: Line, given: str) -> None:
    assert "90d" in line.refused("projects", "retention", "lab", given, code=2)


def test_a_deletion_is_confirmed(line: Line) -> None:
    result = line.call("projects", "delete", "lab", input="n\n")
    assert (result.exit_code, "Permanently delete Lab (lab)" in result.output) == (130, True)
    assert line.json("projects", "list")
    assert "there is no project nowhere" in line.refused("projects", "delete", "nowhere", "--yes")


# -- keys -----------------------------------------------------------------------------------------------


def test_a_key_is_shown_once_and_alone_on_stdout(line: Line) -> None:
    result = line.call("keys", "create", "laptop", "--project", "lab", "--expires", "90d")
    key = result.stdout.strip()
    assert key_id(key)
    assert "shown only once" in result.stderr
    assert key[17:] not in result.stderr
    assert key[17:] not in line.output("keys", "list", "--all") + line.output("keys", "list", "--json")
    about = line.json("keys", "create", "laptop", "--project", "lab")
    assert key_id(about["key"]) == about["id"]
    assert (about["kind"], about["role"], about["project"]) == ("key", "user", "lab")


def test_a_key_belongs_by_default_to_the_project_of_the_settings(line: Line) -> None:
    refusal = line.refused("keys", "create", "x")
    assert (
        "there is no project default; `tweezer projects list` shows their ids, and `tweezer projects create`" in refusal
    )
    made = json.loads(line.output("--project", "lab", "keys", "create", "x", "--json"))
    assert made["project"] == "lab"
    assert line.json("keys", "create", "x", "--role", "operator")["project"] is None
    assert line.json("keys", "create", "x", "--role", "metrics")["project"] is None
    assert line.json("keys", "create", "x", "--role", "read", "--project", "lab")["project"] == "lab"


def test_keys_are_listed_rotated_and_revoked_by_what_may_be_shown(line: Line) -> None:
    key = line.output("keys", "create", "laptop", "--project", "lab")
    assert line.json("keys", "list", "--project", "lab")[0]["id"] == key[4:16]
    successor = line.output("keys", "rotate", key[:16], "--overlap", "1h")
    assert {it["id"] for it in line.json("keys", "list")} == {key[4:16], successor[4:16]}
    assert "Revoked key" in line.output("keys", "revoke", key)  # a whole key, as found somewhere
    assert [it["id"] for it in line.json("keys", "list")] == [successor[4:16]]
    assert {it["id"] for it in line.json("keys", "list", "--all")} == {key[4:16], successor[4:16]}
    assert "revoked" in line.output("keys", "list", "--all")
    assert "is revoked or expired" in line.refused("keys", "rotate", key)


def test_an_invalid_key_is_not_repeated(line: Line) -> None:
    said = line.refused("keys", "revoke", "hunter2-secret")
    assert "keys list" in said
    assert "hunter2" not in said
    assert "there is no key" in line.refused("keys", "revoke", "a" * 12)


def test_a_key_may_belong_to_a_user(line: Line) -> None:
    user = json.loads(line.output("users", "create", "ada", "--generate", "--json"))
    assert line.json("keys", "create", "x", "--project", "lab", "--user", "ada")["user"] == user["id"]
    assert "there is no user bob" in line.refused("keys", "create", "x", "--project", "lab", "--user", "bob")


# -- users ----------------------------------------------------------------------------------------------


def test_a_user_is_made_with_a_password_from_a_prompt_or_from_stdin(line: Line, ledger: Database) -> None:
    line.output("users", "create", "ada", input=f"{PASSWORD}\n{PASSWORD}\n")
    line.output("users", "create", "bob", "--stdin", input=f"{PASSWORD}\n")
    with ledger.read() as connection:
        kept = {name: find_login(connection, name).password or "" for name in ("ada", "bob")}
    assert all(password.startswith("$argon2id$") for password in kept.values())
    assert line.call("users", "create", "carol", input="another password\na different one\n").exit_code == 130
    assert [user["name"] for user in line.json("users", "list")] == ["ada", "bob"]


def test_a_generated_password_is_shown_once(line: Line) -> None:
    result = line.call("users", "create", "ada", "--generate")
    assert len(result.stdout.strip()) >= 20
    assert "shown only once" in result.stderr
    changed = json.loads(line.output("users", "password", "ada", "--generate", "--json"))
    assert changed["password"] not in result.stdout
    assert "password" not in line.json("users", "list")[0]


def test_a_password_that_is_too_short_is_refused(line: Line) -> None:
    assert "password: must be 12 to" in line.refused("users", "create", "ada", "--stdin", input="short\n")
    assert "cannot be combined" in line.refused("users", "create", "ada", "--stdin", "--generate", code=2)
    assert line.json("users", "list") == []


def test_a_user_belongs_to_projects_and_can_be_disabled(line: Line) -> None:
    line.output("users", "create", "ada", "--generate")
    assert line.json("users", "add-to", "ada", "lab")["projects"] == ["lab"]
    assert "lab" in line.output("users", "list")
    assert line.json("users", "remove-from", "ada", "lab")["projects"] == []
    assert line.json("users", "disable", "ada")["disabled"]
    assert "disabled since" in line.output("users", "list")
    assert line.json("users", "enable", "ada")["disabled"] is None
    assert "there is no user bob" in line.refused("users", "disable", "bob")
    assert "there is no project x" in line.refused("users", "add-to", "ada", "x")


@pytest.mark.parametrize("group", ["projects", "keys", "users"])
def test_an_empty_list_shows_how_to_create_the_first_entry(group: str, ledger: Database) -> None:
    assert f"tweezer {group} create" in Line(ledger).output(group, "list")


@pytest.mark.parametrize("command", [["projects", "list"], ["keys", "create", "x"], ["users", "list"]])
def test_a_ledger_without_tables_is_reported(command: list[str], tmp_path: Path) -> None:
    environment = {"TWEEZER_DATABASE_URL": f"sqlite:///{tmp_path / 'blank.db'}"}
    result = CliRunner(env=environment).invoke(main, command)
    assert result.exit_code == 1
    assert "tweezer db upgrade" in result.stderr


@pytest.mark.parametrize("group", ["projects", "keys", "users"])
def test_the_base_install_reports_which_extra_to_install(group: str) -> None:
    program = f"import sys; sys.modules['sqlalchemy'] = None; from tweezer.cli import main; main(['{group}', 'list'])"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr == f"Error: `tweezer {group}` needs sqlalchemy; run {install_command('server')}\n"


# -- the key of `tweezer up` ----------------------------------------------------------------------------


@pytest.fixture
def settings(ledger: Database, tmp_path: Path) -> Settings:
    return Settings(database=DatabaseSettings(url=str(ledger.engine.url)), data_dir=tmp_path)


def test_the_key_is_kept_in_a_file_that_only_its_owner_reads(
    settings: Settings, tmp_path: Path, ledger: Database
) -> None:
    key = get_or_create_key(settings, ledger)
    assert get_or_create_key(settings, ledger) == key
    file = tmp_path / "api-key"
    assert file.read_text().strip() == key
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_key_in_the_file_that_the_ledger_lost_is_registered_again(
    settings: Settings, tmp_path: Path, ledger: Database
) -> None:
    kept = new_key()
    (tmp_path / "api-key").write_text(f"{kept}\n")
    assert get_or_create_key(settings, ledger) == kept


def test_an_expired_or_broken_key_in_the_file_is_replaced(settings: Settings, tmp_path: Path, ledger: Database) -> None:
    first = get_or_create_key(settings, ledger)
    with ledger.write() as connection:
        revoke_key(connection, key_id(first) or "")
    second = get_or_create_key(settings, ledger)
    assert second != first
    (tmp_path / "api-key").write_text("nonsense")
    assert get_or_create_key(settings, ledger) not in (first, second)
    other = Settings(database=DatabaseSettings(url=settings.database.url), data_dir=tmp_path, project_id="other")
    third = get_or_create_key(other, ledger)
    with ledger.read() as connection:
        assert {key.project for key in list_keys(connection) if key.id == key_id(third)} == {"other"}


def test_a_given_key_is_used_and_not_written_to_the_file(settings: Settings, tmp_path: Path, ledger: Database) -> None:
    given = settings.model_copy(update={"api": ApiSettings(key=new_key()), "project_id": "mine"})
    assert get_or_create_key(given, ledger) == get_or_create_key(given, ledger) == given.api.key
    assert not (tmp_path / "api-key").exists()
    with ledger.write() as connection:
        revoke_key(connection, key_id(given.api.key) or "")
    with pytest.raises(Conflict):
        get_or_create_key(given, ledger)


def test_an_invalid_given_key_is_reported(settings: Settings) -> None:
    check_given_key(settings)
    with pytest.raises(InvalidInput) as caught:
        check_given_key(settings.model_copy(update={"api": ApiSettings(key="hunter2")}))
    assert caught.value.field == "TWEEZER_API_KEY"
    assert "hunter2" not in caught.value.message
