"""The files for deployments: each one is loaded by its own tool if that is installed, and parsed in any case."""

from __future__ import annotations

import configparser
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest
import redis
import yaml
from click.testing import CliRunner
from packaging.requirements import Requirement

from tweezer.cli import main
from tweezer.cli.local.redis_server import RedisServer, find_server
from tweezer.settings import SETTINGS, Settings, load
from tweezer.store.acl import RedisUser
from tweezer.store.records import WorkerRecord

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))

OPTIONS = {
    "workers": {"--json"},
    "api": {"--host", "--port"},
    "worker": {"--device", "--lanes"},
    "scheduler": set[str](),
    "recorder": set[str](),
    "courier": set[str](),
    "db": set[str](),
    "up": {"--port", "--data"},
}
"""The commands in deployed files, and the options that these may pass to them."""

USERS = {
    "api": RedisUser.API,
    "worker": RedisUser.WORKER,
    "scheduler": RedisUser.SCHEDULER,
    "recorder": RedisUser.RECORDER,
    "courier": RedisUser.COURIER,
}
"""The users of Redis as which they connect."""


def check_command(words: list[str]) -> str:
    """Check that the subcommand and the options of a tweezer command line exist, and return the subcommand."""
    program, subcommand, *arguments = words
    assert Path(program).name == "tweezer"
    assert subcommand in OPTIONS
    given = {word for word in arguments if word.startswith("--")}
    assert given <= OPTIONS[subcommand]
    return subcommand


def example_environment(name: str = "tweezer") -> dict[str, str]:
    lines = (DEPLOY / f"{name}.env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def unit_of(path: Path) -> configparser.ConfigParser:
    unit = configparser.ConfigParser(strict=False, interpolation=None, comment_prefixes=("#", ";"), delimiters=("=",))
    unit.optionxform = str  # type: ignore[assignment,method-assign]  # as documented by configparser
    unit.read(path)
    return unit


def compose() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return content


def seconds(text: str) -> float:
    return float(text.removesuffix("s"))


# --- Procfile


def test_the_procfile_starts_commands_that_exist() -> None:
    lines = (ROOT / "Procfile").read_text().splitlines()
    commands = dict(line.split(": ", 1) for line in lines)
    assert {name: check_command(shlex.split(command)) for name, command in commands.items()} == {
        "api": "api",
        "worker": "worker",
        "recorder": "recorder",
        "courier": "courier",
        "scheduler": "scheduler",
    }


def test_honcho_gives_the_api_its_port(tmp_path: Path) -> None:
    stub = tmp_path / "tweezer"
    stub.write_text('#!/bin/sh\necho "called with: $*"\n')
    stub.chmod(0o755)
    ran = subprocess.run(
        [sys.executable, "-m", "honcho", "-f", str(ROOT / "Procfile"), "start", "-p", "5123", "api"],
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "called with: api --host 127.0.0.1 --port 5123" in ran.stdout


# --- redis.conf


@pytest.mark.redis
def test_redis_starts_with_the_deployed_configuration(redis_server: RedisServer, tmp_path: Path) -> None:
    socket, users = tmp_path / "redis.sock", tmp_path / "users"
    make_users(users, socket)
    command = [str(find_server("redis")), str(DEPLOY / "redis.conf"), "--dir", str(tmp_path)]
    command += ["--aclfile", str(users / "users.acl"), "--port", "0", "--unixsocket", str(socket)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
        try:
            config = config_of(url_in(users / "admin.env"), server)
            with pytest.raises(redis.AuthenticationError), redis.Redis(unix_socket_path=str(socket)) as stranger:
                stranger.ping()
            for user in RedisUser:
                with redis.Redis.from_url(url_in(users / f"{user}.env")) as client:
                    assert client.ping()
        finally:
            server.terminate()
    assert {name: config[name] for name in ("appendonly", "appendfsync", "maxmemory-policy", "save", "timeout")} == {
        "appendonly": "yes",
        "appendfsync": "everysec",
        "maxmemory-policy": "noeviction",
        "save": "",
        "timeout": "0",
    }
    assert int(config["maxmemory"]) == 2 << 30
    assert (tmp_path / "appendonlydir").exists() or (tmp_path / "appendonly.aof").exists()


def make_users(folder: Path, socket: Path) -> None:
    made = CliRunner().invoke(main, ["--redis", f"unix://{socket}", "redis-users", str(folder)])
    assert made.exit_code == 0, made.output


def url_in(path: Path) -> str:
    """Return the URL of Redis in a file of `tweezer redis-users`."""
    (line,) = path.read_text("utf-8").splitlines()
    return line.removeprefix("TWEEZER_REDIS_URL=")


def config_of(url: str, server: subprocess.Popen[bytes]) -> dict[str, str]:
    deadline = time.monotonic() + 20
    while True:
        assert server.poll() is None, server.stdout and server.stdout.read().decode()
        assert time.monotonic() < deadline, "redis-server did not answer in time"
        try:
            with redis.Redis.from_url(url) as client:
                config: dict[str, str] = client.config_get("*")
                return config
        except redis.ConnectionError:
            continue


# --- environment


@pytest.mark.parametrize("file", ["tweezer", "worker"])
def test_an_example_environment_loads(file: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    example, variables = example_environment(file), {setting.variable for setting in SETTINGS.values()}
    for name, value in example.items():
        assert name in variables
        monkeypatch.setenv(name, value)
    settings = load()
    assert settings.worker.drain_s == 300
    assert settings.log.format == "json"


def test_workers_get_credentials_of_redis_only_and_share_the_folder_of_results() -> None:
    worker, others = example_environment("worker"), example_environment()
    assert not worker.keys() & {"TWEEZER_DATABASE_URL", "TWEEZER_SECRETS_KEY", "TWEEZER_API_KEY"}
    assert worker["TWEEZER_RESULTS_DIR"] == others["TWEEZER_RESULTS_DIR"]
    assert worker["TWEEZER_DATA_DIR"] != others["TWEEZER_DATA_DIR"]


# --- systemd


def test_there_is_a_unit_for_each_process() -> None:
    assert [path.stem for path in UNITS] == [
        "tweezer-api",
        "tweezer-courier",
        "tweezer-recorder",
        "tweezer-scheduler",
        "tweezer-worker@",
    ]


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_a_unit_starts_a_command_that_exists_unprivileged(path: Path) -> None:
    unit = unit_of(path)
    subcommand = check_command(shlex.split(unit["Service"]["ExecStart"]))
    assert path.stem.rstrip("@") == f"tweezer-{subcommand}"
    role = "worker" if subcommand == "worker" else "tweezer"
    assert unit["Service"]["User"] == ("tweezer-worker" if role == "worker" else "tweezer")
    assert unit["Service"]["NoNewPrivileges"] == "yes"
    assert int(unit["Service"]["LimitNOFILE"]) >= 65_536  # systemd starts services with 1024
    files = re.findall(r"(?m)^EnvironmentFile=(.*)$", path.read_text("utf-8"))
    assert files == [f"/etc/tweezer/{role}.env", f"/etc/tweezer/redis/{USERS[subcommand]}.env"]
    assert unit["Install"]["WantedBy"] == "multi-user.target"


def test_a_worker_serves_the_device_of_its_instance_and_has_time_to_drain() -> None:
    service = unit_of(DEPLOY / "systemd" / "tweezer-worker@.service")["Service"]
    assert "--device %i" in service["ExecStart"]
    assert seconds(service["TimeoutStopSec"]) > float(example_environment("worker")["TWEEZER_WORKER_DRAIN_S"])
    assert service["KillMode"] == "mixed"  # the worker stops its lanes itself


def test_the_unit_of_workers_agrees_with_the_jail_of_lanes() -> None:
    service = unit_of(DEPLOY / "systemd" / "tweezer-worker@.service")["Service"]
    example = example_environment("worker")
    needed = {"landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self", "seccomp"}
    assert needed <= set(service["SystemCallFilter"].split())  # systemd would kill a lane for them
    assert service["ReadWritePaths"] == example["TWEEZER_RESULTS_DIR"]
    assert service["InaccessiblePaths"].removeprefix("-") == example_environment()["TWEEZER_DATA_DIR"]
    assert example["TWEEZER_DATA_DIR"] == f"/var/lib/{service['StateDirectory']}"
    assert service["UMask"] == "0007"  # results are for the group of their folder
    assert "MemoryDenyWriteExecute" not in service  # numerical libraries compile code at run time


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_systemd_finds_nothing_wrong_with_a_unit(path: Path, tmp_path: Path) -> None:
    there = re.sub(r"(?m)^ExecStart=\S+", "ExecStart=/bin/true", path.read_text(encoding="utf-8"))
    instance = tmp_path / path.name.replace("@.", "@EMU_FREE.")
    instance.write_text(there)
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(instance)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    complaints = [line for line in checked.stderr.splitlines() if path.name.split("@")[0] in line]
    assert complaints == []


# --- compose


def test_compose_starts_the_servers_and_a_service_for_each_process() -> None:
    services = compose()["services"]
    assert set(services) == {
        *("redis", "postgres", "upgrade", "recorder", "courier", "api", "worker", "scheduler", "operator"),
        "worker-torch",
    }
    assert services["operator"]["profiles"] == ["operator"], "no service that runs"
    assert services["worker-torch"]["profiles"] == ["torch"], "only where it is asked for"
    for name in ("recorder", "courier", "api", "worker", "scheduler", "worker-torch"):
        process = name.partition("-")[0]
        assert check_command(services[name]["command"]) == process
        assert services[name]["depends_on"]["redis"]["condition"] == "service_healthy"
        assert services[name]["init"] is True
        user = USERS[process]
        assert services[name]["environment"]["TWEEZER_REDIS_URL"] == f"redis://tweezer-{user}@redis:6379/0"
        assert services[name]["secrets"][0] == {"source": f"redis_{user}", "target": "redis_password"}


def test_workers_of_compose_differ_in_their_device_and_image_only() -> None:
    services = compose()["services"]
    plain, torch = services["worker"], services["worker-torch"]
    assert {name for name in torch if torch[name] != plain.get(name)} == {"command", "image", "build", "profiles"}
    device = torch["command"][torch["command"].index("--device") + 1]
    assert Settings().binding(device).adapter == "emu-mps"


@pytest.mark.parametrize("name", ["api", "worker"])
def test_a_health_check_of_compose_calls_what_exists(name: str, tmp_path: Path) -> None:
    kind, *command = compose()["services"][name]["healthcheck"]["test"]
    if name == "api":
        assert kind == "CMD"
        assert "http://127.0.0.1:8000/health" in command[-1]
        compile(command[-1], "health check", "exec")
        return
    assert kind == "CMD-SHELL"
    (script,) = command
    assert check_command(shlex.split(script.partition(" | ")[0])) == "workers"
    stub = tmp_path / "tweezer"
    stub.write_text('#!/bin/sh\ncat "$(dirname "$0")/workers"\n')
    stub.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOSTNAME": "0f3c"}
    for host, status in (("0f3c", 0), ("0f3c1", 1), ("a0f3c", 1)):
        worker = WorkerRecord("w", "EMU_FREE", 2, 0, host, "0.1.0", 2, draining=False, started=datetime.now(UTC))
        (tmp_path / "workers").write_bytes(msgspec.json.format(msgspec.json.encode([worker])))
        checked = subprocess.run(["sh", "-c", script.replace("$$", "$")], env=environment, timeout=60, check=False)
        assert checked.returncode == status, host


def test_compose_upgrades_the_ledger_before_what_uses_it() -> None:
    services = compose()["services"]
    assert services["upgrade"]["command"] == ["tweezer", "db", "upgrade"]
    assert services["upgrade"]["restart"] == "no"
    assert services["upgrade"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    for name in ("recorder", "courier", "api", "scheduler"):
        assert services[name]["depends_on"]["upgrade"]["condition"] == "service_completed_successfully"


def test_services_of_compose_reach_only_each_other_unless_they_need_more() -> None:
    content = compose()
    assert content["networks"]["backend"] == {"internal": True}
    for name, service in content["services"].items():
        assert "network_mode" not in service
        wanted = ["backend", "outside"] if name in ("api", "courier") else ["backend"]
        assert service["networks"] == wanted
        assert service.get("ports", []) == (["127.0.0.1:8000:8000"] if name == "api" else [])


def test_services_of_compose_have_no_privileges_and_limits() -> None:
    for service in compose()["services"].values():
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["read_only"] is True
        assert "/tmp" in service["tmpfs"]
        limits = service["deploy"]["resources"]["limits"]
        assert {"memory", "cpus", "pids"} == set(limits)


def test_the_limits_of_compose_leave_lanes_and_redis_their_memory() -> None:
    services = compose()["services"]
    environment = services["worker"]["environment"]
    lanes_mb = int(environment["TWEEZER_WORKER_LANES"]) * int(environment["TWEEZER_WORKER_MEMORY_LIMIT_MB"])
    assert gigabytes(services["worker"]) * 1024 >= lanes_mb + 1024
    (maxmemory,) = re.findall(r"(?m)^maxmemory (\d+)gb$", (DEPLOY / "redis.conf").read_text())
    assert gigabytes(services["redis"]) >= 2 * int(maxmemory)


def gigabytes(service: dict[str, Any]) -> int:
    return int(service["deploy"]["resources"]["limits"]["memory"].removesuffix("g"))


def test_images_have_exact_tags() -> None:
    images = {service["image"] for service in compose()["services"].values()}
    stages = re.findall(r"(?m)^FROM (\S+) AS (\S+)$", (DEPLOY / "Dockerfile").read_text())
    named = [name for _, name in stages]
    bases = [base for base, _ in stages if base not in named]
    assert len(set(bases)) == 1
    assert named[-1] == "tweezer", "without a target, docker builds the last stage"
    for service in compose()["services"].values():
        assert service.get("build", {}).get("target", "tweezer") in named
    for image in images | set(bases):
        assert re.search(r":\d+\.\d+(\.\d+)?(-|$)", image), image


def test_passwords_of_compose_are_in_files_and_workers_have_that_of_redis_only() -> None:
    content = compose()
    services = content["services"]
    users = set(USERS.values()) | {RedisUser.SENDER, RedisUser.OPERATOR}
    assert {secret["file"] for secret in content["secrets"].values()} == {
        *("./secrets/postgres_password", "./secrets/secrets_key", "./redis/users.acl"),
        *(f"./redis/{user}.password" for user in users),
    }
    assert services["worker"]["secrets"] == [{"source": "redis_worker", "target": "redis_password"}]
    assert not services["worker"]["environment"].keys() & {"TWEEZER_DATABASE_URL", "TWEEZER_SECRETS_KEY_FILE"}
    for service in services.values():
        environment = service.get("environment", {})
        for name, value in environment.items():
            if name.endswith("_FILE"):
                names = [it if isinstance(it, str) else it["target"] for it in service["secrets"]]
                assert value.removeprefix("/run/secrets/") in names
            assert not name.endswith(("PASSWORD", "KEY"))
            assert not name.endswith("_URL") or urlsplit(value).password is None
    postgres = services["postgres"]["environment"]
    assert postgres["POSTGRES_INITDB_ARGS"] == "--auth=scram-sha-256"
    assert "trust" not in postgres.values()


def test_settings_of_compose_load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    services = compose()["services"]
    for name, value in services["api"]["environment"].items():
        if name.endswith("_FILE"):
            (tmp_path / Path(value).name).write_text("hush\n")
        monkeypatch.setenv(name, value.replace("/run/secrets", str(tmp_path)))
    settings = load()
    assert settings.connect().url == "redis://tweezer-api:hush@redis:6379/0"
    assert settings.locate_ledger().url == "postgresql://tweezer:hush@postgres/tweezer"
    postgres = services["postgres"]["environment"]
    assert (postgres["POSTGRES_USER"], postgres["POSTGRES_DB"]) == ("tweezer", "tweezer")
    for name in ("api", "worker", "worker-torch", "recorder", "scheduler"):
        assert services[name]["volumes"] == [f"results:{settings.results_dir}"]


@pytest.mark.redis
def test_the_redis_of_compose_starts_and_lets_users_in(redis_server: RedisServer, tmp_path: Path) -> None:
    socket = tmp_path / "redis.sock"
    make_users(tmp_path, socket)
    service = compose()["services"]["redis"]
    places = {
        "redis-server": str(find_server("redis")),
        "/etc/tweezer/redis.conf": str(DEPLOY / "redis.conf"),
        "/data": str(tmp_path),
        "/run/secrets/redis_users": str(tmp_path / "users.acl"),
    }
    command = [places.get(word, word) for word in service["command"]]
    with subprocess.Popen([*command, "--port", "0", "--unixsocket", str(socket)], stdout=subprocess.PIPE) as server:
        try:
            assert config_of(url_in(tmp_path / "admin.env"), server)["bind"] == "* -::*"
            probe = service["healthcheck"]["test"][1].replace("$$", "$").replace("redis-cli", f"redis-cli -s {socket}")
            probe = probe.replace("/run/secrets/redis_sender", str(tmp_path / "sender.password"))
            if shutil.which("redis-cli"):
                assert subprocess.check_output(["sh", "-c", probe], text=True) == "PONG\n"
        finally:
            server.terminate()


def test_compose_gives_workers_time_to_drain() -> None:
    for name in ("worker", "worker-torch", "scheduler"):
        service = compose()["services"][name]
        assert seconds(service["stop_grace_period"]) > float(service["environment"]["TWEEZER_WORKER_DRAIN_S"])


def test_compose_names_files_that_exist() -> None:
    content = compose()
    build = content["services"]["api"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).is_file()
    assert (DEPLOY / build["context"]).resolve() == ROOT
    mounted = content["services"]["redis"]["volumes"][0]
    assert (DEPLOY / mounted.split(":")[0]).is_file()
    assert mounted.split(":")[1] in content["services"]["redis"]["command"]


def copied_files() -> list[str]:
    """Return what the image copies from its build context."""
    return [
        source
        for line in (DEPLOY / "Dockerfile").read_text().splitlines()
        if line.startswith("COPY ") and "--from" not in line
        for source in line.split()[1:-1]
    ]


def test_the_build_context_is_what_the_image_copies() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*", "everything else stays outside, passwords above all"
    kept = [rule.removeprefix("!") for rule in rules if rule.startswith("!")]
    assert all((ROOT / path).exists() for path in kept)
    for source in copied_files():
        assert any(source == path or source.startswith(f"{path}/") for path in kept), source
    assert all(any(source.startswith(path) for source in copied_files()) for path in kept), "nothing needless"


def test_the_image_with_torch_has_the_tested_versions() -> None:
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    tested = re.findall(r"'torch==(\S+)'", (ROOT / ".ci" / "prepare").read_text())
    assert re.findall(r"(?m)^ARG TORCH_VERSION=(\S+)$", dockerfile) == tested
    plain, with_torch = pinned("all"), pinned("torch")
    differing = {name for name in plain.keys() & with_torch.keys() if plain[name] != with_torch[name]}
    assert differing == set(), "the image installs one over the other"


def test_the_image_copies_files_that_exist_and_does_not_run_as_root() -> None:
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    copied = copied_files()
    assert copied
    assert all((ROOT / source).exists() for source in copied)
    assert re.search(r"(?m)^USER tweezer$", dockerfile)
    started = re.search(r"(?m)^CMD \[(.*)\]$", dockerfile)
    assert started is not None
    assert check_command([word.strip(' "') for word in started[1].split(",")]) == "worker"


# -- upgrades ----------------------------------------------------------------------------------------------------------


def test_an_upgrade_never_removes_the_command(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "operations" / "upgrades.md").read_text("utf-8")
    (switch,) = re.findall(r"( +ln -s (\S+) /opt/tweezer\.new\n +mv -T \S+ \S+\n)", page)
    script, new = switch[0].replace("/opt/", f"{tmp_path}/"), switch[1]
    for version in ("tweezer-0.1.0", new):
        command = tmp_path / version / "bin" / "tweezer"
        command.parent.mkdir(parents=True)
        command.write_text(version)
    link = tmp_path / "tweezer"
    link.symlink_to("tweezer-0.1.0")
    found = set[str]()
    with subprocess.Popen(["sh", "-ec", script * 200]) as switching:
        while switching.poll() is None:
            found.add((link / "bin" / "tweezer").read_text())  # raises FileNotFoundError while there is no command
    assert switching.returncode == 0
    assert (link / "bin" / "tweezer").read_text() == new
    assert found <= {"tweezer-0.1.0", new}


def test_the_installation_page_makes_the_environment_that_services_use() -> None:
    page = (ROOT / "docs" / "operations" / "installation.md").read_text("utf-8")
    (target, link) = re.findall(r"(?m)^ +ln -s (\S+) (\S+)$", page)[0]
    assert f"python3 -m venv /opt/{target}\n" in page
    for path in UNITS:
        assert unit_of(path)["Service"]["ExecStart"].startswith(f"{link}/bin/tweezer ")


# -- pinned dependencies -----------------------------------------------------------------------------------------------

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {"base": (), **{extra: (extra,) for extra in PROJECT["optional-dependencies"]}}
EXTRAS["development"] = ("all", "torch", "bench", "test")


def pinned(name: str) -> dict[str, str]:
    """Return the version of each package in a file of constraints, and check that every entry has hashes."""
    text = (DEPLOY / "constraints" / f"{name}.txt").read_text()
    entries = [entry for entry in re.split(r"\n(?=[a-z])", text) if "==" in entry]
    assert all("--hash=sha256:" in entry for entry in entries)
    found = [re.match(r"([a-z0-9._-]+)(?:\[\w+\])?==(\S+)", entry) for entry in entries]
    return {match[1]: match[2] for match in found if match is not None}


def required(extras: tuple[str, ...]) -> dict[str, Requirement]:
    """Return the direct requirements of pyproject.toml, including extras that an extra names."""
    found: dict[str, Requirement] = {}
    left = [*PROJECT["dependencies"], *(f"tweezer[{extra}]" for extra in extras)]
    while left:
        requirement = Requirement(left.pop())
        if requirement.name == "tweezer":
            left += [each for extra in requirement.extras for each in PROJECT["optional-dependencies"][extra]]
        else:
            found[requirement.name] = requirement
    return found


@pytest.mark.parametrize("name", EXTRAS)
def test_the_pinned_dependencies_are_those_that_the_project_requires(name: str) -> None:
    versions = pinned(name)
    for package, requirement in required(EXTRAS[name]).items():
        assert requirement.specifier.contains(versions[package]), f"run deploy/constraints/update: {requirement}"
    assert "torch" not in versions
