"""The demo, from its start to its plot, with a real emulator."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
from tests.support.waiting import wait_until

from tweezer.cli.local import antiferromagnet

PATIENCE_S = 100.0
ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.emulator,
    pytest.mark.slow,
    pytest.mark.usefixtures("_any_server"),
    pytest.mark.skipif(importlib.util.find_spec("pulser_simulation") is None, reason="pulser-simulation is missing"),
]


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """A function that starts a demo with the temporary folder ``tmp``; it is killed at the end if it still runs."""
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: str) -> subprocess.Popen[str]:
        (tmp_path / "tmp").mkdir()
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("TWEEZER_")}
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "tweezer.cli", "demo", *arguments],
                cwd=ROOT,
                env=inherited | {"TMPDIR": str(tmp_path / "tmp"), "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


def left_behind(temporary: Path, family: list[psutil.Process]) -> list[object]:
    """Return the files and the running processes that a demo left behind."""
    live = [one for one in family if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    return [*temporary.iterdir(), *live]


def test_the_demo_finds_antiferromagnetic_order(start: Start, tmp_path: Path) -> None:
    running = start("--json")
    stdout, stderr = running.communicate(timeout=PATIENCE_S)
    assert running.returncode == 0, stderr
    outcome = json.loads(stdout.splitlines()[-1])
    assert set(outcome) == {"batch", "status", "jobs", "counters", "seconds", "webhooks"}
    assert outcome["status"] == "DONE"
    assert outcome["jobs"] == len(outcome["counters"]) >= 20
    assert {sum(counter.values()) for counter in outcome["counters"]} == {500}
    assert outcome["webhooks"] == outcome["jobs"] + 3  # the end of each job; the batch was created, ran, and is done
    assert f"{outcome['webhooks']} webhooks received, all signatures verified" in stderr
    order = [antiferromagnet.order(counter) for counter in outcome["counters"]]
    assert order[0] < 0.3
    assert order[-1] > 0.9
    assert all(later > earlier - 0.1 for earlier, later in pairwise(order))
    assert f"{outcome['jobs']}/{outcome['jobs']} jobs · DONE" in stderr
    assert left_behind(tmp_path / "tmp", []) == []


@pytest.mark.parametrize("moment", ["Starting", "Submitted"])
def test_ctrl_c_leaves_nothing_behind(moment: str, start: Start, tmp_path: Path) -> None:
    running = start("--jobs", "500")
    assert running.stdout is not None
    while moment not in (line := running.stdout.readline()):
        assert line, f"the demo ended early: {running.communicate()}"
    family = family_of(running, at_least=1 if moment == "Starting" else 4)
    running.send_signal(signal.SIGINT)
    _, stderr = running.communicate(timeout=PATIENCE_S)
    assert running.returncode == 130
    assert "Traceback" not in stderr
    assert left_behind(tmp_path / "tmp", family) == []


def test_a_kept_demo_can_be_used_until_it_is_stopped(start: Start, tmp_path: Path) -> None:
    running = start("--jobs", "2", "--keep")
    assert running.stdout is not None
    output = ""
    while "tweezer doctor" not in output:
        line = running.stdout.readline()
        assert line, f"the demo ended early: {output}{running.communicate()}"
        output += line
    assert "  01010101  █" in output
    assert "  1.0 ┤" in output
    assert max(len(line) for line in output.splitlines() if str(tmp_path) not in line) <= 80
    sourced = next(line for line in output.splitlines() if line.startswith("  . "))
    command = next(line for line in output.replace("\\\n", "").splitlines() if "tweezer submit" in line).split()[1:]
    again = subprocess.run(
        ["sh", "-c", f'{sourced}; exec "$@"', "sh", sys.executable, "-m", "tweezer.cli", *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert again.returncode == 0, again.stderr
    family = family_of(running, at_least=4)
    running.send_signal(signal.SIGTERM)
    running.communicate(timeout=PATIENCE_S)
    assert running.returncode == 0
    assert left_behind(tmp_path / "tmp", family) == []


def family_of(running: subprocess.Popen[str], *, at_least: int) -> list[psutil.Process]:
    """Return all descendants, once there are this many."""
    found: list[psutil.Process] = []

    def complete() -> bool:
        found[:] = psutil.Process(running.pid).children(recursive=True)
        return len(found) >= at_least

    wait_until(complete, "all processes", PATIENCE_S)
    return found


def test_on_a_qpu_each_job_is_submitted_once(start: Start, tmp_path: Path) -> None:
    running = start("--qpu", "--jobs", "3", "--json")
    stdout, stderr = running.communicate(timeout=PATIENCE_S)
    assert running.returncode == 0, stderr
    outcome = json.loads(stdout.splitlines()[-1])
    assert outcome["status"] == "DONE"
    assert outcome["submits"] == [1, 1, 1]
    assert "By the QPU's count, 3 of 3 jobs were submitted exactly once" in stderr
    assert left_behind(tmp_path / "tmp", []) == []
