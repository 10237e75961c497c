"""Settings come from the environment, a file, or defaults; the error for a wrong one has its name."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest

from tweezer.adapters.registry import Binding
from tweezer.ledger.config import LINK_MAX_S, sqlite_file
from tweezer.model.errors import InvalidInput
from tweezer.settings import SECRET_FILES, SETTINGS, WebhookSettings, WorkerSettings, load


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.upper().startswith("TWEEZER_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_with_nothing_set_there_are_defaults() -> None:
    settings = load()
    assert settings.redis.url == "redis://127.0.0.1:6379/0"
    assert settings.worker.drain_s == 4  # honcho kills five seconds after SIGTERM
    assert settings.redis.grace_s == 24 * 3600
    assert settings.database.retention_s == 0  # for ever
    assert settings.worker.memory_limit_mb == 4096


def test_every_setting_has_a_docstring() -> None:
    tree = ast.parse(Path(str(load.__code__.co_filename)).read_text(encoding="utf-8"))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    for setting in SETTINGS.values():
        body = classes[f"{setting.group.capitalize()}Settings" if setting.group else "Settings"].body
        (at,) = [
            at for at, it in enumerate(body) if isinstance(it, ast.AnnAssign) and ast.unparse(it.target) == setting.name
        ]
        following = body[at + 1]
        assert isinstance(following, ast.Expr), f"{setting.key} has no docstring"
        assert isinstance(following.value, ast.Constant), f"{setting.key} has no docstring"


def test_there_are_at_most_46_settings() -> None:
    assert len(SETTINGS) <= 46


def test_no_two_settings_have_the_same_variable() -> None:
    variables = [setting.variable for setting in SETTINGS.values()] + list(SECRET_FILES.values())
    assert len(set(variables)) == len(variables)


def test_the_environment_wins_over_the_file_and_the_file_over_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("tweezer.toml").write_text("[worker]\nlanes = 3\nlease_s = 30\n", encoding="utf-8")
    monkeypatch.setenv("TWEEZER_WORKER_LANES", "4")
    settings = load()
    assert (settings.worker.lanes, settings.worker.lease_s, settings.worker.drain_s) == (4, 30, 4)


def test_values_given_in_code_win_over_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWEEZER_WORKER_LANES", "4")
    assert load({"worker.lanes": 5}).worker.lanes == 5


def test_another_file_can_be_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Path("tweezer.toml").write_text("[worker]\nlanes = 3\n", encoding="utf-8")
    other = tmp_path / "lab.toml"
    other.write_text('[worker]\ndevice = "EMU_SV"\n')
    monkeypatch.setenv("TWEEZER_CONFIG", str(other))
    settings = load()
    assert (settings.worker.device, settings.worker.lanes) == ("EMU_SV", 2)


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWEEZER_WORKER_MEMORY_LIMIT_MB", "")
    assert load().worker.memory_limit_mb == 4096


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("TWEEZER_WORKER_LEASE_S", "soon", "should be a valid number"),
        ("TWEEZER_WORKER_LEASE_S", "0.1", "should be greater than or equal to 1 (got '0.1')"),
        ("TWEEZER_WORKER_DRAIN_S", "-1", "greater than or equal to 0"),
        ("TWEEZER_WORKER_DRAIN_S", "nan", "should be"),
        ("TWEEZER_API_LONGPOLL_S", "21", "less than or equal to 20"),
        ("TWEEZER_WORKER_LANES", "0", "greater than or equal to 1"),
        ("TWEEZER_WORKER_LANES", "2.5", "valid integer"),
        ("TWEEZER_API_PORT", "70000", "less than or equal to 65535"),
        ("TWEEZER_REDIS_URL", "http://localhost", "must start with redis://"),
        ("TWEEZER_REDIS_URL", "redis://localhost/x", "the database must be a number"),
        ("TWEEZER_NAMESPACE", "a{b}", "should match pattern"),
        ("TWEEZER_LOG_FORMAT", "xml", "'auto', 'json' or 'console'"),
        ("TWEEZER_LOG_LEVEL", "LOUD", "'DEBUG', 'INFO'"),
        ("TWEEZER_CONFIG", "absent.toml", "the file absent.toml does not exist"),
        *(
            ("TWEEZER_API_CORS_ORIGINS", value, "must be exact origins such as https://app.example.org")
            for value in (
                "*",
                "null",
                "https://*.example.org",
                "https://a.org/",
                "a.org",
                "https://u@a.org",
                "ftp://a.org",
            )
        ),
    ],
)
def test_a_wrong_value_gives_one_sentence_with_its_variable(
    variable: str, value: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(InvalidInput) as raised:
        load()
    assert raised.value.field == variable
    assert raised.value.message.startswith(f"{variable}: ")
    assert says in raised.value.message
    assert "\n" not in raised.value.message


def test_origins_are_written_as_browsers_send_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "TWEEZER_API_CORS_ORIGINS", " https://App.example.org:443, http://localhost:5173,http://[::1]:80,"
    )
    assert load().api.cors_origins == "https://app.example.org,http://localhost:5173,http://[::1]"


@pytest.mark.parametrize(("lease_s", "heartbeat_s"), [(15, 2), (4, 1), (3600, 2)])
def test_a_heartbeat_fits_the_lease(lease_s: float, heartbeat_s: float) -> None:
    assert WorkerSettings(lease_s=lease_s).heartbeat_s == heartbeat_s


@pytest.mark.parametrize(
    ("schedule_s", "link_s"), [((0,), 7 * 86_400), ((0, 5 * 86_400), 10 * 86_400), ((0, 20 * 86_400), LINK_MAX_S)]
)
def test_links_in_webhooks_are_valid_for_longer_than_the_attempts(schedule_s: tuple[float, ...], link_s: int) -> None:
    assert WebhookSettings(schedule_s=schedule_s).link_s == link_s


def test_an_error_in_the_file_names_key_and_file() -> None:
    Path("tweezer.toml").write_text("[worker]\nlanes = 0\n", encoding="utf-8")
    with pytest.raises(
        InvalidInput, match=r"^worker\.lanes in tweezer\.toml: should be greater than or equal to 1 \(got 0\)$"
    ):
        load()


def test_the_file_may_begin_with_a_byte_order_mark() -> None:
    Path("tweezer.toml").write_text("[worker]\nlanes = 7\n", encoding="utf-8-sig")
    assert load().worker.lanes == 7


def test_a_file_in_another_encoding_is_an_error() -> None:
    Path("tweezer.toml").write_bytes('project_id = "äöü"\n'.encode("latin-1"))
    with pytest.raises(InvalidInput, match=r"^tweezer\.toml: is not valid UTF-8 text"):
        load()


def test_an_unknown_key_in_the_file_is_an_error() -> None:
    for text, key in (("lane = 2", "lane"), ("[worker]\nlane = 2", r"worker\.lane"), ("[work]\nlanes = 2", "work")):
        Path("tweezer.toml").write_text(text, encoding="utf-8")
        with pytest.raises(InvalidInput, match=rf"^{key} in tweezer\.toml: is not a known setting$"):
            load()


def test_a_group_that_is_not_a_table_is_an_error() -> None:
    Path("tweezer.toml").write_text("worker = 2\n", encoding="utf-8")
    with pytest.raises(InvalidInput, match=r"^worker in tweezer\.toml: should be a valid dictionary"):
        load()


def test_a_file_that_is_not_toml_is_an_error() -> None:
    Path("tweezer.toml").write_text("lanes: 2\n", encoding="utf-8")
    with pytest.raises(InvalidInput, match=r"^tweezer\.toml: is not valid TOML"):
        load()


def test_a_password_is_shown_neither_in_an_error_nor_in_the_repr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWEEZER_REDIS_URL", "http://:hunter2@lab")
    with pytest.raises(InvalidInput) as raised:
        load()
    assert "hunter2" not in raised.value.message
    monkeypatch.setenv("TWEEZER_REDIS_URL", "redis://:hunter2@lab")
    assert "hunter2" not in repr(load())


@pytest.mark.parametrize(
    ("url", "opened"),
    [
        ("redis://host:6379/0", "redis://:p%40s%2F%20s@host:6379/0"),
        ("redis://worker@host/0", "redis://worker:p%40s%2F%20s@host/0"),
        ("redis+sentinel://a:1,b:2/service/0", "redis+sentinel://:p%40s%2F%20s@a:1,b:2/service/0"),
        ("unix:///run/redis.sock", "unix://:p%40s%2F%20s@/run/redis.sock"),
        ("redis://:given@host/0", "redis://:given@host/0"),
    ],
)
def test_a_password_in_a_file_completes_the_url(
    url: str, opened: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "password").write_text("p@s/ s\n")
    monkeypatch.setenv("TWEEZER_REDIS_PASSWORD_FILE", str(tmp_path / "password"))
    monkeypatch.setenv("TWEEZER_REDIS_URL", url)
    assert load().connect().url == opened
    assert "p@s" not in repr(load())


def test_passwords_of_the_database_and_the_secrets_key_may_be_in_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in (("DATABASE_PASSWORD", "hush"), ("SECRETS_KEY", "key")):
        (tmp_path / name).write_text(f"\ufeff{text}\n", encoding="utf-8")  # as Windows programs begin a file
        monkeypatch.setenv(f"TWEEZER_{name}_FILE", str(tmp_path / name))
    assert load().locate_ledger().url.startswith("sqlite:///"), "SQLite has no passwords"
    monkeypatch.setenv("TWEEZER_DATABASE_URL", "postgresql://tweezer@/tweezer?host=/run/postgresql")
    settings = load()
    assert settings.locate_ledger().url == "postgresql://tweezer:hush@/tweezer?host=/run/postgresql"
    assert settings.secrets.key == "key"
    monkeypatch.setenv("TWEEZER_SECRETS_KEY", "the variable wins")
    assert load().secrets.key == "the variable wins"


@pytest.mark.parametrize(
    ("content", "problem"),
    [(None, "cannot be read: No such file"), (b"\n", "is empty"), (b"\xff", "is not valid UTF-8")],
)
def test_an_unusable_file_of_a_secret_is_named(
    content: bytes | None, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if content is not None:
        (tmp_path / "secret").write_bytes(content)
    monkeypatch.setenv("TWEEZER_REDIS_PASSWORD_FILE", str(tmp_path / "secret"))
    with pytest.raises(InvalidInput, match=f"^TWEEZER_REDIS_PASSWORD_FILE: .*{problem}"):
        load()


@pytest.mark.parametrize("name", ["100%", "what?", "no#1", "d ä"])
def test_the_ledger_is_in_a_data_folder_of_any_name(tmp_path: Path, name: str) -> None:
    assert sqlite_file(load({"data_dir": tmp_path / name}).locate_ledger().url) == tmp_path / name / "ledger.db"


def test_an_operator_names_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("tweezer.toml").write_text(
        '[devices.TWIN]\nadapter = "qutip"\nspecs = "twin.json"\noptions = { threads = 4 }\n\n'
        '[devices.NULL]\nadapter = "null"\noptions = { checks_sequence = true }\n',
        encoding="utf-8",
    )
    settings = load()
    assert settings.binding("TWIN") == Binding("qutip", {"threads": 4}, Path("twin.json"))
    assert settings.binding("NULL").options == {"checks_sequence": True}
    assert settings.binding("EMU_FREE") == Binding("qutip")
    with pytest.raises(
        InvalidInput, match=r"no adapter serves EMU_FRE; use one of EMU_FREE, EMU_SV, .*, NULL, TWIN, or .*toml"
    ):
        settings.binding("EMU_FRE")
    monkeypatch.setenv("TWEEZER_DEVICES", '{"OTHER": {"adapter": "null"}}')
    assert load().devices.keys() == {"TWIN", "NULL", "OTHER"}


@pytest.mark.parametrize(
    ("table", "field", "problem"),
    [
        ('[devices.X]\nspecs = "a.json"', "devices.X.adapter in tweezer.toml", "is missing"),
        ('[devices.X]\nadapter = "abacus"', "devices.X.adapter in tweezer.toml", "'abacus' is not an adapter"),
        ('[devices.X]\nadapter = "null"\nlanes = 3', "devices.X.lanes in tweezer.toml", "is not a known setting"),
        (
            '[devices.X]\nadapter = "qutip"\noptions = { thread = 1 }',
            "devices.X.options.thread in tweezer.toml",
            "is not an option of the adapter qutip; use memory_limit_mb, threads",
        ),
        ('[devices."A B"]\nadapter = "null"', "devices.A B in tweezer.toml", "String should match pattern"),
    ],
)
def test_a_wrong_field_of_a_device_is_named(table: str, field: str, problem: str) -> None:
    Path("tweezer.toml").write_text(table, encoding="utf-8")
    with pytest.raises(InvalidInput) as raised:
        load()
    assert raised.value.field == field
    assert raised.value.problem.startswith(problem)


def test_devices_in_the_environment_are_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWEEZER_DEVICES", "TWIN")
    with pytest.raises(InvalidInput, match="TWEEZER_DEVICES: is not valid JSON"):
        load()
    monkeypatch.setenv("TWEEZER_DEVICES", '{"X": {"adapter": "abacus"}}')
    with pytest.raises(InvalidInput, match=r"TWEEZER_DEVICES\.X\.adapter: 'abacus' is not an adapter"):
        load()


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ('[api]\nhost = "a\\u0000"', "api.host in"),
        ('[devices.A]\nadapter = "null"\noptions = { url = "a\\u001b" }', "devices.A.options.url in"),
    ],
)
def test_control_characters_in_the_file_are_refused_with_their_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, field: str
) -> None:
    (tmp_path / "tweezer.toml").write_text(text)
    monkeypatch.setenv("TWEEZER_CONFIG", str(tmp_path / "tweezer.toml"))
    with pytest.raises(InvalidInput, match="has a control character") as refused:
        load()
    assert refused.value.field.startswith(field)
