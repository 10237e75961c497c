"""The command line: its commands, how they fail, and what they do not import."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import click
import pytest
from click.testing import CliRunner, Result

from tweezer import __version__
from tweezer.cli import group, main
from tweezer.cli.local.children import Interrupts
from tweezer.cli.local.owned import free_port, why_not_free
from tweezer.cli.local.stack import Stack
from tweezer.cli.options import Options, require
from tweezer.cli.processes import _has_own_ledger, usage
from tweezer.data_folder import PublishedEnvironment
from tweezer.model.errors import TweezerError
from tweezer.settings import Settings, load

ROOT = Path(__file__).parents[3]
NOWHERE = "redis://127.0.0.1:1/0"
COMMANDS = [name for section in group.SECTIONS.values() for name in section]


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in os.environ:
        if name.startswith("TWEEZER_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def call(*arguments: str, input: str | None = None) -> Result:
    return CliRunner().invoke(main, ["--redis", NOWHERE, *arguments], input=input)


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )


def all_commands(command: click.Command = main, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Return the words that call each command and subcommand, without its arguments and options."""
    yield words
    if isinstance(command, click.Group):
        if words:  # the arguments of a group come before the subcommand
            words += ("FRESNEL",) * sum(isinstance(each, click.Argument) for each in command.params)
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from all_commands(inner, (*words, name))


def refused(result: Result, code: int) -> str:
    """Return the one sentence of an error."""
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    assert result.stdout == ""
    return result.stderr.strip().splitlines()[-1]


# --- where it speaks


def closed(redirection: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", "-c", f'"$0" -m tweezer.cli --redis {NOWHERE} devices {redirection}', sys.executable]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_a_closed_standard_output_is_an_error_of_one_sentence() -> None:
    ran = closed(">&-")
    said = "Error: standard output is closed; redirect it to /dev/null to discard it\n"
    assert (ran.returncode, ran.stderr) == (1, said)


def test_a_closed_standard_error_does_not_cause_another_error() -> None:
    ran = closed("2>&-")
    assert (ran.returncode, ran.stdout) == (1, "")


def test_the_output_of_up_can_be_pasted_into_a_shell(tmp_path: Path) -> None:
    data = tmp_path / "it's ä \\ $HOME"
    data.mkdir()
    stack = cast(
        Stack,
        SimpleNamespace(
            redis_place="a:6379",
            api_url="http://b",
            logs=data / "log",
            publish=lambda: PublishedEnvironment(data, {"TWEEZER_API_KEY": "a key"}).file,
        ),
    )
    (line,) = [line for line in usage(stack) if line.startswith("  . ")]
    script = f'{line}\nprintf %s "$TWEEZER_API_KEY"'
    ran = subprocess.run(["sh", "-c", script], capture_output=True, text=True, env={}, check=True)
    assert ran.stdout == "a key"
    assert "  docs   http://b/docs  (the API, to read and to try)" in usage(stack)


@pytest.fixture
def brought_up(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """Return the settings with which ``tweezer up`` would have started the processes."""
    found: list[Settings] = []

    def stack(settings: Settings, *_: object, **__: object) -> None:
        found.append(settings)
        raise TweezerError("this is far enough")

    monkeypatch.setattr("tweezer.cli.processes.Stack", stack)
    return found


def test_a_ledger_belongs_to_the_data_folder_that_contains_it_or_is_configured_with_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("TWEEZER_DATA_DIR", raising=False)
    data, elsewhere = tmp_path / "data", f"sqlite:///{tmp_path}/ledger.db"
    assert _has_own_ledger(load({"data_dir": data}), data)
    assert _has_own_ledger(load({"data_dir": data, "database.url": f"sqlite:///{data}/ledger.db"}), data)
    assert not _has_own_ledger(load({"data_dir": data, "database.url": elsewhere}), data)
    assert not _has_own_ledger(load({"database.url": elsewhere}), None)
    monkeypatch.setenv("TWEEZER_DATA_DIR", str(data))
    assert _has_own_ledger(load({"database.url": elsewhere}), None)


def test_up_on_another_folder_ignores_the_shells_variables_of_the_first(
    brought_up: list[Settings], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first, other = tmp_path / "first", tmp_path / "other"
    variables = {
        "DATA_DIR": first,
        "DATABASE_URL": f"sqlite:///{first}/ledger.db",
        "RESULTS_DIR": first / "results",
        "API_KEY": "twz_" + "k" * 43,
        "PROJECT_ID": "lab",
    }
    for name, value in variables.items():
        monkeypatch.setenv(f"TWEEZER_{name}", str(value))
    result = call("up", "--data", str(other), "--device", "NULL")
    assert "TWEEZER_DATABASE_URL, TWEEZER_RESULTS_DIR, TWEEZER_API_KEY of this shell: they belong" in result.stderr
    (settings,) = brought_up
    assert settings.locate_ledger().url == f"sqlite:///{other}/ledger.db"
    assert (settings.results_folder(), settings.api.key, settings.project_id) == (other / "results", "", "lab")


def test_up_uses_the_variables_of_its_folder_and_those_without_a_folder(
    brought_up: list[Settings], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TWEEZER_DATABASE_URL", "postgresql://lab@db/tweezer")
    call("up", "--data", str(tmp_path), "--device", "NULL")
    monkeypatch.setenv("TWEEZER_DATA_DIR", str(tmp_path))
    call("up", "--data", f"{tmp_path}/../{tmp_path.name}", "--device", "NULL")
    call("up", "--device", "NULL")
    assert [settings.locate_ledger().url for settings in brought_up] == ["postgresql://lab@db/tweezer"] * 3


def test_an_unusable_port_is_reported_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert why_not_free(taken.getsockname()[1]) == "is in use"

    def refuse(_: socket.socket, address: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    assert why_not_free(80) == "requires root, as all ports below 1024 do"


def test_a_free_port_is_outside_the_usual_range_of_connections() -> None:
    assert all(1024 <= free_port() < 32_768 for _ in range(50))


# --- what there is


HEAVY = {
    "aiohttp", "arq", "asyncio", "fastapi", "hiredis", "msgspec", "numpy", "pulser", "pydantic",
    "redis", "sqlalchemy", "structlog", "uvicorn",
}  # fmt: skip
"""Libraries that take longer to import than everything that the list of commands needs."""


def test_no_help_is_wider_than_a_terminal_of_80_columns() -> None:
    wide: list[str] = []
    for words in all_commands():
        shown = CliRunner(env={"COLUMNS": "80"}).invoke(main, [*words, "--help"], prog_name="tweezer")
        assert shown.output.startswith(f"Usage: {' '.join(('tweezer', *words)).replace('FRESNEL', 'DEVICE')} ["), words
        wide += [line for line in shown.output.splitlines() if len(line) > 80]
    assert not wide


@pytest.mark.parametrize("option", ["--help", "-h", "--version"])
def test_help_and_version_import_only_what_they_need(option: str) -> None:
    program = f"""
import sys
from tweezer.cli import main
try:
    main([{option!r}])
finally:
    heavy = {{name.split(".")[0] for name in sys.modules}} & {HEAVY!r}
    ours = {{name for name in sys.modules if name.startswith("tweezer.")}}
    assert not heavy, heavy
    modules = ["cli", "cli.group", "cli.options", "cli.show", "data_folder", "model", "model.errors"]
    assert ours == {{f"tweezer.{{name}}" for name in modules}}
"""
    ran = run_python("-c", program)
    if option != "--version":
        for name in COMMANDS:
            assert f"\n  {name} " in ran.stdout


def test_importing_the_package_gives_its_public_names_when_they_are_used() -> None:
    program = """
import sys, tweezer
assert not {"redis", "msgspec", "asyncio"} & set(sys.modules)
assert {name: getattr(tweezer, name) for name in tweezer.__all__}
assert set(tweezer.__all__) <= set(dir(tweezer))
assert tweezer.Job is tweezer.Job
from tweezer import *
assert Priority.HIGH == "HIGH" and connect is tweezer.connect
try:
    tweezer.nothing
except AttributeError as error:
    assert "nothing" in str(error)
else:
    raise AssertionError
"""
    run_python("-c", program)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_listed_command_exists_and_has_help(name: str) -> None:
    result = call(name, "--help")
    assert result.exit_code == 0
    assert f"Usage: main {name}" in result.stdout


def test_it_prints_its_version() -> None:
    assert CliRunner().invoke(main, ["--version"]).stdout == f"tweezer {__version__}\n"


def test_it_runs_as_a_module() -> None:
    ran = run_python("-m", "tweezer.cli", "--version")
    assert ran.stdout == f"tweezer {__version__}\n"


# --- how it fails


def test_an_unknown_command_is_a_usage_error() -> None:
    assert "No such command 'sbmit'" in refused(call("sbmit"), 2)


def test_an_unreachable_redis_is_reported_in_one_sentence_with_advice() -> None:
    for arguments in (("devices",), ("workers",), ("watch", "01a2014a-10da-8070-b687-9a55ac000000")):
        sentence = refused(call(*arguments), 1)
        assert sentence.startswith("Error: Redis cannot be reached")
        assert "tweezer up" in sentence
        assert "TWEEZER_REDIS_URL" in sentence


def test_a_wrong_redis_url_is_refused_without_showing_it() -> None:
    result = CliRunner().invoke(main, ["--redis", "http://user:secret@host", "devices"])
    sentence = refused(result, 1)
    assert "redis://" in sentence
    assert "secret" not in sentence


def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWEEZER_WORKER_LEASE_S", "soon")
    assert "TWEEZER_WORKER_LEASE_S" in refused(call("devices"), 1)


def test_a_missing_sequence_file_is_a_usage_error() -> None:
    sentence = refused(call("submit", "nowhere.json", "--runs", "5"), 2)
    assert "nowhere.json" in sentence
    assert "No such file" in sentence


def test_a_sequence_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    for content, problem in (
        (b"\xff\x00", "is not valid UTF-8 text"),
        ("{}".encode("utf-16"), "is text in UTF-16; save it as UTF-8"),
        (pickle.dumps({}), "looks like a pickle, which is not accepted"),
        (b" \n", "is empty"),
    ):
        (tmp_path / "ring.json").write_bytes(content)
        assert f"ring.json: {problem}" in refused(call("submit", "ring.json", "--runs", "5"), 1)
        (tmp_path / "good.json").write_text("{}")
        options = ("--runs", "5", "--backend-configuration", "ring.json")
        assert f"ring.json: {problem}" in refused(call("submit", "good.json", *options), 1)


def test_a_submit_without_jobs_is_a_usage_error() -> None:
    assert "--runs" in refused(call("submit", "-", input="{}"), 2)
    assert "--jobs" in refused(call("add", "01a2014a-10da-8070-b687-9a55ac000000"), 2)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--job", "runs:5"), "'runs:5' must have the form name=value"),
        (("--job", "runs=5,=3"), "'=3' must have the form name=value"),
        (("--job", "runs=5,omega=fast"), "'fast' in 'omega=fast' must be a number or a list such as [1,2]"),
        (("--job", "runs=5,runs=6"), "gives runs twice"),
        (("--var", "omega"), "'omega' must have the form name=value"),
        (("--runs", "many"), "'many' is not a valid integer"),
        (("--runs", "5", "--priority", "URGENT"), "'URGENT' is not one of"),
        (("--runs", "5", "--not-before", "tomorrow"), "'tomorrow' is not a valid time; use e.g."),
    ],
)
def test_a_flag_that_cannot_be_read_is_quoted(arguments: tuple[str, ...], said: str) -> None:
    assert said in refused(call("submit", "-", *arguments, input="{}"), 2)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('{"runs": 5}\n\n{"runs": 5\n', "jobs.jsonl, line 3: is not valid JSON"),
        ("[5]\n", "jobs.jsonl, line 1: must be an object"),
    ],
)
def test_a_line_of_jobs_that_cannot_be_read_is_numbered(lines: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "jobs.jsonl").write_text(lines)
    assert said in refused(call("submit", "-", "--jobs", "jobs.jsonl", input="{}"), 1)


def test_pause_requires_either_batches_or_a_device_with_a_reason() -> None:
    batch = "01a2014a-10da-8070-b687-9a55ac000000"
    assert "either batches or a device" in refused(call("pause"), 2)
    assert "either batches or a device" in refused(call("resume", "x", "--device", "EMU_FREE"), 2)
    assert "give the reason for pausing the device EMU_FREE with --reason" in refused(call("pause", "EMU_FREE"), 2)
    assert "--reason" in refused(call("pause", "--device", "EMU_FREE"), 2)
    assert "apply only to a device" in refused(call("pause", batch, "--for", "2h"), 2)
    assert "'x' is not a batch id" in refused(call("pause", batch, "x"), 2)
    both = ("--until", "2099-01-31T08:00", "--for", "2h")
    assert "either --until or --for" in refused(call("pause", "EMU_FREE", "--reason", "why", *both), 2)
    assert "is not a valid time; use e.g." in refused(
        call("pause", "EMU_FREE", "--reason", "why", "--until", "noon"), 2
    )


def test_a_missing_extra_is_named() -> None:
    require("api", "server", "json")
    with pytest.raises(TweezerError, match=r"`tweezer api` needs no_such_module; run `pip install '\.\[server\]'`"):
        require("api", "server", "json", "no_such_module")


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, ""),
        (TweezerError("it is so"), 1, "Error: it is so"),
        (FileNotFoundError(2, "No such file or directory", "x.png"), 1, "Error: x.png: No such file or directory"),
        (
            ZeroDivisionError("by zero"),
            1,
            "internal error: ZeroDivisionError: by zero\nThis is a bug in Tweezer",
        ),
    ],
)
def test_every_exception_of_a_command_gives_an_exit_code(
    error: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    @click.command()
    def broken() -> None:
        raise error

    monkeypatch.setattr(group.CommandGroup, "get_command", lambda *_: broken)
    result = call("broken")
    assert result.exit_code == code
    assert said in result.stderr
    assert "Traceback" not in result.output


def test_an_unexpected_error_is_shown_in_full_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def broken() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(group.CommandGroup, "get_command", lambda *_: broken)
    monkeypatch.setenv("TWEEZER_LOG_LEVEL", "DEBUG")
    assert isinstance(call("broken").exception, ZeroDivisionError)


# --- signals


def test_signals_interrupt_only_what_may_be_interrupted() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Interrupts() as interrupts:
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupts.came.is_set()
        assert interrupts.exit_code == 128 + signal.SIGTERM
        with pytest.raises(KeyboardInterrupt), interrupts.allowed():
            raise AssertionError("a signal that came before interrupts at once")
        assert interrupts.count == 1
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_within_interrupts_once() -> None:
    with Interrupts() as interrupts:
        with pytest.raises(KeyboardInterrupt), interrupts.allowed():
            os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupts.count == 2
        assert interrupts.exit_code == 130


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (("submit", "-", "--runs", "1", "--runs", "2"), "--runs"),
        (("--project", "a", "--project", "b", "devices"), "--project"),
        (("projects", "limit", "a", "--queued-jobs", "1", "--queued-jobs", "2"), "--queued-jobs"),
    ],
)
def test_an_option_that_is_given_twice_is_refused_by_its_name(arguments: tuple[str, ...], option: str) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert f"{option}: given 2 times; give it once" in result.stderr


def test_a_flag_may_be_given_twice_and_an_option_with_many_values_too() -> None:
    result = CliRunner().invoke(main, ["submit", "-", "--tag", "a", "--tag", "b", "--wait", "--wait", "--help"])
    assert result.exit_code == 0


# --- did you mean, options anywhere, completion


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("sumbit",), "No such command 'sumbit'. Did you mean 'submit'?"),
        (("kill",), "No such command 'kill'. Did you mean 'cancel'?"),
        (("stop",), "No such command 'stop'. Did you mean 'cancel' or 'drain'?"),
        (("xyzzy",), "No such command 'xyzzy'."),
        (("keys", "lst"), "No such command 'lst'. Did you mean 'list'?"),
        (("submit", "--idempotency", "x"), "No such option '--idempotency'. Did you mean '--idempotency-key'?"),
        (("devices", "--projct", "x"), "No such option '--projct'. Did you mean '--project'?"),
    ],
)
def test_a_mistyped_command_or_option_is_answered_with_the_nearest(arguments: tuple[str, ...], said: str) -> None:
    assert refused(call(*arguments), 2) == f"Error: {said}"


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Options]:
    """Return the global options with which commands load the settings."""
    found: list[Options] = []

    def note(options: Options, given: object = None) -> None:
        found.append(options)
        raise TweezerError("this is far enough")

    monkeypatch.setattr(Options, "settings", note)
    return found


@pytest.mark.parametrize(
    "arguments",
    [
        ("--project", "spins", "--namespace", "lab", "devices"),
        ("devices", "--project", "spins", "--namespace", "lab"),
        ("--namespace", "lab", "devices", "--json", "--project", "spins"),
        ("webhooks", "--project", "spins", "list", "--namespace", "lab"),
        ("maintenance", "--project", "spins", "FRESNEL", "list", "--namespace", "lab"),
    ],
)
def test_global_options_are_accepted_before_and_after_the_command(
    seen: list[Options], arguments: tuple[str, ...]
) -> None:
    CliRunner().invoke(main, arguments)
    assert (seen[0].project, seen[0].namespace, seen[0].redis) == ("spins", "lab", None)


def test_a_project_that_a_command_takes_for_its_own_is_not_the_global_one(seen: list[Options]) -> None:
    CliRunner().invoke(main, ["--project", "spins", "keys", "create", "name", "--project", "other"])
    assert seen[0].project == "spins"


@pytest.mark.parametrize(
    "arguments",
    [
        ("--project", "a", "devices", "--project", "a"),
        ("devices", "--project", "a", "--project", "b"),
        ("webhooks", "--project", "a", "list", "--project", "b"),
    ],
)
def test_a_global_option_that_is_given_twice_is_refused(arguments: tuple[str, ...]) -> None:
    result = CliRunner().invoke(main, arguments)
    assert refused(result, 2) == "Error: --project: given 2 times; give it once"


def test_global_options_are_not_repeated_in_the_help_of_each_command() -> None:
    text = call("devices", "--help").stdout
    assert "--namespace" not in text
    assert "may be given here, too" in text


def completed(words: str) -> list[str]:
    """Return what bash is offered for the last word of a command line."""
    variables = {
        "_TWEEZER_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    ran = CliRunner().invoke(main, prog_name="tweezer", env=variables)
    assert ran.exit_code == 0
    return [line.removeprefix("plain,") for line in ran.stdout.splitlines()]


def test_commands_and_options_are_completed() -> None:
    assert completed("tweezer re") == ["results", "retry", "resume", "redis-users", "recorder"]
    assert completed("tweezer keys ro") == ["rotate", "rotate-links"]
    assert completed("tweezer submit --pri") == ["--priority"]
    assert completed("tweezer --proj") == ["--project"]
    assert [it.lower() for it in completed("tweezer submit --priority H")] == ["high"]
    assert completed("tweezer nonsense ") == completed("tweezer ")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_a_script_that_it_accepts(shell: str, tmp_path: Path) -> None:
    script = call("completion", shell).stdout
    assert "_TWEEZER_COMPLETE" in script
    if shutil.which(shell) is None:
        return  # the text comes from click
    file = tmp_path / "script"
    file.write_text(script)
    subprocess.run([shell, "-n", file], check=True, timeout=30)


@pytest.mark.parametrize(
    ("shell", "typed", "shown"),
    [
        (
            "bash",
            """source <(tweezer completion bash)
            COMP_WORDS=(tweezer su) COMP_CWORD=1
            _tweezer_completion tweezer su; echo $COMPREPLY""",
            "submit\n",
        ),
        ("zsh", "source <(tweezer completion zsh); echo $_comps[tweezer]", "_tweezer_completion\n"),
        (
            "fish",
            "tweezer completion fish | source; complete -C 'tweezer su'",
            f"submit\t{group.SECTIONS['Batches']['submit'][1]}\n",
        ),
    ],
)
def test_each_shell_completes_with_the_script(shell: str, typed: str, shown: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    program = tmp_path / "tweezer"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tweezer.cli "$@"\n')
    program.chmod(0o700)
    ran = subprocess.run(
        [shell, "-c", typed],
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert (ran.stdout, ran.stderr) == (shown, "")


def test_completion_without_the_server_extra_offers_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name="sqlalchemy")

    monkeypatch.setattr(group, "import_module", missing)
    assert completed("tweezer keys ") == completed("tweezer ")


# --- commands for operators where only the API is reachable


@pytest.fixture
def only_api(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    url = "http://127.0.0.1:1"
    monkeypatch.setenv("TWEEZER_API_URL", url)
    monkeypatch.setenv("TWEEZER_API_KEY", f"twz_{'a' * 12}_{'b' * 52}")
    monkeypatch.setenv("TWEEZER_DATA_DIR", str(tmp_path / "data"))
    return url


@pytest.mark.parametrize("arguments", [("keys", "list"), ("projects", "create", "lab"), ("dead-letters", "list")])
def test_a_user_of_the_api_is_not_advised_to_make_a_ledger(
    arguments: tuple[str, ...], only_api: str, tmp_path: Path
) -> None:
    said = refused(CliRunner().invoke(main, arguments), 1)
    assert said.startswith(
        "Error: there is no ledger here; this command is for operators: it needs the ledger itself, "
    )
    assert f"not the API at {only_api}; run it on a host of the installation" in said
    assert not (tmp_path / "data").exists()


def test_the_doctor_of_a_user_of_the_api_names_where_to_run_it(only_api: str) -> None:
    found = CliRunner().invoke(main, ["doctor", "--json"])
    advice = {finding["name"]: finding["change"] for finding in json.loads(found.stdout)}
    assert advice["ledger"] == advice["Redis"].replace("needs Redis", "needs the ledger")
    assert f"not the API at {only_api}; run it on a host of the installation" in advice["Redis"]


def test_following_a_batch_over_an_api_that_is_away_fails_at_once(only_api: str) -> None:
    began = time.monotonic()
    for arguments in (["watch", "@last"], ["events", "--follow"], ["logs", "@last", "--follow"]):
        said = refused(CliRunner().invoke(main, arguments), 1)
        assert f"cannot reach the API at {only_api}: no server listens there; check the URL" in said
    assert time.monotonic() - began < 20  # an API that goes away later is waited for, a minute each time
