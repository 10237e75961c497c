"""All of Tweezer on one machine: Redis, ledger, and the processes as children."""

from __future__ import annotations

import asyncio
import http.client
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from tweezer.cli.local.children import Child
from tweezer.cli.local.owned import HOST, free_port, why_not_free
from tweezer.cli.local.redis_server import RedisServer
from tweezer.data_folder import PublishedEnvironment
from tweezer.model.errors import Conflict, InvalidInput, TweezerError
from tweezer.settings import PREFIX, Settings, to_environment, variable_name
from tweezer.store.connection import Store
from tweezer.store.records import WorkerRecord
from tweezer.sync import connect

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from tweezer.ledger.database import Database


_READY_WITHIN_S = 120.0
_LOOK_S = 0.1  # during the start
_WATCH_S = 0.5  # afterwards
_API_STOP_S = 8.0
_COURIER_STOP_S = 20.0
_RECORDER_STOP_S = 10.0
_QPU_STOP_S = 10.0

QPU_JOURNAL = "qpu.jsonl"
"""Name of the file in the data folder in which a simulated QPU counts its requests."""

_LOOPBACK = "127.0.0.0/8,::1"
_SPARE_S = 10.0
_REDIS_RESTARTS_MAX = 5

_KEY_FILE, _KEY_NAME = "api-key", "tweezer up"  # file and name of the API key


class Stack:
    """Runs all processes from :meth:`start` to :meth:`stop`. They end with this process, even if it is killed.

    has_own_ledger: whether the configured ledger belongs to the data folder; if not, a ledger that records another
    Redis is refused. redis_port: 0 picks a free one. qpu_port: port of a simulated QPU to start, too; None for no QPU.
    logs: folder for the output of the children; None leaves it in the terminal. report: prints a message to the user.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        redis_port: int,
        qpu_port: int | None = None,
        has_own_ledger: bool = True,
        logs: Path | None = None,
        report: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._has_own_ledger = has_own_ledger
        self._logs = logs
        self._report = report
        self._data = data = settings.data_dir.absolute()
        self._api_port = settings.api.port
        self._qpu_port = qpu_port
        # Redis must not lose a job that a machine has received, and old versions cannot confirm what is on disk.
        durably: Literal["always", "everysec"] = "always" if settings.machines() else "everysec"
        self._redis = RedisServer(data / "redis", port=redis_port, appendfsync=durably, has_password=True)
        self._redis_deaths = 0
        self._published: PublishedEnvironment | None = None
        self._children: list[Child] = []

    @property
    def redis_url(self) -> str:
        return self._redis.url

    @property
    def redis_place(self) -> str:
        """Host and port of Redis, without the password."""
        return f"{HOST}:{self._redis.port}"

    @property
    def api_url(self) -> str:
        return f"http://{HOST}:{self._api_port}"

    @property
    def webhook_allow(self) -> str:
        """Additional targets of webhooks: receivers under development run on this machine."""
        return self._settings.webhook.allow or _LOOPBACK

    def start(self) -> None:
        """Start all processes, waiting only for Redis and the ledger. Raises TweezerError."""
        self._api_port = self._api_port or free_port()
        if why := why_not_free(self._api_port):
            raise TweezerError(f"port {self._api_port} {why}; choose another port for the API with --port", code="port")
        os.umask(0o077)  # only this user may read the files of this process and its children
        self._redis.start()
        self._prepare_ledger()
        environment = os.environ | self._environment()
        drain_s = self._settings.worker.drain_s + _SPARE_S
        lines: list[tuple[list[str], float]] = []
        if self._qpu_port is not None:
            journal = str(self._data / QPU_JOURNAL)
            lines.append((["qpu-sim", "--port", str(self._qpu_port), "--journal", journal], _QPU_STOP_S))
        lines += (
            (["api"], _API_STOP_S),
            (["worker"], drain_s),
            (["scheduler"], drain_s),
            (["courier", "--processes", "1"], _COURIER_STOP_S),
            (["recorder"], _RECORDER_STOP_S),
        )
        for arguments, stop_s in lines:
            log = None if self._logs is None else self._logs / f"{arguments[0]}.log"
            child = Child(arguments, environment, stop_s=stop_s, log=log, report=self._report)
            self._children.append(child)
            child.start()

    def wait_ready(self, stop: threading.Event) -> None:
        """Wait until the worker and the API are ready, or until ``stop``. Raises TweezerError."""
        deadline = time.monotonic() + _READY_WITHIN_S
        with connect(self.redis_url, namespace=self._settings.namespace, retry_s=1.0) as queue:
            while not stop.is_set():
                self._look()
                worker = self._child("worker")
                api, worker.ready = self._child("api"), _serves(queue.workers(), worker.pid)
                api.ready = api.ready or self._api_is_ready()
                if api.ready and worker.ready:
                    for child in self._children:
                        child.ready = True
                    return
                if time.monotonic() > deadline:
                    late = " and ".join(child.name for child in self._children if not child.ready)
                    raise TweezerError(f"not ready after {_READY_WITHIN_S:g} s: {late}", code="not_ready")
                stop.wait(_LOOK_S)

    def watch(self, stop: threading.Event) -> None:
        """Keep the processes running until ``stop``. Raises TweezerError when a process dies repeatedly."""
        while not stop.wait(_WATCH_S):
            self._look()

    def stop(self, hurry: Callable[[], bool]) -> None:
        """Stop API, worker (which drains), scheduler, courier, recorder and Redis, in this order."""
        machine = [child for child in self._children if child.name == "qpu-sim"]
        for child in (*(it for it in self._children if it not in machine), *machine):
            child.stop(hurry)
        self._children.clear()
        if self._published is not None:
            self._published.close()
            self._published = None
        self._redis.stop()

    def publish(self, key: str) -> Path:
        """Publish the environment until :meth:`stop`; return a file that shells can source. key: API key."""
        settings = self._settings
        variables = {
            **self._of_installation(),
            "project_id": settings.project_id,
            "api.key": key,
            "api.url": self.api_url,
            "webhook.allow": self.webhook_allow,
        }
        self._published = PublishedEnvironment(self._data, to_environment(variables))
        return self._published.file

    def _of_installation(self) -> dict[str, str]:
        settings = self._settings
        return {
            "redis.url": self.redis_url,
            "namespace": settings.namespace,
            "data_dir": str(self._data),
            "database.url": settings.locate_ledger().url,
            "results_dir": str(settings.results_folder()),
        }

    def _prepare_ledger(self) -> None:
        """Create or upgrade the tables of a SQLite ledger. Operators upgrade other databases themselves."""
        from tweezer.ledger.database import Database
        from tweezer.ledger.migrate import require_schema, upgrade

        database = Database.open(self._settings.locate_ledger(), create=True)
        try:
            if database.is_sqlite:
                upgrade(database)
            else:
                require_schema(database)
            asyncio.run(self._require_same_installation(database))
        finally:
            database.close()

    async def _require_same_installation(self, database: Database) -> None:
        from tweezer.ledger.health import read_recorder_position
        from tweezer.ledger.installation import require_same
        from tweezer.ledger.migrate import place

        async with Store.open(msgspec.structs.replace(self._settings.connect(), url=self.redis_url)) as store:
            await require_same(store, database)
            is_new = await store.recovery.installation() is None
        if is_new and not self._has_own_ledger and read_recorder_position(database, self._settings.namespace):
            raise TweezerError(
                f"{PREFIX}DATABASE_URL: {place(database)} records another Redis, not the new one in {self._data}; "
                f"unset it to use the ledger in that folder, or set {PREFIX}DATA_DIR={self._data} if both belong "
                "together",
                code="installation",
            )

    def _look(self) -> None:
        if not self._redis.alive:
            self._redis_deaths += 1
            if self._redis_deaths > _REDIS_RESTARTS_MAX:
                raise TweezerError(f"Redis crashes repeatedly; see {self._redis.log_path}", code="child_died")
            self._report("Redis died; restarting it with its data")
            self._redis.restart()
        for child in self._children:
            if child.failure is not None:
                raise TweezerError(child.failure, code="child_died")

    def _child(self, name: str) -> Child:
        return next(child for child in self._children if child.name == name)

    def _environment(self) -> dict[str, str]:
        settings = self._settings
        formatted = "console" if settings.log.format == "auto" else settings.log.format
        given = {
            **self._of_installation(),
            "webhook.allow": self.webhook_allow,
            "secrets.key": settings.secrets.key,
            "devices": settings.devices_text(),
            "worker.device": settings.worker.device,
            "worker.lanes": str(settings.worker.lanes),
            "api.host": HOST,
            "api.port": str(self._api_port),
            "log.format": formatted,
            "log.level": settings.log.level,
        }
        return to_environment(given)

    def _api_is_ready(self) -> bool:
        connection = http.client.HTTPConnection(HOST, self._api_port, timeout=2.0)
        try:
            connection.request("GET", "/ready")
            return connection.getresponse().status == http.client.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


def _serves(workers: list[WorkerRecord], pid: int | None) -> bool:
    """Return whether the worker with this process id is among them. Worker ids are ``host:pid:random``."""
    return any(worker.id.split(":")[-2] == str(pid) for worker in workers)


def check_given_key(settings: Settings) -> None:
    """Raise InvalidInput("TWEEZER_API_KEY", …) if the setting is not a valid key."""
    if settings.api.key:
        from tweezer.ledger.access.credentials import check_key

        try:
            check_key(settings.api.key)
        except InvalidInput as error:
            raise InvalidInput(variable_name("api.key"), error.problem) from error


def own_key(settings: Settings) -> str:
    """Return an API key of the settings' project: the configured one, else one from a file in the data folder.

    The file is created if needed, readable only by its owner. Raises Conflict if the configured key has ended or
    belongs to another project.
    """
    from tweezer.ledger.access.keys import adopt_key
    from tweezer.ledger.access.projects import project_no
    from tweezer.ledger.database import Database

    database = Database.open(settings.locate_ledger())
    try:
        with database.write() as connection:
            project_no(connection, settings.project_id)
            if settings.api.key:
                adopt_key(connection, settings.api.key, name=_KEY_NAME, project_id=settings.project_id)
                return settings.api.key
            return _kept_key(connection, settings.data_dir / _KEY_FILE, settings.project_id)
    finally:
        database.close()


def _kept_key(connection: Connection, file: Path, project_id: str) -> str:
    from tweezer.ledger.access.keys import adopt_key, create_key

    if file.exists():
        kept = file.read_text("ascii", "replace").strip()
        try:
            adopt_key(connection, kept, name=_KEY_NAME, project_id=project_id)
        except (Conflict, InvalidInput):
            pass  # revoked, of another project, or not a valid key: replace it
        else:
            return kept
    made = create_key(connection, name=_KEY_NAME, project_id=project_id)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="ascii") as output:
        output.write(f"{made.text}\n")
    return made.text
