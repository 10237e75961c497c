"""Logs of jobs: the end of what was written, as harmless text, which a reader can follow."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tweezer.model.errors import ResultUnavailable
from tweezer.model.ids import job_id, new_batch_id
from tweezer.model.messages import JobSpec, JobWork
from tweezer.store.job_logs import KEPT_BYTES, JobLog, JobLogs, OutputBuffer
from tweezer.store.results import Results, ResultsFolder
from tweezer.worker.output import JobOutput

BATCH = new_batch_id()
JOB = job_id(BATCH, 3)


@pytest.fixture
def logs(tmp_path: Path) -> JobLogs:
    return JobLogs(tmp_path)


async def written(logs: JobLogs, *chunks: bytes) -> JobLog:
    buffer = OutputBuffer()
    for chunk in chunks:
        buffer.add(chunk)
    await logs.write(JOB, buffer.content)
    return await logs.read(JOB)


async def test_what_was_written_is_read_as_it_is(logs: JobLogs) -> None:
    assert await logs.read(JOB) == JobLog("", 0, 0)
    assert await written(logs, b"one\n", "zwei ü\n".encode()) == JobLog("one\nzwei ü\n", 12, 0)


async def test_characters_may_be_split_between_chunks(logs: JobLogs) -> None:
    text = "é→𝄞".encode()
    assert (await written(logs, *(text[at : at + 1] for at in range(len(text))))).text == "é→𝄞"


@pytest.mark.parametrize(
    ("output", "text"),
    [
        (b"\x1b[31mred\x1b[0m\x07", "\\x1b[31mred\\x1b[0m\\x07"),
        (b"\xff\xfe broken \xc3", "�� broken "),
        (b"10 %\r20 %\r\nend\r", "10 %\n20 %\nend\n"),
        (b"tab\tand\x0bvertical\x00null", "tab\tand\\x0bvertical\\x00null"),
        ("\u202etxt.exe\u200b\u2028\x85".encode(), "\\u202etxt.exe\\u200b\\u2028\\x85"),
    ],
)
async def test_hostile_output_becomes_harmless_text(logs: JobLogs, output: bytes, text: str) -> None:
    assert (await written(logs, output)).text == text


async def test_a_return_and_its_line_end_in_two_chunks_are_one_line_end(logs: JobLogs) -> None:
    assert (await written(logs, b"a\r", b"\nb")).text == "a\nb"


async def test_of_much_output_the_end_is_kept_from_a_whole_line_on(logs: JobLogs) -> None:
    lines = [f"line {number}\n".encode() for number in range(20_000)]
    found = await written(logs, *lines)
    assert found.text.endswith("line 19999\n")
    assert found.text.startswith("line ")
    assert KEPT_BYTES - 100 < len(found.text) <= KEPT_BYTES
    assert found.next == sum(map(len, lines)) == found.cut + len(found.text)


async def test_an_endless_line_is_cut_between_characters(logs: JobLogs) -> None:
    found = await written(logs, *["ü".encode() * 1001] * 100)
    assert len(found.text.encode()) <= KEPT_BYTES
    assert set(found.text) == {"ü"}
    assert found.cut + len(found.text.encode()) == found.next == 200_200


async def test_a_reader_can_follow_and_learns_what_was_cut(logs: JobLogs) -> None:
    buffer, chance = OutputBuffer(), random.Random(1)
    seen, after, cut = "", 0, 0
    for number in range(300):
        buffer.add(f"{number} {'x' * chance.randrange(2000)}\n".encode())
        await logs.write(JOB, buffer.content)
        if chance.random() < 0.1:
            found = await logs.read(JOB, after=after)
            seen, after, cut = seen + found.text, found.next, cut + found.cut
    found = await logs.read(JOB, after=after)
    assert found.next == cut + found.cut + len(seen) + len(found.text)
    assert (await logs.read(JOB, after=found.next)) == JobLog("", found.next, 0)


async def test_a_position_after_the_end_reads_from_the_beginning(logs: JobLogs) -> None:
    await written(logs, b"text")
    assert await logs.read(JOB, after=10**15) == JobLog("text", 4, 0)


async def test_output_that_was_skipped_counts_as_cut(logs: JobLogs) -> None:
    buffer = OutputBuffer()
    buffer.add(b"first")
    buffer.skip(1000)
    buffer.add(b"last")
    await logs.write(JOB, buffer.content)
    assert await logs.read(JOB) == JobLog("last", 1009, 1005)


async def test_a_later_attempt_continues_the_log(logs: JobLogs) -> None:
    await written(logs, b"crashed")
    buffer = OutputBuffer(await logs.read(JOB))
    buffer.add_line("--- attempt 2 ---")
    buffer.add(b"fine\n")
    await logs.write(JOB, buffer.content)
    assert (await logs.read(JOB)).text == "crashed\n--- attempt 2 ---\nfine\n"


@pytest.mark.parametrize("content", [b"no json\ntext", b"[]\n", b'{"start": "x"}\n', b"\xff\xff"])
async def test_a_damaged_log_is_an_error_that_names_the_file(logs: JobLogs, content: bytes) -> None:
    await logs.write(JOB, content)
    with pytest.raises(ResultUnavailable, match=f"{JOB}.log is damaged"):
        await logs.read(JOB)


async def test_a_damaged_log_of_an_earlier_attempt_is_replaced(logs: JobLogs) -> None:
    await logs.write(JOB, b"\0\0\0")  # as after a power loss
    output = JobOutput(logs, JobWork(JOB, 3, JobSpec(), seed=1, attempt=2))
    output.add(b"fine\n")
    await output.close()
    assert await logs.read(JOB) == JobLog("fine\n", 5, 0)


async def test_a_folder_that_cannot_be_written_is_an_error() -> None:
    with pytest.raises(ResultUnavailable, match="cannot be written"):
        await JobLogs(Path("/proc/nope")).write(JOB, b"")
    with pytest.raises(ResultUnavailable, match="set TWEEZER_RESULTS_DIR"):
        await JobLogs(None).read(JOB)


async def test_a_log_is_deleted_with_the_results_of_its_batch(tmp_path: Path, logs: JobLogs) -> None:
    await written(logs, b"text")
    await Results(ResultsFolder(tmp_path)).delete_batch(BATCH)
    assert (await logs.read(JOB)).next == 0
