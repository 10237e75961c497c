"""A simulated QPU as a separate process for tests, which start it, control it through ``/sim``, and kill it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import httpx
import msgspec
from tests.support.forks import Fork
from tests.support.waiting import PATIENCE_S, wait_until

from tweezer.adapters.remote.options import QpuOptions
from tweezer.adapters.remote.qpu.api import QpuApi, QpuJob, SubmitContext
from tweezer.cli import main
from tweezer.model.ids import new_batch_id
from tweezer.qpu_sim.journal import Tally, read_journal, tally

_LISTENING = "listening at "


class QpuProcess:
    """``tweezer qpu-sim`` with a journal in ``folder`` and these options; by default with ``--fake``.

    After :meth:`kill`, :meth:`start` serves at the same address again.
    """

    def __init__(self, folder: Path, *options: str, fake: bool = True, tls_ca: Path | None = None) -> None:
        self.journal = folder / "qpu.jsonl"
        self._log = folder / "qpu.log"
        self._options = [*options, *(["--fake"] if fake else [])]
        self._verify: Any = True if tls_ca is None else str(tls_ca)
        self._process: Fork | None = None
        self.url = ""
        self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        sys.stderr.write(f"---- log of the QPU\n{self.text[-4000:]}\n")  # shown when a test fails

    @property
    def text(self) -> str:
        """The whole output so far."""
        return self._log.read_text(errors="replace")

    def start(self) -> None:
        port = urlsplit(self.url).port or 0
        arguments = ["qpu-sim", "--port", str(port), "--journal", str(self.journal), *self._options]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TWEEZER_")}
        self._process = Fork(_run, arguments, environment, self._log)
        wait_until(lambda: _LISTENING in self.text or not self.alive)
        assert self.alive, self.text
        self.url = self.text.partition(_LISTENING)[2].split()[0]

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.alive

    def kill(self) -> None:
        """Send SIGKILL and wait for the process to end."""
        assert self._process is not None
        self._process.kill()

    def stop(self) -> int:
        """Send SIGTERM, wait for the process to end, and return its exit status."""
        assert self._process is not None
        self._process.signal(signal.SIGTERM)
        return self._process.wait(PATIENCE_S)

    def ask(self, method: str, path: str, body: object = None) -> Any:
        """Send a request and return the JSON of its response, with any status."""
        content = None if body is None else msgspec.json.encode(body)
        answer = httpx.request(method, self.url + path, content=content, verify=self._verify, timeout=20)
        return answer.json()

    def misbehave(self, **changes: object) -> None:
        assert set(changes) <= set(self.ask("PATCH", "/sim/habits", changes))

    def counts(self) -> dict[str, Tally]:
        """Return the tallies of the simulator, by ``pasqman_job_id``."""
        return msgspec.convert(self.ask("GET", "/sim/counts")["jobs"], dict[str, Tally])

    def read_tallies(self) -> dict[str, Tally]:
        """Read the same tallies from the journal, which also works after the process has ended."""
        return tally(read_journal(self.journal))

    def api(self, **options: Any) -> QpuApi:
        """Return a client of the simulator, which the test must close."""
        return QpuApi(QpuOptions(base_url=self.url, **options), agent="test")


def _run(arguments: Sequence[str]) -> None:
    main(arguments)


def some_context() -> SubmitContext:
    """Return the context of a job that was never submitted."""
    return SubmitContext(str(new_batch_id()), str(new_batch_id()))


async def submitted(api: QpuApi, sequence: str, *, nb_run: int = 100, context: SubmitContext | None = None) -> QpuJob:
    return await api.submit(nb_run=nb_run, pulser_sequence=sequence, context=context or some_context())
