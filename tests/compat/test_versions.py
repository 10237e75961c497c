"""Every release of pasqal-cloud can read what any other release submits."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.compat.clients import Client
from tests.compat.cloud import PROJECT, Cloud, recorded
from tests.compat.conftest import find_interpreter

pytestmark = pytest.mark.compat

SCRIPT = Path(__file__).parent / "scripts" / "read_project.py"


@pytest.mark.parametrize(("stack", "version"), [("c", "0.20."), ("d", "0.13.")])
def test_an_old_client_reads_batches_of_newer_ones(
    cloud: Cloud, client_a: Client, client_b: Client, stack: str, version: str
) -> None:
    """If a configuration has the shots, the newest release submits no ``runs``, and the previous one ``runs: 1``."""
    for client, runs in ((client_a, 70), (client_b, 1)):
        batch = client.call("backends.emulate", shots=70)
        recorded(cloud, [batch["batch"]])
        read = _read(find_interpreter(stack), cloud, batch["batch"])
        assert read["version"].startswith(version)
        assert (read["status"], read["device"]) == ("DONE", "EMU_FREE")
        (job,) = read["jobs"]
        assert job["runs"] == read["runs"][job["id"]] == runs
        assert job["counter"] == batch["counts"]
        assert batch["batch"] in read["batches"]
        assert all(isinstance(found, int) for found in read["runs"].values())


def _read(interpreter: str, cloud: Cloud, batch: str) -> dict[str, Any]:
    command = [interpreter, "-W", "ignore", str(SCRIPT), cloud.base, PROJECT, cloud.key, batch]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    answer: dict[str, Any] = json.loads(ran.stdout)
    return answer
