"""An installation as an operator starts it: a Redis, a ledger, and the processes of the command line."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
from click.testing import CliRunner
from tests.support.redis_users import RedisServer
from tests.support.waiting import wait_until

from tweezer.cli import main

PROJECT = "6f1c2b3a-0d4e-4f5a-8b6c-7d8e9f0a1b2c"  # the client's filters accept only UUIDs
SECOND = "7a2d3c4b-1e5f-4a6b-9c7d-8e9f0a1b2c3d"
FOREIGN = "8b3e4d5c-2f6a-4b7c-8d8e-9f0a1b2c3d4e"
ADA, PASSWORD = "ada", "correct horse battery"
EMU_FREE, NULL, QPU = "EMU_FREE", "NULL", "FRESNEL"
EMU_SV, EMU_MPS, EMU_TN, EMU_FRESNEL = "EMU_SV", "EMU_MPS", "EMU_TN", "EMU_FRESNEL"

_START_S = 60.0


class Cloud:
    """An installation with three projects, two of them of the user ada, and keys of the first and the last one.

    qpu_specs: of a device FRESNEL that is emulated behind a QPU's specs.
    """

    def __init__(self, folder: Path, redis: RedisServer, *, qpu_specs: str) -> None:
        specs = folder / "fresnel.json"
        specs.write_text(qpu_specs)
        devices = {QPU: {"adapter": "qutip", "specs": str(specs)}}
        settings = {
            "redis_url": redis.url,
            "data_dir": folder,
            "database_url": f"sqlite:///{folder / 'ledger.db'}",
            "log_format": "json",
            "devices": json.dumps(devices),
        }
        self._folder = folder
        self._settings = {f"TWEEZER_{name.upper()}": str(value) for name, value in settings.items()}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.base = ""
        self.key = self.foreign_key = ""

    def __enter__(self) -> Self:
        self.tweezer("db", "upgrade")
        for name, identity in (("Ours", PROJECT), ("Second", SECOND), ("Foreign", FOREIGN)):
            self.tweezer("projects", "create", name, "--id", identity)
        self.tweezer("users", "create", ADA, "--stdin", input=f"{PASSWORD}\n")
        for identity in (PROJECT, SECOND):
            self.tweezer("users", "add-to", ADA, identity)
        self.key = self.tweezer("keys", "create", "ours", "--project", PROJECT, "--user", ADA)
        self.foreign_key = self.tweezer("keys", "create", "foreign", "--project", FOREIGN)
        self._start("recorder")
        self._start("api", "--port", "0")
        for device, lanes in ((EMU_FREE, 1), (NULL, 4), (QPU, 1)):
            self._start("worker", "--device", device, "--lanes", str(lanes))
        try:
            wait_until(self._listens, within_s=_START_S)
            wait_until(lambda: self._serves(EMU_FREE, NULL, QPU), within_s=_START_S)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        failures = [line for line in self._log("api").splitlines() if '"api.failed"' in line or "Traceback" in line]
        self._stop()
        assert not failures, f"the API failed at a request of a client: {failures[:3]}"

    def get(self, path: str, **query: Any) -> Any:
        """Return the data of the API itself, to compare a client's view with it."""
        response = httpx.get(f"{self.base}{path}", params=query, headers={"Authorization": f"Bearer {self.key}"})
        assert response.status_code == 200, response.text
        return response.json()["data"]

    @contextlib.contextmanager
    def serving(self, device: str) -> Iterator[None]:
        """Run a worker of another device while it is needed: each takes half a gigabyte."""
        self._start("worker", "--device", device, "--lanes", "1")
        try:
            wait_until(lambda: self._serves(device), within_s=_START_S)
            yield
        finally:
            self._end(device, self._processes.pop(device))

    def tweezer(self, *arguments: str, input: str | None = None) -> str:
        """Run a command of the operator and return its output."""
        ran = CliRunner(env=self._settings).invoke(main, arguments, input=input)
        assert ran.exit_code == 0, ran.output
        return ran.stdout.strip()

    def _start(self, *arguments: str) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("TWEEZER_")}
        name = arguments[2] if arguments[0] == "worker" else arguments[0]
        with self._log_file(name).open("wb") as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", "tweezer.cli", *arguments],
                cwd=self._folder,
                env=inherited | {"PYTHONPATH": os.pathsep.join(sys.path)} | self._settings,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _stop(self) -> None:
        for name, process in self._processes.items():
            self._end(name, process)

    def _end(self, name: str, process: subprocess.Popen[bytes]) -> None:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        sys.stderr.write(f"---- log of {name}\n{self._log(name)[-3000:]}\n")  # shown when a test fails

    def _listens(self) -> bool:
        self._check_alive()
        for line in self._log("api").splitlines():
            if '"api.listening"' in line:
                self.base = str(json.loads(line)["url"])
        return bool(self.base)

    def _serves(self, *devices: str) -> bool:
        self._check_alive()
        lanes = {device["name"] for device in self.get("/api/v1/devices") if device["status"] == "UP"}
        return lanes >= set(devices)

    def _check_alive(self) -> None:
        for name, process in self._processes.items():
            assert process.poll() is None, f"{name} ended at its start:\n{self._log(name)[-3000:]}"

    def _log_file(self, name: str) -> Path:
        return self._folder / f"{name}.log"

    def _log(self, name: str) -> str:
        return self._log_file(name).read_text(errors="replace")


def recorded(cloud: Cloud, ids: Iterable[str], **wanted: Any) -> None:
    """Wait until the lists have these batches in the expected state."""
    ids = list(ids)

    def known() -> bool:
        found = [
            cloud.get("/api/v2/batches", id=ids[first : first + 100], **wanted) for first in range(0, len(ids), 100)
        ]
        return sum(map(len, found)) == len(ids)

    wait_until(known)
