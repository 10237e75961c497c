"""Pictures and progress in the terminal."""

from __future__ import annotations

import asyncio
import io
import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import click
import pytest
from click.testing import CliRunner
from sqlalchemy import insert
from tests.support.records import make_batch

from tweezer.cli import main, show
from tweezer.cli.local import antiferromagnet
from tweezer.cli.options import clock
from tweezer.cli.status import (
    Failures,
    Meter,
    View,
    explaining_interrupts,
    must_be_done,
    progress_line,
    read_progress,
    reason_lines,
)
from tweezer.client import AsyncBatch
from tweezer.ledger.config import OpenDatabase
from tweezer.ledger.database import Database
from tweezer.ledger.migrate import upgrade
from tweezer.ledger.schema import projects
from tweezer.model.errors import TweezerError
from tweezer.model.events import JobNews, Word
from tweezer.model.ids import new_batch_id, short_id
from tweezer.model.lifecycle import BatchStatus, JobStatus, Stage
from tweezer.model.messages import BatchDoc, Fault, JobSpec, Steps
from tweezer.store.records import BatchRecord, JobRecord

NOW = datetime(2026, 11, 22, tzinfo=UTC)


def batch(status: BatchStatus = BatchStatus.RUNNING, fault: Fault | None = None, **counts: int) -> BatchRecord:
    by_status = {one: counts.get(one.value.lower(), 0) for one in JobStatus}
    about = {"created": NOW, "updated": NOW, "doc": BatchDoc("EMU_FREE")}
    return make_batch(by_status, status=status, fault=fault, id=new_batch_id(), **about)


# --- pictures


@pytest.mark.parametrize(("fraction", "drawn"), [(0, ""), (0.5, "██"), (1, "████"), (7, "████"), (0.28, "█▏")])
def test_a_bar_is_drawn_in_eighths(fraction: float, drawn: str) -> None:
    assert show.bar(fraction, 4) == drawn


def test_a_histogram_ranks_bitstrings_and_sums_up_the_rest() -> None:
    lines = [show.unstyle(line) for line in show.histogram({"00": 1, "01": 6, "10": 3}, top=2, columns=40)]
    assert lines[0].split() == ["01", "█" * 22, "6", "60.0%"]
    assert lines[1].split() == ["10", "█" * 11, "3", "30.0%"]
    assert lines[2].split() == ["1", "other:", "1", "(10.0%)"]
    assert all(len(line) <= 40 for line in lines)


def test_an_empty_histogram_has_a_message() -> None:
    assert show.histogram({}, top=5, columns=80) == ["  no shots"]


def test_columns_rise_with_their_values() -> None:
    lines = [show.unstyle(line) for line in show.columns_plot([0, 0.5, 1], left="0", right="1", label="x", height=4)]
    assert lines == [
        "  1.0 ┤    ██",
        "  0.5 ┤    ██",
        "      │  ████",
        "      │  ████",
        "  0.0 └──────",
        "       0 x  1",
    ]


def test_a_table_sets_numbers_to_the_right() -> None:
    lines = [show.unstyle(line) for line in show.table(("name", "lanes"), [("EMU_FREE", 2), ("X", 16)])]
    assert lines == ["name      lanes", "EMU_FREE      2", "X            16"]


HEADER = ("job", "status", "note")
ROWS = [
    (0, show.status(JobStatus.DONE), ""),
    (12, show.status(JobStatus.ERROR), "the pulse is too long for the channel of the device"),
]


def plain_table(columns: int | None) -> list[str]:
    return [show.unstyle(line) for line in show.table(HEADER, ROWS, columns=columns)]


def test_a_long_cell_of_a_table_continues_below_within_its_column() -> None:
    assert plain_table(50) == [
        "job  status  note",
        "  0  DONE",
        " 12  ERROR   the pulse is too long for the channel",
        "             of the device",
    ]


def test_rows_of_a_table_that_cannot_fit_become_blocks() -> None:
    assert plain_table(20) == [
        "job     0",
        "status  DONE",
        "",
        "job     12",
        "status  ERROR",
        "note    the pulse is",
        "        too long for",
        "        the channel",
        "        of the",
        "        device",
    ]


def test_the_column_is_narrowed_in_which_the_fewest_cells_are_broken() -> None:
    rows = [("x" * 10 + " y" * 10, "") for _ in range(5)] + [("x", "why " * 20)]
    lines = show.table(("variables", "note"), rows, columns=60)
    assert [len(line) for line in lines[1:6]] == [30] * 5
    assert max(map(len, lines[6:])) <= 60


def test_a_table_in_a_pipe_has_one_line_for_each_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert len(plain_table(None)) == 3
    monkeypatch.setenv("COLUMNS", "50")
    assert len(plain_table(None)) == 4


def test_ids_and_short_cells_are_never_broken() -> None:
    row = [(str(new_batch_id()), "2026-11-22 10:00 UTC", "a b " * 30)]
    lines = show.table(("id", "when", "note"), row, columns=90)
    assert lines[1].startswith(f"{row[0][0]}  {row[0][1]}  a b")
    assert all(len(show.unstyle(line)) <= 90 for line in lines)


def test_wide_characters_keep_columns_aligned() -> None:
    lines = show.table(("name", "n"), [("原子", 1), ("ab", 2)], columns=80)
    assert lines[1:] == ["原子  1", "ab    2"]


def test_a_column_of_numbers_may_have_empty_cells() -> None:
    lines = show.table(("a", "runs"), [("x", 500), ("y", "")], columns=80)
    assert lines[1:] == ["x   500", "y"]


def test_statuses_have_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    printed: list[str] = []
    monkeypatch.setattr(click, "echo", lambda text, **_: printed.append(text))
    show.echo(show.table(("status",), [(show.status(JobStatus.ERROR),)])[1])
    assert printed == ["\x1b[31mERROR\x1b[0m"]


@pytest.mark.parametrize("status", [*JobStatus, *BatchStatus])
def test_each_status_is_shown_by_its_word(status: JobStatus | BatchStatus) -> None:
    assert show.unstyle(show.status(status)) == status.value


def test_fields_leave_out_empty_values_and_indent_long_ones() -> None:
    lines = [show.unstyle(line) for line in show.fields([("a", "x"), ("none", ""), ("bcd", "y " * 20)], columns=30)]
    assert show.fields([("a", "two\nlines")])[0].endswith("two; lines")
    assert lines == ["a    x", f"bcd  {('y ' * 12).strip()} y", f"     {('y ' * 7).strip()}"]


def test_a_terminal_without_unicode_gets_plain_characters() -> None:
    assert show.plain("█▌░ 3 µs … ●", "ascii") == "#-. 3 us ... @"
    assert show.plain("█▌░", "utf-8") == "█▌░"
    assert show.plain("█", "no such encoding") == "#"


@pytest.mark.parametrize(
    ("numbers", "text"),
    [([], ""), ([4], "4"), ([0, 1, 2, 7], "0-2, 7"), ([0, 2, 4, 6], "0, 2, 4, …"), (range(100), "0-99")],
)
def test_numbers_are_shown_as_ranges(numbers: Sequence[int], text: str) -> None:
    assert show.ranges(numbers, most=3) == text


def test_a_time_has_its_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0")
    time.tzset()
    try:
        assert show.second(NOW) == "2026-11-22 01:00:00 CET"
        assert clock(NOW.replace(year=2020, month=7)) == "2020-07-22 02:00 CEST"
    finally:
        monkeypatch.undo()
        time.tzset()


def test_many_numbers_are_thinned_evenly() -> None:
    assert show.thinned([1, 2, 3], 5) == [1, 2, 3]
    assert show.thinned(list(range(101)), 5) == [0, 25, 50, 75, 100]


# --- progress


def shown_line(view: View, columns: int) -> str:
    return show.unstyle(progress_line(view, columns))


def test_a_line_of_progress_counts_ended_and_running_jobs() -> None:
    view = View(batch(pending=6, running=2, done=1, error=1), {3: 0.5, 4: 0.25}, rate=2.0)
    assert shown_line(view, 120) == (
        "█████▌░░░░░░░░░░░░░░  2/10 jobs · 1 failed · 2 running (50%, 25%) · 6 pending · 2.0/s · 4.0 s left"
    )


def test_a_line_of_progress_drops_what_does_not_fit() -> None:
    view = View(batch(pending=6, running=2), {}, rate=2.0)
    assert shown_line(view, 50) == "░░░░░░░░░░░░░░░░░░░░  0/8 jobs · 2 running"


def test_a_line_of_progress_shows_why_nothing_runs() -> None:
    assert "no worker serves EMU_FREE" in shown_line(View(batch(pending=3), {}, hint="no worker serves EMU_FREE"), 80)
    assert "paused" in shown_line(View(batch(BatchStatus.PAUSED, pending=3), {}), 80)
    assert shown_line(View(batch(BatchStatus.CANCELED, canceled=3), {}), 80).endswith("3 canceled · CANCELED")


@pytest.mark.parametrize(
    ("counts", "green", "red"),
    [
        ({"done": 10}, 20, 0),
        ({"done": 5, "error": 5}, 10, 10),
        ({"done": 999, "error": 1}, 19, 1),
        ({"error": 1, "pending": 99}, 0, 1),
        ({"pending": 5}, 0, 0),
        ({}, 0, 0),
    ],
)
def test_the_share_of_failed_jobs_in_the_bar_is_red(
    monkeypatch: pytest.MonkeyPatch, counts: dict[str, int], green: int, red: int
) -> None:
    printed: list[str] = []
    monkeypatch.setattr(click, "echo", lambda text, **_: printed.append(text))
    view = View(batch(BatchStatus.RUNNING, None, **counts), {})
    show.echo(progress_line(view, 80))
    drawn = printed[0].split("  ")[0]
    parts = {colour: re.findall(rf"\x1b\[{code}m([█▏▎▍▌▋▊▉]*)\x1b", drawn) for colour, code in (("g", 32), ("r", 31))}
    assert (len("".join(parts["g"])), len("".join(parts["r"]))) == (green, red)
    assert len(shown_line(view, 80).split("  ")[0]) == 20


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True

    def screen(self) -> list[str]:
        """Return the lines that a terminal without control sequences shows."""
        lines = []
        for text in self.getvalue().split("\n"):
            line = ""
            for part in text.split("\r"):
                line = part + line[len(part) :]
            lines.append(line.rstrip())
        return lines


def test_the_line_of_progress_is_overwritten_without_control_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("NO_COLOR", "1")
    with click.Context(click.Command("watch"), color=False).scope():
        meter = Meter(err=False)
        meter.show(View(batch(pending=6, running=2), {}, hint="a long hint"))
        meter.note("job 3 failed: no atoms")
        meter.show(View(batch(pending=8), {}))
        written = terminal.getvalue()
        meter.show(View(batch(pending=8), {}))
        assert terminal.getvalue() == written  # nothing new to draw
        meter.end()
    assert "\x1b" not in terminal.getvalue()
    assert terminal.screen() == ["job 3 failed: no atoms", f"{'░' * 20}  0/8 jobs · 8 pending", ""]


def test_reasons_of_failures_are_grouped_and_the_most_frequent_comes_first() -> None:
    lines = [show.unstyle(line) for line in reason_lines({"no atoms": [4], "too long": [0, 1, 2, 7]})]
    assert lines == ["count  jobs    reason", "    4  0-2, 7  too long", "    1  4       no atoms"]
    assert reason_lines({f"reason {number}": [number] for number in range(13)})[-1] == "and 3 other reasons"


def test_only_new_reasons_of_failures_are_reported_at_once() -> None:
    record = batch(error=3, done=1)
    jobs = [
        JobRecord(record.id, index, "default", status, JobSpec(), NOW, faults=faults)
        for index, (status, faults) in enumerate(
            [
                (JobStatus.ERROR, (Fault("user", "no atoms"),)),
                (JobStatus.DONE, ()),
                (JobStatus.ERROR, (Fault("user", "no atoms"),)),
                (JobStatus.ERROR, ()),
            ]
        )
    ]

    class Batch:
        async def jobs_at(self, record: BatchRecord, indices: list[int]) -> list[JobRecord]:
            return [jobs[index] for index in indices]

    failures = Failures(cast(AsyncBatch, Batch()))
    assert asyncio.run(failures.read(record, [0, 1])) == [show.style("job 0 failed: no atoms", fg="red")]
    assert not failures.is_complete(record)
    assert asyncio.run(failures.read(record, [0, 2])) == []
    assert [show.unstyle(line) for line in asyncio.run(failures.read(record, range(4)))] == [
        "job 3 failed: no reason was recorded"
    ]
    assert failures.is_complete(record)
    assert [show.unstyle(line) for line in failures.repeated()][1:] == ["    2  0, 2  no atoms"]


def test_ctrl_c_reports_that_the_batch_continues(capsys: pytest.CaptureFixture[str]) -> None:
    identity = new_batch_id()
    shown = short_id(identity)
    with pytest.raises(click.exceptions.Exit) as ended, explaining_interrupts([identity]):
        raise KeyboardInterrupt
    assert ended.value.exit_code == 130
    assert capsys.readouterr().err == (
        f"The batch continues. To follow it again: tweezer watch {shown}; to stop it: tweezer cancel {shown}\n"
    )
    with pytest.raises(KeyboardInterrupt), explaining_interrupts([]):
        raise KeyboardInterrupt
    assert capsys.readouterr().err == ""


def test_the_line_of_the_only_running_job_has_its_steps() -> None:
    view = View(batch(running=1, done=1), {1: 0.4}, steps=Steps(2, 5, "trajectory 3 of 5"))
    assert "1 running (40%) · 2/5: trajectory 3 of 5" in shown_line(view, 100)
    assert "2/5" not in shown_line(view, 40)


def test_an_empty_open_batch_has_a_line_too() -> None:
    assert "0/0 jobs" in shown_line(View(batch(BatchStatus.PENDING), {}), 80)


def test_progress_is_shown_until_the_job_ends() -> None:
    progress: dict[int, float] = {}
    started = Word("PR", range(2))
    steps: dict[int, Steps] = {}
    reported = JobNews(0, Stage.ON_DEVICE, 40, Steps(2, 5, "warm"))
    read_progress([started, reported, JobNews(1, Stage.PREPARING, None)], progress, steps)
    assert progress == {0: 0.4}
    assert steps == {0: Steps(2, 5, "warm")}
    news: list[Word | JobNews] = [JobNews(1, Stage.ON_DEVICE, 7.5), Word("RD", range(1)), Word("PR", range(2, 3))]
    assert read_progress(news, progress, steps) == []
    assert progress == {1: 0.075}
    assert steps == {}
    ended = [Word("RE", range(1, 2)), Word("RE", range(5, 7)), Word("RD", range(7, 8))]
    assert read_progress(ended, progress, steps) == [1, 5, 6]
    assert progress == {}


# --- how a batch ended


def test_only_a_batch_whose_jobs_are_all_done_succeeds() -> None:
    must_be_done(batch(BatchStatus.DONE, done=3))
    for bad, said in (
        (batch(BatchStatus.DONE, done=2, error=1), "DONE: 1 ERROR of 3;"),
        (batch(BatchStatus.DONE, error=1, canceled=2), "DONE: 1 ERROR and 2 CANCELED of 3;"),
        (batch(BatchStatus.CANCELED, canceled=1), "ended in CANCELED"),
        (batch(BatchStatus.ERROR, Fault("user", "no channel", "sequence"), error=1), "in ERROR: sequence: no channel"),
    ):
        with pytest.raises(TweezerError, match=said):
            must_be_done(bad)


# --- what the demo measures


def test_the_order_is_the_imbalance_between_the_two_sublattices() -> None:
    assert antiferromagnet.order({"01010101": 3, "10101010": 5}) == 1.0
    assert antiferromagnet.order({"00000000": 9}) == 0.0
    assert antiferromagnet.order({"11111111": 9}) == 0.0
    assert antiferromagnet.order({"10000000": 1, "00000000": 1}) == 0.125
    assert antiferromagnet.order({}) == 0.0


def test_the_final_detunings_cover_the_whole_sweep() -> None:
    detunings = antiferromagnet.final_detunings(24)
    assert len(set(detunings)) == 24
    assert detunings == sorted(detunings)
    assert (detunings[0], detunings[-1]) == (antiferromagnet.DELTA_LOWEST, antiferromagnet.DELTA_HIGHEST)


def test_the_ring_is_drawn_with_an_atom_for_each_bit() -> None:
    drawn = "".join(antiferromagnet.drawing("10101010"))
    assert (drawn.count("●"), drawn.count("○")) == (4, 4)


HOSTILE = "a\x1b[2Jb\x1b]0;x\x07c\u202ed\x9be\ud800"
SHOWN = "a\\x1b[2Jb\\x1b]0;x\\x07c\\u202ed\\x9be\\ud800"


def test_terminal_control_sequences_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    show.echo(HOSTILE)
    show.echo("\n".join(show.table(("name",), [(HOSTILE,), ("two\nlines",)])))
    show.echo(HOSTILE, err=True)
    told = capsys.readouterr()
    assert told.out.splitlines()[0] == SHOWN
    assert told.out.splitlines()[-2:] == [SHOWN, "two\\nlines"]
    assert told.err == f"{SHOWN}\n"


def test_our_styles_are_kept_and_foreign_ones_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    printed: list[str] = []
    monkeypatch.setattr(click, "echo", lambda text, **_: printed.append(text))
    show.echo(show.style(HOSTILE, fg="green"))
    assert printed == [f"\x1b[32m{SHOWN}\x1b[0m"]
    assert show.unstyle(show.style("plain {} text", bold=True)) == "plain {} text"


def test_errors_are_escaped_too() -> None:
    done = CliRunner().invoke(main, ["events", "--type", HOSTILE])
    assert done.exit_code == 2
    assert "\x1b" not in done.output
    assert "\u202e" not in done.output


def test_unchecked_names_from_old_records_are_escaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWEEZER_DATABASE_URL", f"sqlite:///{tmp_path / 'ledger.db'}")
    database = Database.open(OpenDatabase(f"sqlite:///{tmp_path / 'ledger.db'}"), create=True)
    upgrade(database)
    with database.write() as connection:
        connection.execute(insert(projects).values(id="p", name="x\x1b[2J\u202e", created_ms=1))
    database.close()
    done = CliRunner().invoke(main, ["projects", "list"])
    assert done.exit_code == 0
    assert "x\\x1b[2J\\u202e" in done.output
