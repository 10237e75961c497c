"""Batches and jobs as HTML: well-formed, escaped, complete up to a limit."""

from __future__ import annotations

from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st
from tests.support.records import BATCH_ID, make_batch, make_job

from tweezer.client import Finished
from tweezer.display.data import JobList
from tweezer.display.html import MAX_ROWS, draw_batch
from tweezer.model.ids import short_id
from tweezer.model.lifecycle import JobStatus, Stage
from tweezer.model.messages import BatchDoc, Fault, JobSpec, Result
from tweezer.store.records import JobRecord

COUNTER = {"101101": 105, "010010": 240, "110000": 60, "000000": 50, "111111": 45}


class Reader(HTMLParser):
    """Collects the texts, and checks that each element that begins also ends."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.tags: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag not in ("br", "rect"):
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.texts).replace("\xa0", " ")


def test_a_batch_is_a_line_a_bar_and_a_table() -> None:
    jobs: list[JobRecord | Finished] = [
        Finished.of(make_job(0, device_s=0.31), Result(COUNTER)),
        Finished.of(make_job(1, JobStatus.ERROR, faults=(Fault("user", "is too long", "sequence"),)), None),
        make_job(2, JobStatus.RUNNING, stage=Stage.ON_DEVICE, progress=0.4),
    ]
    counts = {JobStatus.DONE: 1, JobStatus.ERROR: 1, JobStatus.RUNNING: 1}
    html = draw_batch(make_batch(counts, open=True, doc=BatchDoc("EMU_FREE", "{}", name="scan")), jobs)
    text = Reader(html).text
    for part in (short_id(BATCH_ID), "“scan”", "EMU_FREE", "3 jobs: 1 RUNNING, 1 DONE, 1 ERROR", "open for more jobs"):
        assert part in text
    for part in (
        f"{short_id(BATCH_ID)}/2",
        "omega=6.5",
        "010010",
        "48%",
        "0.3 s",
        "sequence: is too long",
        "on_device 40%",
    ):
        assert part in text
    assert 'aria-label="3 jobs: 1 RUNNING, 1 DONE, 1 ERROR"' in html


def test_a_job_is_a_histogram_or_the_reason() -> None:
    done = Reader(Finished.of(make_job(), Result(COUNTER))._repr_html_())
    assert done.tags.count("rect") == len(COUNTER)
    failed = Reader(make_job(status=JobStatus.ERROR, faults=(Fault("user", "is too long", "sequence"),))._repr_html_())
    assert "sequence: is too long" in failed.text
    assert "svg" not in failed.tags


def test_a_long_list_is_cut_and_its_length_is_shown() -> None:
    jobs = JobList([make_job(index) for index in range(MAX_ROWS + 1)])
    read = Reader(jobs._repr_html_())
    assert read.tags.count("tr") == 1 + MAX_ROWS
    assert "and 1 more job; to_dataframe() has them all" in read.text
    assert "more job" not in Reader(JobList(jobs[:MAX_ROWS])._repr_html_()).text
    assert "no jobs" in JobList[Finished]()._repr_html_()


@given(st.text(), st.text(), st.dictionaries(st.text(), st.integers(0, 5), max_size=4))
def test_text_from_outside_is_escaped(name: str, value: str, counter: dict[str, int]) -> None:
    hostile = f"<script>alert(1)</script><img src=x onerror=y>{name}"
    spec = JobSpec(runs=5, variables={hostile: value, "b": [hostile]})
    fault = Fault("user", hostile, value)
    jobs: list[JobRecord | Finished] = [
        Finished.of(make_job(spec=spec), Result(counter | {hostile: 1})),
        make_job(status=JobStatus.ERROR, spec=spec, faults=(fault,)),
    ]
    doc = BatchDoc("EMU_FREE", "{}", name=hostile)
    for html in (draw_batch(make_batch(doc=doc, fault=fault), jobs, note=hostile), *(it._repr_html_() for it in jobs)):
        assert not {"script", "img"} & set(Reader(html).tags)
        html.encode()
