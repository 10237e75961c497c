"""The bar of a wait: in a terminal, in a log and in a notebook; and what is reported at an interrupt."""

from __future__ import annotations

import asyncio
import io
import re
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from tests.support.records import BATCH_ID, make_batch

from tweezer.display.progress import ProgressBar, format_line
from tweezer.model.ids import short_id
from tweezer.model.lifecycle import BatchStatus, JobStatus
from tweezer.store.records import BatchRecord

HALF = make_batch(
    {JobStatus.DONE: 4, JobStatus.ERROR: 1, JobStatus.RUNNING: 2, JobStatus.PENDING: 3}, status=BatchStatus.RUNNING
)
ALL = make_batch({JobStatus.DONE: 9, JobStatus.ERROR: 1})


class Terminal(io.TextIOWrapper):
    """A standard error that may be a terminal."""

    def __init__(self, *, is_live: bool = True, encoding: str = "utf-8") -> None:
        self._bytes = io.BytesIO()
        super().__init__(self._bytes, encoding=encoding)
        self._is_live = is_live

    def isatty(self) -> bool:
        return self._is_live

    @property
    def written(self) -> str:
        return self._bytes.getvalue().decode(self.encoding)


def show(monkeypatch: pytest.MonkeyPatch, terminal: Terminal, *records: BatchRecord) -> str:
    monkeypatch.setattr(sys, "stderr", terminal)
    with ProgressBar(BATCH_ID, is_shown=True) as progress:
        for record in records:
            progress.show(record)
    return terminal.written


def test_the_line_has_the_numbers_as_far_as_they_fit() -> None:
    whole = "██████████░░░░░░░░░░  5/10 jobs · 1 failed · 2 running · 3 pending · about 4.0 s left"
    assert format_line(HALF, "about 4.0 s left", 100) == whole
    assert format_line(HALF, "", 100) == whole.removesuffix(" · about 4.0 s left")
    assert format_line(HALF, "about 4.0 s left", 60) == whole.partition(" · 3")[0]
    assert format_line(ALL, "", 100) == "████████████████████  10/10 jobs · 1 failed · DONE"
    assert format_line(make_batch({JobStatus.DONE: 0}), "", 100).startswith("░░░░░░░░░░░░░░░░░░░░  0/0 jobs")


def test_a_terminal_has_one_line_that_is_updated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    written = show(monkeypatch, Terminal(), HALF, ALL)
    _, first, second = written.split("\r")
    assert first.startswith("██████████░░░░░░░░░░  5/10 jobs")
    assert second.endswith(" DONE" + " " * (len(first) - len(second.rstrip())) + "\n")
    assert "\x1b" not in written


def test_the_share_of_failed_jobs_is_red(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[32m" + "█" * 18 + "\x1b[31m██\x1b[0m" in show(monkeypatch, Terminal(), ALL)


def test_a_log_has_lines_that_are_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = show(monkeypatch, Terminal(is_live=False), HALF, HALF, HALF, ALL).splitlines()
    assert [re.sub("[█░]+ *", "", line) for line in lines] == [
        "5/10 jobs · 1 failed · 2 running · 3 pending",
        "10/10 jobs · 1 failed · DONE",
    ]


def test_an_encoding_without_blocks_has_other_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert "##########..........  5/10 jobs - 1 failed" in show(monkeypatch, Terminal(encoding="ascii"), HALF)


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, asyncio.CancelledError])
def test_an_interrupt_is_answered_with_how_to_cancel(
    monkeypatch: pytest.MonkeyPatch, interrupt: type[BaseException]
) -> None:
    batch = short_id(BATCH_ID)
    for cancels, words in (
        (
            False,
            f"\nStopped waiting; batch {batch} continues. Cancel it with batch.cancel() or `tweezer cancel {batch}`.\n",
        ),
        (True, f"\nInterrupted: batch {batch} is being cancelled.\n"),
    ):
        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        with pytest.raises(interrupt), ProgressBar(BATCH_ID, is_shown=True, cancels=cancels) as progress:  # noqa: PT012
            progress.show(HALF)
            raise interrupt
        assert words in terminal.written


def test_other_errors_and_a_hidden_bar_add_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    for is_shown, error in ((True, ValueError), (False, KeyboardInterrupt)):
        with pytest.raises(error), ProgressBar(BATCH_ID, is_shown=is_shown):
            raise error
    assert terminal.written == ""


class FakeNotebook:
    """IPython in the kernel of a notebook, which keeps what is displayed."""

    def __init__(self) -> None:
        self.cells: list[list[str]] = []

    def display(self, html: str, *, display_id: bool) -> Any:
        assert display_id
        self.cells.append([html])
        return SimpleNamespace(update=self.cells[-1].append)

    def install(self, monkeypatch: pytest.MonkeyPatch, *, has_kernel: bool) -> None:
        shell = SimpleNamespace(kernel=self) if has_kernel else SimpleNamespace()
        ipython, display = ModuleType("IPython"), ModuleType("IPython.display")
        ipython.get_ipython = lambda: shell  # type: ignore[attr-defined]
        display.HTML, display.display = str, self.display  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "IPython", ipython)
        monkeypatch.setitem(sys.modules, "IPython.display", display)


def test_a_notebook_has_one_output_that_is_updated(monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = FakeNotebook()
    notebook.install(monkeypatch, has_kernel=True)
    assert show(monkeypatch, Terminal(), HALF, ALL) == ""
    ((first, second),) = notebook.cells
    assert "10 jobs: 3 PENDING, 2 RUNNING, 4 DONE, 1 ERROR" in first
    assert "10 jobs: 9 DONE, 1 ERROR" in second
    with pytest.raises(KeyboardInterrupt), ProgressBar(BATCH_ID, is_shown=True) as progress:  # noqa: PT012
        progress.show(HALF)
        raise KeyboardInterrupt
    assert f"Stopped waiting; batch {short_id(BATCH_ID)} continues." in notebook.cells[1][-1]


def test_ipython_in_a_terminal_has_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = FakeNotebook()
    notebook.install(monkeypatch, has_kernel=False)
    assert "10/10 jobs" in show(monkeypatch, Terminal(), ALL)
    assert notebook.cells == []
