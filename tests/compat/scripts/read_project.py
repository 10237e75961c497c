"""Read a project with a release of pasqal-cloud that is older than the other scripts: ``BASE PROJECT KEY BATCH``.

Prints one JSON object: the version, and what it makes of the jobs of that batch and of the project's first page.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from typing import Any

from pasqal_cloud import SDK
from pasqal_cloud.authentication import TokenProvider
from pasqal_cloud.endpoints import Endpoints


class Key(TokenProvider):
    def __init__(self, key: str) -> None:
        self._key = key

    def get_token(self) -> str:
        return self._key


def read(base: str, project: str, key: str, batch_id: str) -> dict[str, Any]:
    client = SDK(token_provider=Key(key), endpoints=Endpoints(core=base), project_id=project)
    batch = client.get_batch(batch_id)
    return {
        "version": version("pasqal-cloud"),
        "status": batch.status,
        "device": batch.device_type,
        "jobs": [{"id": job.id, "runs": job.runs, "counter": job.result} for job in batch.ordered_jobs],
        "runs": {job.id: job.runs for job in client.get_jobs().results},
        "batches": [found.id for found in client.get_batches().results],
    }


if __name__ == "__main__":
    json.dump(read(*sys.argv[1:]), sys.stdout, default=str)
