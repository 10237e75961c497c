"""A running `tweezer up` is found by its data folder, unless a setting names another Redis."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.queues import store_of

from tweezer import connect
from tweezer.cli.local.children import keep_several
from tweezer.client import AsyncQueue
from tweezer.data_folder import PublishedEnvironment, running_environment
from tweezer.model.errors import TweezerError
from tweezer.settings import Settings, load

VARIABLES = {
    "TWEEZER_REDIS_URL": "redis://:pass@127.0.0.1:7000/0",
    "TWEEZER_NAMESPACE": "lab",
    "TWEEZER_DATABASE_URL": "sqlite:////d ä/it's.db",
    "TWEEZER_RESULTS_DIR": "/d ä/results",
    "TWEEZER_PROJECT_ID": "physics",
    "TWEEZER_API_URL": "http://127.0.0.1:8000",
}


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return the default data folder, which does not exist yet, and unset all variables."""
    for name in [name for name in os.environ if name.startswith("TWEEZER_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "tweezer"


@pytest.fixture
def _is_up(folder: Path) -> Iterator[None]:
    """Let a `tweezer up` run in the default data folder."""
    folder.mkdir(parents=True)
    published = PublishedEnvironment(folder, VARIABLES)
    yield
    published.close()


def place_of(queue: AsyncQueue) -> tuple[object, object, str, str | None]:
    """Return the port and password of Redis, and the namespace and project of a queue."""
    arguments = store_of(queue).redis.connection_pool.connection_kwargs
    return arguments.get("port"), arguments.get("password"), store_of(queue).keys.prefix, queue.project


@pytest.mark.usefixtures("_is_up")
def test_settings_come_from_the_running_up(folder: Path) -> None:
    settings = load()
    assert settings.redis.url == VARIABLES["TWEEZER_REDIS_URL"]
    assert (settings.namespace, settings.project_id) == ("lab", "physics")
    assert settings.locate_ledger().url == VARIABLES["TWEEZER_DATABASE_URL"]
    assert load({"data_dir": folder}).redis.url == settings.redis.url
    assert load({"data_dir": folder.parent}).redis.url == "redis://127.0.0.1:6379/0"


@pytest.mark.usefixtures("_is_up")
def test_a_variable_an_option_or_the_file_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWEEZER_PROJECT_ID", "mine")
    assert (load().project_id, load().namespace) == ("mine", "lab")
    assert (load({"redis.url": "redis://other"}).namespace, load({"namespace": "n"}).namespace) == ("tweezer", "n")
    Path("tweezer.toml").write_text('[redis]\nurl = "redis://third"\n', encoding="utf-8")
    assert (load().redis.url, load().namespace) == ("redis://third", "tweezer")
    monkeypatch.setenv("TWEEZER_REDIS_URL", "redis://other")
    assert (load().redis.url, load().namespace) == ("redis://other", "tweezer")


@pytest.mark.usefixtures("_is_up")
async def test_a_queue_connects_to_the_running_up(monkeypatch: pytest.MonkeyPatch) -> None:
    from tweezer import connect_async

    async with connect_async() as queue:
        assert place_of(queue) == (7000, "pass", "lab:", "physics")
    async with connect_async("redis://127.0.0.1:7001/0") as queue:
        assert place_of(queue) == (7001, None, "tweezer:", "default")
    monkeypatch.setenv("TWEEZER_REDIS_URL", "redis://127.0.0.1:7002/0")
    monkeypatch.setenv("TWEEZER_NAMESPACE", "other")
    async with connect_async(project="mine") as queue:
        assert place_of(queue) == (7002, None, "other:", "mine")


@pytest.mark.usefixtures("_is_up")
def test_processes_of_a_courier_use_the_running_up(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Settings] = []

    def child(_: list[str], environment: dict[str, str], **__: object) -> None:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            found.append(load())
        raise TweezerError("this is far enough")

    monkeypatch.setattr("tweezer.cli.local.children.Child", child)
    settings = load()
    with pytest.raises(TweezerError, match="far enough"):
        keep_several(["courier"], settings, 2, report=print)
    assert (found[0].redis.url, found[0].namespace) == (settings.redis.url, "lab")
    assert found[0].locate_ledger().url == VARIABLES["TWEEZER_DATABASE_URL"]


@pytest.mark.usefixtures("_is_up")
def test_the_folder_may_be_named_by_a_variable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "/nowhere")
    assert running_environment() == {}
    monkeypatch.setenv("TWEEZER_DATA_DIR", str(folder))
    assert running_environment() == VARIABLES
    assert load().project_id == "physics"
    with connect() as queue:
        assert queue.project == "physics"


def test_the_files_of_a_killed_up_are_ignored(folder: Path) -> None:
    folder.mkdir(parents=True)
    published = PublishedEnvironment(folder, VARIABLES)
    left = published.file.read_bytes()
    published.close()
    assert not published.file.exists()
    published.file.write_bytes(left)
    assert running_environment() == {}
    assert load().redis.url == "redis://127.0.0.1:6379/0"
    again = PublishedEnvironment(folder, VARIABLES)
    assert running_environment() == VARIABLES
    again.close()


def test_a_shell_can_read_the_variables_and_other_users_cannot(tmp_path: Path) -> None:
    published = PublishedEnvironment(tmp_path, VARIABLES)
    assert published.file.stat().st_mode & 0o777 == 0o600
    ran = subprocess.run(["sh", "-c", f". '{published.file}'; env -0"], capture_output=True, env={}, check=True)
    found = dict(entry.split("=", 1) for entry in ran.stdout.decode().split("\0") if entry.startswith("TWEEZER_"))
    assert found == VARIABLES
    published.close()
