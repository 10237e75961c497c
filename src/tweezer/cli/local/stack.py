"""All of Tweezer on one machine: Redis, ledger, and the processes as children."""

from __future__ import annotations

import asyncio
import http.client
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from tweezer.cli.local.children import Child, LogFile
from tweezer.cli.local.ledger_setup import prepare_ledger
from tweezer.cli.local.owned import HOST, free_port, why_not_free
from tweezer.cli.local.redis_server import RedisServer
from tweezer.data_folder import PublishedEnvironment, running_environment
from tweezer.model.errors import TweezerError
from tweezer.settings import Settings, to_environment
from tweezer.store.connection import Connect, Store
from tweezer.store.records import WorkerRecord
from tweezer.store.streams.feed import COURIERS
from tweezer.sync import connect

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


class Stack:
    """Runs all processes from :meth:`start` to :meth:`stop`. They end with this process, even if it is killed.

    has_own_ledger: whether the configured ledger belongs to the data folder; if not, a ledger that records another
    Redis is refused. redis_port: 0 picks a free one. qpu_port: port of a simulated QPU to start, too; None for no QPU.
    report: prints a message to the user. shows_warnings: report the warnings in the logs of the processes.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        redis_port: int,
        qpu_port: int | None = None,
        has_own_ledger: bool = True,
        report: Callable[[str], None],
        shows_warnings: bool = False,
    ) -> None:
        self._settings = settings
        self._has_own_ledger = has_own_ledger
        self._report = report
        self._shows_warnings = shows_warnings
        self._data = data = settings.data_dir.absolute()
        self.logs = data / "log"
        self._api_port = settings.api.port
        self._qpu_port = qpu_port
        # Redis must not lose a job that a machine has received, and old versions cannot confirm what is on disk.
        durably: Literal["always", "everysec"] = "always" if settings.machines() else "everysec"
        self._redis = RedisServer(data / "redis", port=redis_port, appendfsync=durably, has_password=True)
        self._redis_log = LogFile(data / "redis" / "redis.log")
        self._redis_deaths = 0
        self._key = ""
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

    def check(self) -> None:
        """Raise TweezerError if another one runs in the data folder, or a port is taken."""
        if running_environment(self._data):
            raise TweezerError(
                f"`tweezer up` is already running in {self._data}; stop it, or choose another data folder with --data",
                code="already_running",
            )
        self._api_port = self._api_port or free_port()
        for port, what, option in ((self._api_port, "the API", "--port"), (self._redis.port, "Redis", "--redis-port")):
            if port and (why := why_not_free(port)):
                advice = f"choose another port for {what} with {option}, or 0 for a free one"
                raise TweezerError(f"port {port} {why}; {advice}", code="port")

    def start(self) -> None:
        """Start all processes, waiting only for Redis and the ledger. Raises TweezerError, OSError."""
        self.check()
        os.umask(0o077)  # only this user may read the files of this process and its children
        self.logs.mkdir(parents=True, exist_ok=True)
        self._redis.start()
        environment = os.environ | self._environment()
        own = to_environment({"project_id": self._settings.project_id, "api.key": self._settings.api.key})
        self._key = prepare_ledger(environment | own, is_own=self._has_own_ledger)
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
            log = LogFile(self.logs / f"{arguments[0]}.log")
            child = Child(arguments, environment, stop_s=stop_s, log=log, report=self._report)
            self._children.append(child)
            child.start()

    def wait_ready(self, stop: threading.Event) -> None:
        """Wait until the worker, the API and the courier are ready, or until ``stop``. Raises TweezerError.

        Events that the recorder trims before the first courier reads them have no webhooks.
        """
        deadline = time.monotonic() + _READY_WITHIN_S
        with connect(self.redis_url, namespace=self._settings.namespace, retry_s=1.0) as queue:
            while not stop.is_set():
                self._look()
                worker = self._child("worker")
                api, worker.ready = self._child("api"), _serves(queue.workers(), worker.pid)
                api.ready = api.ready or self._api_is_ready()
                courier = self._child("courier")
                courier.ready = courier.ready or asyncio.run(self._courier_is_ready())
                if api.ready and worker.ready and courier.ready:
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
        if not any(child.failure for child in self._children):  # which contains the end of the log
            self._read_logs()
        self._children.clear()
        if self._published is not None:
            self._published.close()
            self._published = None
        self._redis.stop()

    def publish(self) -> Path:
        """Publish the environment until :meth:`stop`; return a file that shells can source."""
        settings = self._settings
        variables = {
            **self._of_installation(),
            "project_id": settings.project_id,
            "api.key": self._key,
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

    def _read_logs(self) -> None:
        for child in self._children:
            assert child.log is not None
            for warning in child.log.new_warnings():
                if self._shows_warnings:
                    self._report(f"{child.name}: {warning}; see {child.log.path}")

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
        self._read_logs()
        self._redis_log.new_warnings()  # keeps it small

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

    async def _courier_is_ready(self) -> bool:
        async with Store.open(Connect(self.redis_url, self._settings.namespace)) as store:
            return bool(await store.events.idle_s(COURIERS))

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
