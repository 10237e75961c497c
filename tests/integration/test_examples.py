"""The scripts and the notebook in ``examples/``, run as a reader runs them: beside a ``tweezer up`` on this machine."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.qpu_process import QpuProcess
from tests.support.waiting import PATIENCE_S, wait_until

from tweezer import connect
from tweezer.data_folder import running_environment
from tweezer.model.lifecycle import BatchStatus

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = [
    pytest.mark.timeout(300),  # each starts several programs that import an emulator
    pytest.mark.emulator,
    pytest.mark.slow,
    pytest.mark.usefixtures("_any_server"),
    pytest.mark.skipif(importlib.util.find_spec("pulser_simulation") is None, reason="pulser-simulation is missing"),
]


class Installation:
    """A ``tweezer up`` with its data in ``folder``, and the programs that use it."""

    def __init__(self, folder: Path, device: str, **variables: str) -> None:
        self.data = folder / "data"
        self.log = folder / "up.log"
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("TWEEZER_")}
        self.environment = inherited | {"TWEEZER_DATA_DIR": str(self.data), "MPLBACKEND": "Agg"}
        options = ("--port", "0", "--redis-port", "0", "--device", device)
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tweezer.cli", "up", *options],
                cwd=folder,
                env=self.environment | variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def wait_ready(self) -> None:
        """Wait until other programs can find it."""

        def is_ready() -> bool:
            assert self._process.poll() is None, self.log.read_text(encoding="utf-8")
            return bool(running_environment(self.data))

        wait_until(is_ready, "tweezer up", within_s=2 * PATIENCE_S)

    def stop(self) -> None:
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise

    def run(self, folder: Path, *arguments: str, **variables: str) -> str:
        """Run a Python program in ``folder``; return what it printed."""
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=folder,
            env=self.environment | variables,
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def example(self, folder: Path, name: str, *arguments: str, **variables: str) -> str:
        return self.run(folder, str(EXAMPLES / name), *arguments, **variables)

    def cli(self, folder: Path, *arguments: str) -> str:
        return self.run(folder, "-m", "tweezer.cli", *arguments)


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """An installation with EMU_FREE."""
    installation = Installation(tmp_path_factory.mktemp("emulator"), "EMU_FREE")
    try:
        installation.wait_ready()
        yield installation
    finally:
        installation.stop()


def test_first_batch_prints_the_most_frequent_bitstring_of_each_job(emulator: Installation, tmp_path: Path) -> None:
    printed = emulator.example(tmp_path, "first_batch.py")
    found = re.findall(r"^job (\d)  .* most frequent: ([01]{6}), \d+ of 500 shots$", printed, re.MULTILINE)
    assert sorted(index for index, _ in found) == ["0", "1", "2", "3"]
    assert dict(found)["0"] == "000000"
    assert dict(found)["3"] in ("101010", "010101")
    again = emulator.cli(
        tmp_path, "submit", "sequence.json", "--device", "EMU_FREE", "--job", "runs=50,final_detuning=8", "--wait"
    )
    assert "job 0" in emulator.cli(tmp_path, "results", again.split()[0])


def test_sweep_writes_a_table_in_which_order_appears(emulator: Installation, tmp_path: Path) -> None:
    printed = emulator.example(tmp_path, "sweep.py")
    assert printed.count(": DONE") == 13
    with (tmp_path / "sweep.csv").open(encoding="utf-8", newline="") as file:
        rows = [(float(row["final_detuning"]), float(row["order"])) for row in csv.DictReader(file)]
    assert [detuning for detuning, _ in rows] == sorted(detuning for detuning, _ in rows)
    assert len(rows) == 13
    assert rows[0][1] < 0.1
    assert rows[-1][1] > 0.5


def test_optimiser_finds_order_and_closes_its_batch(emulator: Installation, tmp_path: Path) -> None:
    printed = emulator.example(tmp_path, "optimiser.py")
    best = re.search(r"^best: [-\d.]+ rad/µs, ([\d.]+)%; the batch is DONE$", printed, re.MULTILINE)
    assert best is not None, printed
    assert float(best[1]) > 50


def test_nightly_runs_a_sweep_after_the_calibration_of_one_schedule(emulator: Installation, tmp_path: Path) -> None:
    printed = emulator.example(tmp_path, "nightly.py")
    assert "the analysis batch is DONE" in printed
    shares = [float(share) for share in re.findall(r" rad/µs +(-?[\d.]+)", printed)]
    assert len(shares) == 13
    assert max(abs(share) for share in shares[:2]) < 0.1
    assert abs(shares[9] - 1) < 0.1, "the ordered reference"
    again = emulator.example(tmp_path, "nightly.py")
    assert again.startswith("there is a schedule 'nightly calibration' already")
    schedule = json.loads(emulator.cli(tmp_path, "schedules", "show", "nightly calibration", "--json"))
    assert schedule["ticks"][0]["outcome"] == "submitted"
    emulator.cli(tmp_path, "schedules", "delete", "nightly calibration", "--yes")


def test_webhook_receiver_verifies_what_a_batch_sends_and_refuses_another_secret(
    emulator: Installation, tmp_path: Path
) -> None:
    sequence, log = tmp_path / "sequence.json", tmp_path / "log"
    sequence.write_text(emulator.example(tmp_path, "checkerboard.py"), encoding="utf-8")
    secret = emulator.cli(tmp_path, "webhooks", "secret").strip()
    with log.open("w") as output:
        receiver = subprocess.Popen(
            [sys.executable, str(EXAMPLES / "webhook_receiver.py")],
            env=emulator.environment | {"WEBHOOK_SECRET": secret, "PORT": "0"},
            stdout=output,
            stderr=output,
        )
    try:
        wait_until(lambda: "waiting for webhooks at" in log.read_text(), "the receiver")
        url = log.read_text().split()[-1]
        job = ("--job", "runs=20,final_detuning=8")
        emulator.cli(tmp_path, "submit", "sequence.json", "--device", "EMU_FREE", *job, "--webhook", url, "--wait")
        wait_until(lambda: "batch.done" in log.read_text(), "the last webhook")
        assert re.search(r"^ +\d  job.done +DONE$", log.read_text(), re.MULTILINE)
        before = log.read_text()
        emulator.cli(tmp_path, "webhooks", "replay", url)  # the same ids again, so no new line
        assert log.read_text() == before
        foreign = subprocess.run(
            [sys.executable, "-m", "tweezer.cli", "webhooks", "sample", "--url", url, "--secret", _other_secret()],
            env=emulator.environment,
            capture_output=True,
            check=False,
        )
        assert foreign.returncode == 1
        assert "refused: " in log.read_text()
    finally:
        receiver.kill()
        receiver.wait()


def _other_secret() -> str:
    from tweezer.model.signatures import new_secret

    return new_secret()


def test_arq_producer_submits_a_batch(emulator: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sequence.json").write_text(emulator.example(tmp_path, "checkerboard.py"), encoding="utf-8")
    variables = running_environment(emulator.data)
    batch_id = emulator.example(tmp_path, "arq_producer.py", "sequence.json", **variables).strip()
    monkeypatch.setenv("TWEEZER_DATA_DIR", str(emulator.data))
    with connect(variables["TWEEZER_REDIS_URL"]) as queue:
        batch = queue.batch(batch_id)
        assert [job.status for job in batch.results(timeout_s=PATIENCE_S)] == ["DONE"] * 3
        assert batch.record().status is BatchStatus.DONE


def test_the_notebook_is_valid_has_no_output_and_runs(emulator: Installation, tmp_path: Path) -> None:
    notebook = json.loads((EXAMPLES / "first_batch.ipynb").read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    cells = notebook["cells"]
    ids = [cell["id"] for cell in cells]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[\w-]{1,64}", identity) for identity in ids)
    assert {cell["cell_type"] for cell in cells} == {"code", "markdown"}
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all((cell["outputs"], cell["execution_count"]) == ([], None) for cell in code)
    program = tmp_path / "cells.py"
    program.write_text("\n\n".join("".join(cell["source"]) for cell in code), encoding="utf-8")
    assert emulator.run(tmp_path, "-W", "error::ResourceWarning", str(program)).count("of 500 shots") == 4


def test_the_machine_of_the_rehearsal_receives_each_job_at_most_once(tmp_path: Path) -> None:
    with QpuProcess(tmp_path, "--job-seconds", "5") as qpu:
        config = tmp_path / "qpu.toml"
        text = (EXAMPLES / "qpu.toml").read_text(encoding="utf-8")
        config.write_text(text.replace("http://127.0.0.1:4300", qpu.url), encoding="utf-8")
        installation = Installation(tmp_path, "FRESNEL", TWEEZER_CONFIG=str(config))
        try:
            installation.wait_ready()
            printed = installation.example(tmp_path, "qpu_rehearsal.py", QPU_URL=qpu.url)
        finally:
            installation.stop()
    outcomes = re.findall(r"^job \d  (\w+) .* cancel: (\w+)$", printed, re.MULTILINE)
    assert [outcomes[index] for index in (0, 2, 3)] == [("DONE", "none"), ("DONE", "none"), ("CANCELED", "prevented")]
    # On a busy host the job may not have been submitted yet.
    assert outcomes[1] in {("CANCELED", "stopped"), ("CANCELED", "prevented")}
    counted = re.search(r"counted by the machine: \[1, ([01]), 1, 0\]$", printed, re.MULTILINE)
    assert counted is not None, printed
