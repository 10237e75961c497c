"""Time the unmodified Pasqal client in its own environment: for each JSON object on a line of stdin, print another.

The first line has the server's address, the sequence and the shots of a job. Neither Tweezer nor the other benchmarks
can be imported here: the client's interpreter has only its own libraries.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import requests
from pasqal_cloud import PasqalCloudConnection, RemoteEmuFreeBackend
from pasqal_cloud.authentication import TokenProvider
from pasqal_cloud.endpoints import Endpoints
from pasqal_cloud.pasqal_cloud_client import PasqalCloudClient
from pulser import Sequence
from pulser.backend import BitStrings, EmulationConfig

Result = dict[str, Any]


class _Key(TokenProvider):
    def __init__(self, key: str) -> None:
        self._key = key

    def get_token(self) -> str:
        return self._key


class Timed:
    """The calls of a user on connections that stay open, and a count of the requests they make."""

    def __init__(self, base: str, project: str, key: str, sequence: str, runs: int) -> None:
        options: Any = {
            "project_id": project,
            "token_provider": _Key(key),
            "endpoints": Endpoints(core=base, account=base),
        }
        self._health = f"{base}/health"
        self._text, self._runs = sequence, runs
        self._session = requests.Session()
        self._client = PasqalCloudClient(**options)
        self._connection = PasqalCloudConnection(**options)
        self._sequence: Any = Sequence.from_abstract_repr(sequence)
        self._config: Any = EmulationConfig(observables=[BitStrings(num_shots=runs)])
        self.requests: list[dict[str, Any]] = []
        for client in (self._client, self._connection.cloud_client):
            client._client.session.hooks["response"].append(self._note)  # noqa: SLF001  # a documented hook of requests

    def ping(self, variables: dict[str, float]) -> Result:
        """Make five bare round trips."""
        return {"answers": [self._session.get(self._health).status_code for _ in range(5)]}

    def client(self, variables: dict[str, float]) -> Result:
        """Submit, wait and read results with the client. ``emulation_s`` is what the server recorded."""
        jobs: Any = [{"runs": self._runs, "variables": variables}]
        batch = self._client.create_batch(self._text, jobs, device_type="EMU_FREE", wait=True)
        (job,) = batch.ordered_jobs
        shots = sum((job.result or {}).values())
        return {"shots": shots, "emulation_s": job.preparation_s + job.device_s}

    def backend(self, variables: dict[str, float]) -> Result:
        """Do the same with Pulser's backend on this connection, which also parses and builds the sequence here."""
        backend = RemoteEmuFreeBackend(self._sequence, self._connection, config=self._config)
        (results,) = backend.run([{"variables": variables}], wait=True).results
        return {"shots": sum(results.final_bitstrings.values())}

    def _note(self, response: Any, **_: Any) -> None:
        sent = response.request
        path = sent.path_url.partition("?")[0]
        self.requests.append({"method": sent.method, "path": path, "s": response.elapsed.total_seconds()})


def main() -> None:
    output = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # output of libraries must not mix with the answers
    timed = Timed(**json.loads(sys.stdin.readline()))
    output.write("ready\n")
    for line in sys.stdin:
        asked = json.loads(line)
        timed.requests = []
        act = {"ping": timed.ping, "client": timed.client, "backend": timed.backend}[asked["act"]]
        began = time.perf_counter()
        result = act(asked["variables"])
        took_s = time.perf_counter() - began
        output.write(json.dumps({**result, "s": took_s, "requests": timed.requests}) + "\n")


if __name__ == "__main__":
    main()
