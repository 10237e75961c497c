"""The commands with everything that ``tweezer up`` starts, as a user runs them in another terminal."""

from __future__ import annotations

import csv
import http.client
import importlib.util
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit
from uuid import UUID

import psutil
import pytest
from click.testing import CliRunner, Result
from tests.support.waiting import wait_until

from tweezer.cli import main
from tweezer.data_folder import running_environment
from tweezer.model.ids import new_batch_id, short_id

PATIENCE_S = 60.0
ROOT = Path(__file__).parents[2]
QUICK = {"TWEEZER_WORKER_LEASE_S": "2"}


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("TWEEZER_")} | QUICK


@pytest.fixture(autouse=True, scope="module")
def _quick() -> Iterator[None]:
    """Set the same variables in this process."""
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ.keys() - environment().keys():
            patch.delenv(name)
        yield


def tweezer(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tweezer.cli", *arguments],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def short(batch: str) -> str:
    return short_id(UUID(batch))


def numbered(batch: str, *indices: int) -> list[str]:
    return [f"{short(batch)}/{index}" for index in indices]


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


class Up:
    """A ``tweezer up`` with a device, and its output in a file."""

    def __init__(self, folder: Path, *, device: str = "NULL", lanes: int = 2) -> None:
        self.data = folder / "data"
        self.output = folder / "up.log"
        command = ["up", "--device", device, "--lanes", str(lanes), "--data", str(self.data)]
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tweezer.cli", *command, "--port", "0", "--redis-port", "0"],
                cwd=ROOT,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()  # its children end with it
        self.process.wait()

    @property
    def text(self) -> str:
        return self.output.read_text()

    def wait_ready(self) -> Self:
        wait_until(
            lambda: "Ctrl-C stops it all" in self.text or self.process.poll() is not None, "up is ready", PATIENCE_S
        )
        assert self.process.poll() is None, self.text
        return self

    def stopped_at(self, process: str) -> str:
        """Return when a process logged that it had stopped."""
        lines = (self.data / "log" / f"{process}.log").read_text().splitlines()
        return next(line.split()[0] for line in lines if f"{process}.stopped" in line)

    def find(self, pattern: str) -> str:
        match = re.search(pattern, self.text)
        assert match is not None, self.text
        return match[1]

    @property
    def redis_url(self) -> str:
        return running_environment(self.data)["TWEEZER_REDIS_URL"]

    def children(self) -> dict[str, psutil.Process]:
        """Return its processes by the command of tweezer, or by the name of the program."""
        found = {}
        for child in psutil.Process(self.process.pid).children():
            words = child.cmdline()
            found[words[words.index("tweezer.cli") + 1] if "tweezer.cli" in words else Path(words[0]).name] = child
        return found

    def tweezer(self, *arguments: str, input: str | None = None) -> Result:
        """Run a command in this process, because starting one takes longer than the command."""
        runner = CliRunner(env={"TWEEZER_DATA_DIR": str(self.data)})
        return runner.invoke(main, ["--redis", self.redis_url, *arguments], input=input)

    def call(self, *arguments: str, input: str | None = None) -> str:
        """Return the output of a successful command."""
        ran = self.tweezer(*arguments, input=input)
        assert ran.exit_code == 0, ran.output
        return ran.stdout.strip()

    def submit(self, *arguments: str) -> str:
        return self.call("submit", "-", "--device", "NULL", *arguments, input="{}")


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Up]:
    request.getfixturevalue("_any_server")  # it skips or fails if no server is installed
    with Up(tmp_path_factory.mktemp("up")) as started:
        yield started.wait_ready()


def test_a_batch_is_submitted_watched_and_read(up: Up) -> None:
    batch = up.submit("--runs", "5", "--job", "runs=3", "--job", "sleep_s=0.2", "--name", "three", "--tag", "a")
    assert re.fullmatch(r"[0-9a-f-]{36}", batch)
    watched = up.call("watch", batch)
    assert watched.splitlines()[-1].endswith("2/2 jobs · DONE")
    assert "2 DONE" in up.call("status", batch)
    assert up.call("results", batch).splitlines()[0] == "job 0"
    result = json.loads(up.call("results", batch, "--json"))
    assert [job["counter"] for job in result["jobs"]] == [{"0": 3}, {"0": 5}]
    assert json.loads(up.call("results", batch, "--sum", "--json"))["counter"] == {"0": 8}
    status = json.loads(up.call("status", batch, "--json"))
    assert (status["status"], status["name"], status["tags"]) == ("DONE", "three", ["a"])
    assert [job["status"] for job in status["jobs"]] == ["DONE", "DONE"]
    nobody = str(new_batch_id())
    assert up.tweezer("status", nobody).stderr == f"Error: there is no batch {nobody}; `tweezer batches` lists them\n"


def test_a_ledger_without_tables_counts_as_none(up: Up, tmp_path: Path) -> None:
    nobody, ledger = str(new_batch_id()), tmp_path / "ledger.db"
    for make in (lambda: None, ledger.touch, lambda: sqlite3.connect(ledger).execute("PRAGMA user_version = 1")):
        make()
        for command in ("status", "results"):
            runner = CliRunner(env={"TWEEZER_DATABASE_URL": f"sqlite:///{ledger}"})
            ran = runner.invoke(main, ["--redis", up.redis_url, command, nobody])
            assert ran.stderr == f"Error: there is no batch {nobody}; `tweezer batches` lists them\n"


@pytest.mark.slow
def test_a_batch_runs_through_real_commands(up: Up, tmp_path: Path) -> None:
    (tmp_path / "sequence.json").write_text("{}")
    submit = ("submit", str(tmp_path / "sequence.json"), "--device", "NULL", "--runs", "4")
    for arguments, expected in (
        (("watch",), "1/1 jobs · DONE\n"),
        (("results",), "  0  █"),
        (("results", "--plot", str(tmp_path / "plot.png")), f"Wrote the plot to {tmp_path / 'plot.png'}.\n"),
        (("cancel",), "has ended\n"),
    ):
        if "--plot" in arguments and importlib.util.find_spec("matplotlib") is None:
            continue  # part of the emulators
        ran = tweezer("--redis", up.redis_url, *submit, "--idempotency-key", "real")
        batch = ran.stdout.strip()
        assert (ran.returncode, ran.stderr) == (0, "")
        ran = tweezer("--redis", up.redis_url, *arguments, batch)
        assert expected in ran.stdout + ran.stderr


def test_stdout_of_a_submit_that_waits_is_the_id_alone(up: Up) -> None:
    ran = up.tweezer("submit", "-", "--device", "NULL", "--runs", "2", "--wait", input="{}")
    assert ran.exit_code == 0
    assert re.fullmatch(r"[0-9a-f-]{36}\n", ran.stdout)
    assert "1/1 jobs · DONE" in ran.stderr


def test_waiting_for_a_batch_whose_job_fails_ends_with_exit_code_1(up: Up) -> None:
    ran = up.tweezer("submit", "-", "--device", "NULL", "--job", 'runs=1,fail="no atoms"', "--wait", input="{}")
    assert ran.exit_code == 1
    batch = ran.stdout.strip()
    shown = short(batch)
    assert "job 0 failed: no atoms" in ran.stderr.splitlines()
    assert ran.stderr.splitlines()[-1].startswith(f"Error: not all jobs of batch {shown} are DONE: 1 ERROR of 1")
    assert "\n    1  0     no atoms\n" in up.call("status", batch)
    failed = up.tweezer("results", batch)
    assert failed.exit_code == 1
    assert failed.stderr == "Error: no job has a result; job 0 is ERROR: no atoms\n"


def test_the_sum_of_results_lists_jobs_without_a_result(up: Up) -> None:
    options = ("--job", "runs=3", "--job", 'runs=1,fail="no atoms"', "--job", "runs=4")
    batch = up.tweezer("submit", "-", "--device", "NULL", *options, "--wait", input="{}").stdout.strip()
    total = json.loads(up.call("results", batch, "--sum", "--json"))
    assert (total["jobs"], total["without_result"], total["counter"]) == (2, [1], {"0": 7})
    assert "7 shots of 2 of 3 jobs" in up.call("results", batch, "--sum")


def test_results_of_many_jobs_are_one_table_or_csv(up: Up) -> None:
    options = [word for number in range(11) for word in ("--job", f"runs={number + 1}")]
    batch = up.tweezer(
        "submit", "-", "--device", "NULL", *options, "--job", 'runs=1,fail="no atoms"', "--wait", input="{}"
    ).stdout.strip()
    lines = up.call("results", batch).splitlines()
    assert lines[0].split() == ["job", "variables", "status", "shots", "top", "share"]
    assert lines[1].split() == ["0", "DONE", "1", "0", "100.0%"]
    assert lines[12].split() == ["11", "fail=no", "atoms", "ERROR"]
    assert [line.split() for line in lines[13:]] == [[], ["count", "jobs", "reason"], ["1", "11", "no", "atoms"]]
    rows = list(csv.DictReader(up.call("results", batch, "--csv").splitlines()))
    assert rows[2] == {"job": "2", "fail": "", "status": "DONE", "shots": "3", "top": "0", "share": "1", "note": ""}
    assert (rows[11]["fail"], rows[11]["status"], rows[11]["note"]) == ("no atoms", "ERROR", "no atoms")
    full = list(csv.DictReader(up.call("results", batch, "--csv", "--full", "--job", "4").splitlines()))
    assert [(row["bitstring"], row["count"]) for row in full] == [("0", "5")]
    assert up.call("results", batch, "--full").count("█") > 11
    assert up.call("results", batch, "--job", "3").splitlines()[0] == "job 3"
    assert up.tweezer("results", batch, "--csv", "--json").exit_code == 2


def test_many_failures_are_grouped_by_their_reason(up: Up) -> None:
    options = [word for _ in range(3) for word in ("--job", 'runs=1,fail="no atoms"')]
    ran = up.tweezer("submit", "-", "--device", "NULL", *options, "--job", "runs=1", "--wait", input="{}")
    assert "\n    3  0-2   no atoms\n" in ran.stderr
    assert sum("job " in line and "failed: no atoms" in line for line in ran.stderr.splitlines()) == 1
    assert "\n    3  0-2   no atoms\n" in up.call("status", ran.stdout.strip())


def test_the_results_of_a_cancelled_job_show_who_cancelled_it_and_when(up: Up) -> None:
    up.call("pause", "--device", "NULL", "--reason", "test")
    try:
        batch = up.submit("--runs", "1")
        up.call("cancel", batch, "--by", "the watchdog")
        error = up.tweezer("results", batch).stderr
        assert re.search(r"job 0 was cancelled by the watchdog at \d{4}-\d\d-\d\d [\d:]+ \S+, before it started", error)
    finally:
        up.call("resume", "--device", "NULL")


def test_status_shows_who_paused_a_batch_and_why(up: Up) -> None:
    up.call("pause", "--device", "NULL", "--reason", "test")
    try:
        batch = up.submit("--runs", "1")
        assert up.call("pause", batch, "--reason", "check first") == f"{short(batch)} paused"
        assert re.search(
            rf"paused +by \S+@{re.escape(socket.gethostname())} at .*: check first\n", up.call("status", batch)
        )
        assert json.loads(up.call("status", batch, "--json"))["pause"]["reason"] == "check first"
        up.call("resume", batch)
        assert "check first" not in up.call("status", batch)
    finally:
        up.call("resume", "--device", "NULL")
    up.call("watch", batch)


def test_status_shows_durations_and_the_time_zone(up: Up) -> None:
    batch = up.submit("--job", "sleep_s=0.2", "--wait")
    shown = up.call("status", batch, "--jobs")
    at = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \S+"
    assert re.search(rf"^submitted +{at} \(\S+ m?s ago\)$", shown, re.MULTILINE)
    assert re.search(rf"^started +{at}, queued for \S+ m?s$", shown, re.MULTILINE)
    assert re.search(rf"^ended +{at}, ran for \S+ m?s$", shown, re.MULTILINE)
    assert "job  status  runs  variables    queued  ran" in shown


def test_an_export_reports_what_it_wrote(up: Up, tmp_path: Path) -> None:
    batch = up.submit("--runs", "1", "--job", "runs=2", "--job", "runs=3", "--wait")
    ran = up.tweezer("export", batch, "--out", str(tmp_path / "out.jsonl"))
    assert (ran.stdout, ran.stderr) == ("", f"Exported 1 batch with 2 jobs to {tmp_path / 'out.jsonl'}.\n")
    ran = up.tweezer("export", batch)
    assert (len(ran.stdout.splitlines()), ran.stderr) == (3, "Exported 1 batch with 2 jobs.\n")


def test_watch_follows_an_open_batch_until_it_is_closed(up: Up) -> None:
    batch = up.submit("--open", "--runs", "1")
    watching = subprocess.Popen(
        [sys.executable, "-m", "tweezer.cli", "--redis", up.redis_url, "watch", "--follow", batch],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert watching.stdout is not None
    line = watching.stdout.readline()
    while "1/1 jobs" not in line:
        line = watching.stdout.readline()
    assert watching.poll() is None
    up.call("add", batch, "--runs", "2")
    up.call("close", batch)
    assert watching.communicate(timeout=PATIENCE_S)[0].splitlines()[-1].endswith("2/2 jobs · DONE")
    assert watching.returncode == 0


def test_jobs_from_a_file_are_added_to_an_open_batch_that_is_then_closed(up: Up, tmp_path: Path) -> None:
    batch = up.submit("--open")
    lines = tmp_path / "jobs.jsonl"
    lines.write_text('{"runs": 1}\n{"runs": 2}\n')
    assert up.call("add", batch, "--jobs", str(lines)) == "0"
    assert up.call("add", batch, "--runs", "3") == "2"
    assert "open for more jobs" in up.call("status", batch)
    watched = up.tweezer("watch", batch)
    assert (watched.exit_code, "tweezer close" in watched.stderr) == (0, True)
    up.call("close", batch)
    up.call("watch", batch)
    assert json.loads(up.call("results", batch, "--sum", "--json"))["counter"] == {"0": 6}


def test_a_running_batch_and_one_of_its_jobs_are_cancelled(up: Up) -> None:
    batch = up.submit("--job", "sleep_s=60", "--job", "sleep_s=60", "--job", "runs=1")
    wait_until(lambda: up.call("status", batch).count("on_device") == 2, "two jobs run", PATIENCE_S)
    assert up.call("cancel", batch, "--job", "2", "--by", "the watchdog") == "job 2 canceled"
    assert up.call("cancel", batch) == f"{short(batch)} canceled"
    watched = up.tweezer("watch", batch)
    assert watched.exit_code == 1
    assert "3 canceled · CANCELED" in watched.stdout
    assert watched.stderr == f"Error: batch {short(batch)} ended in CANCELED\n"
    shown = up.call("status", batch)
    assert re.search(r" 2 +the watchdog\n", shown)
    assert re.search(rf"all +.*@{re.escape(socket.gethostname())}\n", shown)
    assert "outcome: 1 prevented, 2 stopped" in shown
    status = json.loads(up.call("status", batch, "--json"))
    assert [cancel["jobs"] for cancel in status["cancels"]] == ["2", "*"]
    assert [job["cancel_outcome"] for job in status["jobs"]] == ["stopped", "stopped", "prevented"]
    assert status["jobs"][2]["cancel_attempts"][0]["by"] == "the watchdog"


def test_several_batches_are_cancelled_and_the_errors_reported(up: Up) -> None:
    live, over = up.submit("--job", "sleep_s=60"), up.submit("--runs", "1", "--wait")
    ran = up.tweezer("cancel", live, over)
    assert ran.exit_code == 1
    assert ran.stdout == f"{short(live)} canceled\n"
    assert ran.stderr.splitlines() == [
        f"{short(over)}: batch {over} has ended",
        "Error: 1 of 2 batches could not be canceled",
    ]


def test_a_batch_and_a_device_are_paused_and_resumed(up: Up) -> None:
    assert up.call("pause", "--device", "NULL", "--reason", "new lens") == "NULL is paused: new lens"
    try:
        assert "paused: new lens" in up.call("devices")
        batch = up.submit("--runs", "1")
        up.call("pause", batch)
        assert "PAUSED" in up.call("status", batch)
    finally:
        up.call("resume", "--device", "NULL")
    assert "available" in up.call("devices")
    up.call("resume", batch)
    assert up.call("watch", batch).endswith("DONE")


def test_a_fault_in_a_job_is_reported_in_one_sentence(up: Up) -> None:
    ran = up.tweezer("submit", "-", "--device", "NULLL", "--runs", "1", input="{}")
    assert (ran.exit_code, ran.stdout) == (1, "")
    assert ran.stderr == "Error: device: there is no device 'NULLL' (did you mean NULL?); the devices are NULL\n"
    said = up.tweezer("status", "nonsense").stderr
    assert said == "Error: there is no batch nonsense; `tweezer batches` lists them\n"


def test_batches_are_listed_newest_first_with_short_ids(up: Up) -> None:
    name = f"a sweep over detunings with a name that is longer than the line, of {new_batch_id()}"
    first = up.submit("--runs", "1", "--name", name, "--tag", "listed", "--wait").splitlines()[-1]
    second = up.submit("--job", "sleep_s=60", "--tag", "listed", "--not-before", "2099-01-31T08:00")
    lines = up.call("batches", "--tag", "listed").splitlines()
    assert [line.split()[0] for line in lines] == ["batch", short(second), short(first)]
    assert lines[0].split() == ["batch", "status", "jobs", "device", "submitted", "starts", "name"]
    assert "2099-01-31" in lines[1]
    assert lines[2].endswith("…")
    assert max(map(len, lines)) <= 100
    for options, expected in (
        (("--status", "done"), [first]),
        (("--status", "pending", "--status", "running"), [second]),
        (("--name", name), [first]),
        (("--limit", "1"), [second]),
        (("--device", "OTHER"), []),
        (("--until", "1h"), []),
        (("--since", "1h"), [second, first]),
    ):
        found = json.loads(up.call("batches", "--tag", "listed", "--json", *options))
        assert [batch["batch"] for batch in found] == expected, options
    (listed, _) = json.loads(up.call("batches", "--tag", "listed", "--json"))
    assert listed["waits_for"] == "its start time, 2099-01-31 08:00 UTC"
    assert listed["not_before"] == "2099-01-31T08:00:00Z"
    assert up.call("batches", "--device", "OTHER") == "no batch matches"
    assert "There are more" in up.tweezer("batches", "--tag", "listed", "--limit", "1").stderr
    assert "waits for" in up.call("status", short(second))
    up.call("cancel", short(second))


def test_a_batch_and_a_job_are_named_in_every_way_that_people_use(up: Up) -> None:
    batch = up.submit("--runs", "1", "--job", "runs=3", "--job", "runs=4", "--name", "one of a kind", "--wait").strip()
    for text in (batch, short(batch), short(batch).upper(), "@last", "one of a kind"):
        assert json.loads(up.call("status", text, "--json"))["batch"] == batch
        assert up.call("watch", text).endswith("DONE")
        assert json.loads(up.call("results", f"{text}/1", "--json"))["jobs"][0]["counter"] == {"0": 4}
    assert json.loads(up.call("export", "@last").splitlines()[0])["id"] == batch
    assert [line.split()[0] for line in up.call("jobs", "@last").splitlines()] == ["job", *numbered(batch, 0, 1)]
    assert [job["index"] for job in json.loads(up.call("jobs", "@last", "--limit", "1", "--json"))] == [0]
    assert up.call("jobs", "@last", "--status", "error") == "no job matches"
    events = up.call("events", f"{short(batch)}/1").splitlines()
    assert events
    assert [line.split()[3] for line in events] == ["job.running", "job.done"]
    for command in ("status", "results", "events"):
        assert (
            up.tweezer(command, "@last/2").stderr == f"Error: there is no job 2 in batch {short(batch)}, which has 2\n"
        )
    up.submit("--runs", "1", "--name", "one of a kind", "--wait")
    several = up.tweezer("status", "one of a kind")
    assert several.stderr.startswith("Error: 'one of a kind' is not unique; use an id, such as one of these: ")
    assert batch in several.stderr


def test_single_jobs_are_cancelled_by_their_names(up: Up) -> None:
    batch = up.submit("--job", "sleep_s=60", "--job", "sleep_s=60", "--job", "runs=1", "--job", "runs=1")
    assert up.call("cancel", *numbered(batch, 2, 3)).splitlines() == ["job 2 canceled", "job 3 canceled"]
    assert "exactly one batch" in up.tweezer("cancel", f"{short(batch)}/1", str(new_batch_id())).stderr
    assert up.call("pause", short(batch)) == f"{short(batch)} paused"
    assert up.call("cancel", short(batch)) == f"{short(batch)} canceled"
    nobody = up.tweezer("--project", "other", "cancel", up.submit("--runs", "1"))
    assert nobody.exit_code == 1
    assert "there is no batch" in nobody.stderr


def test_workers_and_devices_are_listed(up: Up) -> None:
    (worker,) = json.loads(up.call("workers", "--json"))
    assert (worker["device"], worker["lanes"]) == ("NULL", 2)
    assert worker["id"] in up.call("workers")
    (device,) = json.loads(up.call("devices", "--json"))
    assert (device["name"], device["lanes"]) == ("NULL", 2)


def test_the_doctor_finds_no_fault_with_what_up_starts(up: Up) -> None:
    def only_memory_is_found() -> bool:
        findings = json.loads(up.tweezer("doctor", "--json").stdout)
        return [(one["name"], one["level"]) for one in findings if one["level"] != "OK"] == [("memory", "WARN")]

    wait_until(only_memory_is_found, "the courier is up", PATIENCE_S)
    assert "OK    persistence" in up.call("doctor")


def test_the_api_answers_at_the_url_that_up_prints(up: Up) -> None:
    batch = up.submit("--runs", "1", "--wait")
    connection = http.client.HTTPConnection(urlsplit(up.find(r"API +(http://\S+)")).netloc, timeout=10)
    try:
        key = running_environment(up.data)["TWEEZER_API_KEY"]
        connection.request("GET", f"/api/v2/batches/{batch}", headers={"Authorization": f"Bearer {key}"})
        answer = connection.getresponse()
        assert answer.status == 200
        assert json.loads(answer.read())["data"]["status"] == "DONE"
    finally:
        connection.close()


def test_ctrl_c_ends_watch(up: Up) -> None:
    batch = up.submit("--job", "sleep_s=60")
    watching = subprocess.Popen(
        [sys.executable, "-m", "tweezer.cli", "--redis", up.redis_url, "watch", batch],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert watching.stdout is not None
    assert "0/1 jobs" in watching.stdout.readline()
    watching.send_signal(signal.SIGINT)
    _, output = watching.communicate(timeout=PATIENCE_S)
    assert watching.returncode == 130
    shown = short(batch)
    assert output == (
        f"The batch continues. To follow it again: tweezer watch {shown}; to stop it: tweezer cancel {shown}\n"
    )
    up.call("cancel", batch)


def test_a_second_up_in_the_same_folder_is_refused(up: Up) -> None:
    ran = tweezer("up", "--device", "NULL", "--data", str(up.data))
    assert ran.returncode == 1
    assert ran.stderr == (
        f"Error: `tweezer up` is already running in {up.data}; stop it, or choose another data folder with --data\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    ["worker --device NULL", "scheduler", "recorder", "courier --processes 1", "courier", "api --port 0"],
)
def test_a_process_that_is_asked_to_stop_ends_with_exit_code_0(up: Up, command: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "tweezer.cli", *command.split()],
        cwd=ROOT,
        env=environment() | running_environment(up.data),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    if command != "courier":  # its processes have a log, but only later
        assert "started" in process.stderr.readline().lower()
    else:
        wait_until(lambda: len(psutil.Process(process.pid).children()) == 2, "its processes", PATIENCE_S)
    process.terminate()
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0


# --- the processes of up: each test starts a separate one


@pytest.mark.slow
@pytest.mark.usefixtures("_any_server")
def test_ctrl_c_ends_everything_in_order_and_keeps_queued_batches(tmp_path: Path) -> None:
    with Up(tmp_path) as up:
        up.wait_ready()
        up.call("pause", "--device", "NULL", "--reason", "test")
        batch = up.submit("--runs", "1")
        family = psutil.Process(up.process.pid).children(recursive=True)
        assert len(family) >= 4
        up.process.send_signal(signal.SIGINT)
        assert up.process.wait(PATIENCE_S) == 0
        assert all(map(gone, family))
        assert up.stopped_at("api") < up.stopped_at("worker") < up.stopped_at("scheduler")
        assert "[info" not in up.text
        assert "[warning" not in up.text
        assert up.text.splitlines()[-2:] == [
            "tweezer: stopping; press Ctrl-C again to stop without waiting for running jobs",
            f"tweezer: stopped; queued work is kept in {up.data}",
        ]
    with Up(tmp_path) as up:
        up.wait_ready()
        up.call("resume", "--device", "NULL")
        assert up.call("watch", batch).endswith("DONE")


@pytest.mark.chaos
@pytest.mark.usefixtures("_any_server")
def test_processes_that_up_started_end_with_it(tmp_path: Path) -> None:
    with Up(tmp_path) as up:
        up.wait_ready()
        family = psutil.Process(up.process.pid).children(recursive=True)
        up.process.kill()
        up.process.wait()
        wait_until(lambda: all(map(gone, family)), "all are gone", PATIENCE_S)


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.usefixtures("_any_server")
def test_a_child_or_a_redis_that_dies_is_restarted(tmp_path: Path) -> None:
    with Up(tmp_path) as up:
        up.wait_ready()
        batch = up.submit("--job", "sleep_s=1", "--job", "runs=1")
        children = up.children()
        worker = children.pop("worker")
        worker.kill()
        (server,) = (
            child for name, child in children.items() if name not in ("api", "scheduler", "courier", "recorder")
        )
        server.kill()
        wait_until(
            lambda: "restarting it in" in up.text and "Redis died; restarting it" in up.text,
            "its output",
            PATIENCE_S,
        )
        wait_until(lambda: up.tweezer("devices").exit_code == 0, "Redis answers again", PATIENCE_S)
        assert up.call("watch", batch).endswith("2/2 jobs · DONE")
        assert up.children()["worker"].pid != worker.pid


def test_an_up_that_cannot_start_reports_why_and_leaves_no_processes(tmp_path: Path, real_redis_url: str) -> None:
    taken = str(urlsplit(real_redis_url).port)
    ran = tweezer("up", "--device", "NULL", "--data", str(tmp_path), "--port", taken)
    assert ran.returncode == 1
    assert (
        ran.stderr
        == f"Error: port {taken} is in use; choose another port for the API with --port, or 0 for a free one\n"
    )
    ran = tweezer("up", "--device", "NULL", "--data", str(tmp_path), "--port", "0", "--redis-port", taken)
    assert ran.returncode == 1
    assert (
        ran.stderr
        == f"Error: port {taken} is in use; choose another port for Redis with --redis-port, or 0 for a free one\n"
    )
    ran = tweezer("up", "--device", "NUL", "--data", str(tmp_path), "--port", "0", "--redis-port", "0")
    assert ran.returncode == 1
    assert "no adapter serves NUL" in ran.stderr
    assert [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in (p.info["cmdline"] or [])] == []


def test_a_worker_in_burst_mode_ends_when_nothing_is_left(real_redis_url: str) -> None:
    ran = tweezer("--redis", real_redis_url, "worker", "--device", "NULL", "--burst")
    assert ran.returncode == 0, ran.stderr
    assert "worker.stopped" in ran.stderr
