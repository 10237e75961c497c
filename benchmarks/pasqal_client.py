"""Pasqal's client, unmodified, timed in its own environment: one JSON object a line in, one out, until the input ends.

The first line is where the server is, the sequence and the shots of a job. Runs where neither Tweezer nor these
benchmarks are installed: the client's interpreter has its libraries only.
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

Told = dict[str, Any]


class _Key(TokenProvider):
    def __init__(self, key: str) -> None:
        self._key = key

    def get_token(self) -> str:
        return self._key


class Timed:
    """What a user does, on connections that are kept, and the requests that it takes."""

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
            client._client.session.hooks["response"].append(self._note)  # noqa: SLF001  # as requests lets anybody look

    def ping(self, variables: dict[str, float]) -> Told:
        """Five bare round trips."""
        return {"answers": [self._session.get(self._health).status_code for _ in range(5)]}

    def client(self, variables: dict[str, float]) -> Told:
        """Submit, wait, results with the client itself. emulation_s: as the server has recorded it."""
        jobs: Any = [{"runs": self._runs, "variables": variables}]
        batch = self._client.create_batch(self._text, jobs, device_type="EMU_FREE", wait=True)
        (job,) = batch.ordered_jobs
        shots = sum((job.result or {}).values())
        return {"shots": shots, "emulation_s": job.preparation_s + job.device_s}

    def backend(self, variables: dict[str, float]) -> Told:
        """The same with Pulser's backend on its connection, which parses and builds sequences here too."""
        backend = RemoteEmuFreeBackend(self._sequence, self._connection, config=self._config)
        (results,) = backend.run([{"variables": variables}], wait=True).results
        return {"shots": sum(results.final_bitstrings.values())}

    def _note(self, response: Any, **_: Any) -> None:
        sent = response.request
        path = sent.path_url.partition("?")[0]
        self.requests.append({"method": sent.method, "path": path, "s": response.elapsed.total_seconds()})


def main() -> None:
    said = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    timed = Timed(**json.loads(sys.stdin.readline()))
    said.write("ready\n")
    for line in sys.stdin:
        asked = json.loads(line)
        timed.requests = []
        act = {"ping": timed.ping, "client": timed.client, "backend": timed.backend}[asked["act"]]
        began = time.perf_counter()
        told = act(asked["variables"])
        took_s = time.perf_counter() - began
        said.write(json.dumps({**told, "s": took_s, "requests": timed.requests}) + "\n")


if __name__ == "__main__":
    main()
