"""Pictures and progress in the terminal."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from sqlalchemy import insert

from tweezer.cli import main, show
from tweezer.cli.local import antiferromagnet
from tweezer.cli.status import View, must_be_done, progress_line, read_progress
from tweezer.ledger.config import OpenDatabase
from tweezer.ledger.database import Database
from tweezer.ledger.migrate import upgrade
from tweezer.ledger.schema import projects
from tweezer.model.errors import TweezerError
from tweezer.model.events import JobNews, Word
from tweezer.model.ids import new_batch_id
from tweezer.model.lifecycle import BatchStatus, JobStatus, Stage
from tweezer.model.messages import BatchDoc, Fault, Priority
from tweezer.store.records import BatchRecord

NOW = datetime(2026, 11, 22, tzinfo=UTC)


def batch(status: BatchStatus = BatchStatus.RUNNING, fault: Fault | None = None, **counts: int) -> BatchRecord:
    by_status = {one: counts.get(one.value.lower(), 0) for one in JobStatus}
    return BatchRecord(
        id=new_batch_id(),
        project="default",
        device="EMU_FREE",
        priority=Priority.MEDIUM,
        status=status,
        open=False,
        created=NOW,
        updated=NOW,
        started=None,
        ended=None,
        jobs=sum(by_status.values()),
        counts=by_status,
        sequence_number=1,
        doc=BatchDoc("EMU_FREE"),
        fault=fault,
    )


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


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.43, "0.4 s"), (12.4, "12 s"), (185, "3 min 5 s"), (7800, "2 h 10 min"), (86_400, "1 d"), (60, "1 min")],
)
def test_a_duration_has_two_units_at_most(seconds: float, text: str) -> None:
    assert show.duration(seconds) == text


def test_a_terminal_without_unicode_gets_plain_characters() -> None:
    assert show.plain("█▌░ 3 µs … ●", "ascii") == "#-. 3 us ... @"
    assert show.plain("█▌░", "utf-8") == "█▌░"
    assert show.plain("█", "no such encoding") == "#"


def test_many_numbers_are_thinned_evenly() -> None:
    assert show.thinned([1, 2, 3], 5) == [1, 2, 3]
    assert show.thinned(list(range(101)), 5) == [0, 25, 50, 75, 100]


# --- progress


def test_a_line_of_progress_counts_ended_and_running_jobs() -> None:
    view = View(batch(pending=6, running=2, done=1, error=1), {3: 0.5, 4: 0.25}, rate=2.0)
    assert progress_line(view, 120) == (
        "█████▌░░░░░░░░░░░░░░  2/10 jobs · 1 failed · 2 running (50%, 25%) · 6 pending · 2.0/s · 4.0 s left"
    )


def test_a_line_of_progress_drops_what_does_not_fit() -> None:
    view = View(batch(pending=6, running=2), {}, rate=2.0)
    assert progress_line(view, 50) == "░░░░░░░░░░░░░░░░░░░░  0/8 jobs · 2 running"


def test_a_line_of_progress_shows_why_nothing_runs() -> None:
    assert "no worker serves EMU_FREE" in progress_line(
        View(batch(pending=3), {}, hint="no worker serves EMU_FREE"), 80
    )
    assert "paused" in progress_line(View(batch(BatchStatus.PAUSED, pending=3), {}), 80)
    assert progress_line(View(batch(BatchStatus.CANCELED, canceled=3), {}), 80).endswith("3 canceled · CANCELED")


def test_an_empty_open_batch_has_a_line_too() -> None:
    assert "0/0 jobs" in progress_line(View(batch(BatchStatus.PENDING), {}), 80)


def test_progress_is_shown_until_the_job_ends() -> None:
    progress: dict[int, float] = {}
    started = Word("PR", range(2))
    read_progress([started, JobNews(0, Stage.ON_DEVICE, 40), JobNews(1, Stage.PREPARING, None)], progress)
    assert progress == {0: 0.4}
    read_progress([JobNews(1, Stage.ON_DEVICE, 7.5), Word("RD", range(1)), Word("PR", range(2, 3))], progress)
    assert progress == {1: 0.075}


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
