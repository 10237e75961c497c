"""Large results: they are compressed into files and read back, never overwritten, and errors name the file."""

from __future__ import annotations

import errno
import gzip
import os
import re
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tweezer.model.errors import ResultUnavailable
from tweezer.model.ids import job_id, new_batch_id
from tweezer.model.messages import (
    Provenance,
    Result,
    ResultFile,
    decode_result,
    decode_result_json,
    encode_result,
    encode_result_file,
    result_file,
    result_json,
)
from tweezer.store.job_logs import JobLogs
from tweezer.store.results import Results, ResultsFolder

LARGE = Result(counter={"01": 7}, serialised_results=os.urandom(20_000).hex(), provenance=Provenance(backend="b"))
OTHER = Result(counter={"01": 8}, serialised_results=os.urandom(20_000).hex())
SMALL = Result(counter={"01": 3})
INLINE_MAX = 1024

texts = st.text(max_size=200)
results = st.builds(
    Result,
    counter=st.none() | st.dictionaries(st.text("01", min_size=1, max_size=8), st.integers(1, 2**60), max_size=5),
    serialised_results=st.none() | texts,
    provenance=st.none() | st.builds(Provenance, backend=texts, configuration=st.none() | texts),
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "results"


@pytest.fixture
def packing(root: Path) -> Results:
    return Results(ResultsFolder(root), inline_max=INLINE_MAX)


@pytest.fixture
def batch_id() -> UUID:
    return new_batch_id()


def files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


async def filed(packing: Results, batch_id: UUID, result: Result = LARGE, index: int = 0) -> ResultFile:
    file = result_file(await packing.pack(batch_id, index, result))
    assert file is not None
    return file


@given(results)
def test_a_result_reads_back_from_json(result: Result) -> None:
    assert decode_result_json(result_json(result)) == result


@given(st.builds(ResultFile, texts, st.integers(0, 2**40), st.binary(max_size=32)))
def test_a_reference_to_a_file_can_be_read_back(file: ResultFile) -> None:
    assert result_file(encode_result_file(file)) == file


def test_results_in_redis_have_no_reference_to_a_file() -> None:
    for result in (SMALL, LARGE):
        assert result_file(encode_result(result)) is None
        assert decode_result(encode_result(result)) == result


async def test_a_small_result_stays_in_redis(packing: Results, batch_id: UUID, root: Path) -> None:
    packed = await packing.pack(batch_id, 0, SMALL)
    assert packed == encode_result(SMALL)
    assert await packing.unpack(packed) == SMALL
    assert files(root) == []


@pytest.mark.parametrize("over", [0, 1])
async def test_the_limit_applies_to_the_compressed_size(root: Path, batch_id: UUID, over: int) -> None:
    packing = Results(ResultsFolder(root), inline_max=len(encode_result(LARGE)) - over)
    packed = await packing.pack(batch_id, 0, LARGE)
    assert (result_file(packed) is None) == (over == 0)
    assert await packing.unpack(packed) == LARGE


async def test_a_large_result_goes_to_a_file_and_comes_back(packing: Results, batch_id: UUID, root: Path) -> None:
    packed = await packing.pack(batch_id, 3, LARGE)
    assert len(packed) < 256
    (path,) = files(root)
    assert path.parent.name == str(batch_id)
    assert path.name.startswith(f"{job_id(batch_id, 3)}-")
    assert await packing.unpack(packed) == LARGE


async def test_a_result_of_many_bitstrings_is_large_too(packing: Results, batch_id: UUID) -> None:
    many = Result(counter={f"{n:020b}": n + 1 for n in range(5000)})
    assert await packing.unpack(await packing.pack(batch_id, 0, many)) == many


async def test_a_file_is_the_json_of_the_result(packing: Results, batch_id: UUID, root: Path) -> None:
    await packing.pack(batch_id, 0, Result(serialised_results=LARGE.serialised_results))
    (path,) = files(root)
    body = msgspec.json.decode(gzip.decompress(path.read_bytes()))
    assert body == {"counter": None, "serialised_results": LARGE.serialised_results}


async def test_a_repeated_execution_of_equal_content_is_one_file(packing: Results, batch_id: UUID, root: Path) -> None:
    first, second = [await packing.pack(batch_id, 0, LARGE) for _ in range(2)]
    assert first == second
    assert len(files(root)) == 1


async def test_an_execution_never_overwrites_the_result_of_another(packing: Results, batch_id: UUID) -> None:
    first, zombie = await packing.pack(batch_id, 0, LARGE), await packing.pack(batch_id, 0, OTHER)
    neighbour = await packing.pack(batch_id, 1, OTHER)
    assert await packing.unpack(first) == LARGE
    assert await packing.unpack(zombie) == await packing.unpack(neighbour) == OTHER


async def test_the_results_of_a_batch_are_deleted_together_and_no_others(packing: Results, root: Path) -> None:
    gone, kept = new_batch_id(), new_batch_id()
    for index in range(3):
        await packing.pack(gone, index, LARGE)
    packed = await packing.pack(kept, 0, LARGE)
    for _ in range(2):  # the second call finds nothing
        await packing.delete_batch(gone)
        assert len(files(root)) == 1
    await Results().delete_batch(kept)
    assert await packing.unpack(packed) == LARGE


async def test_a_file_that_is_open_can_be_read_to_its_end_while_its_batch_is_deleted(
    packing: Results, batch_id: UUID, root: Path
) -> None:
    with await packing.open(await filed(packing, batch_id)) as stream:
        ResultsFolder(root).delete_batch(batch_id)
        assert decode_result_json(gzip.decompress(stream.read())) == LARGE


async def test_a_missing_file_is_named(packing: Results, batch_id: UUID, root: Path) -> None:
    packed = await packing.pack(batch_id, 0, LARGE)
    (path,) = files(root)
    path.unlink()
    with pytest.raises(ResultUnavailable, match=f"{re.escape(str(path))} is missing; set TWEEZER_RESULTS_DIR"):
        await packing.unpack(packed)


def cut(content: bytes) -> bytes:
    return content[:-1]


def grown(content: bytes) -> bytes:
    return content + b"\0"


def changed(content: bytes) -> bytes:
    return content[:100] + bytes([content[100] ^ 1]) + content[101:]


@pytest.mark.parametrize(("damage", "says"), [(cut, "bytes, expected"), (grown, "bytes, expected"), (changed, "SHA")])
async def test_a_damaged_file_is_named(packing: Results, batch_id: UUID, root: Path, damage: Any, says: str) -> None:
    packed = await packing.pack(batch_id, 0, LARGE)
    (path,) = files(root)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ResultUnavailable, match=rf"{re.escape(str(path))} is damaged: .*{says}"):
        await packing.unpack(packed)


@pytest.mark.parametrize("name", ["../../../etc/passwd", "/etc/passwd", "", "ab/cd", f"00/{UUID(int=0)}/../x.json.gz"])
async def test_no_file_outside_of_the_folder_is_ever_opened(packing: Results, name: str) -> None:
    with pytest.raises(ResultUnavailable, match="not a valid name of a result file"):
        await packing.open(ResultFile(name, 1, b"0" * 32))


async def test_a_reader_without_the_folder_gets_an_error_with_advice(packing: Results, batch_id: UUID) -> None:
    packed = await packing.pack(batch_id, 0, LARGE)
    elsewhere = Results()
    with pytest.raises(ResultUnavailable, match=r"results_dir.*TWEEZER_RESULTS_DIR.*API"):
        await elsewhere.unpack(packed)
    with pytest.raises(ResultUnavailable, match="set TWEEZER_RESULTS_DIR"):
        await Results(inline_max=INLINE_MAX).pack(batch_id, 0, LARGE)


@pytest.mark.parametrize("fails_at", ["fsync", "replace"])
async def test_a_full_disk_is_reported_and_leaves_no_file(
    packing: Results, batch_id: UUID, root: Path, monkeypatch: pytest.MonkeyPatch, fails_at: str
) -> None:
    await packing.pack(batch_id, 0, OTHER)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(f"os.{fails_at}", full)
    with pytest.raises(ResultUnavailable, match=f"{batch_id}.*No space left on device; free some space"):
        await packing.pack(batch_id, 0, LARGE)
    assert len(files(root)) == 1
    monkeypatch.undo()
    assert await packing.unpack(await packing.pack(batch_id, 0, LARGE)) == LARGE


async def test_a_folder_that_cannot_be_created_is_reported(tmp_path: Path, batch_id: UUID) -> None:
    (tmp_path / "file").touch()
    packing = Results(ResultsFolder(tmp_path / "file" / "results"), inline_max=INLINE_MAX)
    with pytest.raises(ResultUnavailable, match=r"cannot be written to .*/file/results"):
        await packing.pack(batch_id, 0, LARGE)


async def test_a_result_is_on_the_disk_before_its_name_is_given(
    packing: Results, batch_id: UUID, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is synced before it gets its name, then every folder with a new entry."""
    synced: list[str] = []

    def fsync(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink().relative_to(root.parent)))

    monkeypatch.setattr("os.fsync", fsync)
    await packing.pack(batch_id, 0, LARGE)
    shard = f"results/{batch_id.hex[24:26]}"
    assert synced[:3] == [".", "results", shard]
    assert Path(synced[3]).name.startswith(".")
    assert synced[4:] == [f"{shard}/{batch_id}"]


async def test_a_folder_that_a_log_creates_is_on_the_disk_before_results_are_added(
    packing: Results, batch_id: UUID, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []

    def fsync(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink().relative_to(root.parent)))

    monkeypatch.setattr("os.fsync", fsync)
    await JobLogs(root).write(job_id(batch_id, 0), b"log")
    shard = f"results/{batch_id.hex[24:26]}"
    assert synced == [".", "results", shard]


def test_a_file_is_opened_by_what_put_returns(root: Path) -> None:
    folder = ResultsFolder(root)
    content = gzip.compress(b"{}")
    with folder.open(folder.put(new_batch_id(), content)) as stream:
        assert stream.read() == content
