"""Results that are too large for Redis: files in a folder that workers and readers share.

A file is the result as the API answers it, gzipped. It is named by its job and its content, so that whoever repeats
an execution, or should have stopped it, never overwrites the result of another.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import hashlib
import os
import re
import secrets
import shutil
from io import BufferedReader
from pathlib import Path
from uuid import UUID

from tweezer.model.errors import ResultUnavailable
from tweezer.model.ids import job_id, split_job_id
from tweezer.model.messages import (
    Result,
    ResultFile,
    decode_result,
    decode_result_json,
    encode_result,
    encode_result_file,
    result_file,
    result_json,
)

INLINE_MAX_BYTES = 64 << 10

_NAME = re.compile(r"[0-9a-f]{2}/[0-9a-f-]{36}/[0-9a-f-]{36}-[0-9a-f]{64}\.json\.gz")
_QUICK = 256 << 10  # characters of a result that are packed in a few milliseconds: not worth a thread
_CHARACTERS_PER_BITSTRING = 100
_LEVEL = 1  # of gzip: what is written once and read once or never is not worth more


class ResultsFolder:
    """Files in a local or mounted folder, which is made when needed: one folder a batch, in 256 others.

    Its methods block; all raise ResultUnavailable.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def put(self, job: UUID, content: bytes) -> ResultFile:
        """Keep the content; when it returns, a power loss does not undo it."""
        digest = hashlib.sha256(content)
        path = self._of_batch(split_job_id(job)[0]) / f"{job}-{digest.hexdigest()}.json.gz"
        try:
            _make(path.parent)
            _write(path, content)
        except OSError as error:
            raise ResultUnavailable(
                f"the result of job {job} ({len(content)} bytes) cannot be written to {path.parent}: "
                f"{error.strerror}; make room there, or set TWEEZER_RESULTS_DIR to a folder that can be written"
            ) from error
        return ResultFile(path.relative_to(self._root).as_posix(), len(content), digest.digest())

    def open(self, file: ResultFile) -> BufferedReader:
        """Open the file, after its size and digest were found right."""
        path = self._root / file.name
        if not _NAME.fullmatch(file.name):
            raise ResultUnavailable(f"{path} is no file of a results folder, although a job's result names it")
        try:
            stream = path.open("rb")
        except FileNotFoundError as error:
            raise ResultUnavailable(
                f"the result file {path} is missing: set TWEEZER_RESULTS_DIR (or results_dir of connect) to the folder "
                "that the workers write to; if it is that one, restore the file from a backup or run the job again"
            ) from error
        except OSError as error:
            raise ResultUnavailable(f"the result file {path} cannot be read: {error.strerror}") from error
        try:
            _check(stream, path, file)
        except BaseException:
            stream.close()
            raise
        return stream

    def delete(self, file: ResultFile) -> None:
        """Remove one file; if it is gone already, that is fine."""
        path = self._root / file.name
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise ResultUnavailable(f"the result file {path} cannot be removed: {error.strerror}") from error

    def delete_batch(self, batch_id: UUID) -> None:
        """Remove all files of a batch; none is fine."""
        folder = self._of_batch(batch_id)
        try:
            shutil.rmtree(folder)
        except FileNotFoundError:
            return
        except OSError as error:
            raise ResultUnavailable(f"the results in {folder} cannot be removed: {error.strerror}") from error

    def _of_batch(self, batch_id: UUID) -> Path:
        """Batch ids begin with the time; the two digits before their zeros are random."""
        return self._root / batch_id.hex[24:26] / str(batch_id)


class Results:
    """Packs results for settle and unpacks them, wherever they are.

    files: None in a process that knows no results folder. inline_max: size of a packed result, in bytes, above which
    it goes to a file.
    """

    def __init__(self, files: ResultsFolder | None = None, *, inline_max: int = INLINE_MAX_BYTES) -> None:
        self._files = files
        self.inline_max = inline_max

    async def pack(self, batch_id: UUID, index: int, result: Result) -> bytes:
        """The result of a job as settle takes it: itself, or what names its file. Raises ResultUnavailable."""
        packed = encode_result(result) if _is_quick(result) else await asyncio.to_thread(encode_result, result)
        if len(packed) <= self.inline_max:
            return packed
        return encode_result_file(await asyncio.to_thread(self._put, job_id(batch_id, index), result))

    async def unpack(self, packed: bytes) -> Result:
        """The result that was packed. Raises ResultUnavailable."""
        file = result_file(packed)
        return decode_result(packed) if file is None else await asyncio.to_thread(self._read, file)

    async def read(self, packed: bytes) -> Result | ResultUnavailable:
        """The result that was packed, or why it cannot be read: one result must not hide the others of its batch."""
        try:
            return await self.unpack(packed)
        except ResultUnavailable as error:
            return error

    async def open(self, file: ResultFile) -> BufferedReader:
        """The file of a large result, gzipped JSON, which the caller closes. Raises ResultUnavailable."""
        return await asyncio.to_thread(self._open, file)

    async def discard(self, packed: bytes) -> None:
        """Remove the file of a packed result that is not kept, if it has one. Raises ResultUnavailable."""
        file = result_file(packed)
        if file is not None and self._files is not None:
            await asyncio.to_thread(self._files.delete, file)

    async def delete_batch(self, batch_id: UUID) -> None:
        """Removes the files of a batch, if there are any. Raises ResultUnavailable."""
        if self._files is not None:
            await asyncio.to_thread(self._files.delete_batch, batch_id)

    def _put(self, job: UUID, result: Result) -> ResultFile:
        if self._files is None:
            raise ResultUnavailable(f"the result of job {job} needs a results folder: set TWEEZER_RESULTS_DIR")
        return self._files.put(job, gzip.compress(result_json(result), _LEVEL, mtime=0))

    def _read(self, file: ResultFile) -> Result:
        with self._open(file) as stream:
            return decode_result_json(gzip.decompress(stream.read()))

    def _open(self, file: ResultFile) -> BufferedReader:
        if self._files is None:
            raise ResultUnavailable(
                f"the result is large and kept in the workers' results folder, as {file.name}: where that folder is "
                "mounted, give connect its path as results_dir or set TWEEZER_RESULTS_DIR; elsewhere get the result "
                "from the API, GET /api/v1/jobs/{id}/results"
            )
        return self._files.open(file)


def _is_quick(result: Result) -> bool:
    size = len(result.serialised_results or "") + _CHARACTERS_PER_BITSTRING * len(result.counter or ())
    return size <= _QUICK


def _make(folder: Path) -> None:
    """Makes the folder and its parents, so that a power loss does not take them away."""
    if folder.is_dir():
        return
    _make(folder.parent)
    with contextlib.suppress(FileExistsError):
        folder.mkdir()
    _sync(folder.parent)


def _write(path: Path, content: bytes) -> None:
    """Writes the file whole or not at all."""
    temporary = path.with_name(f".{secrets.token_hex(8)}")
    try:
        with temporary.open("xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _sync(path.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check(stream: BufferedReader, path: Path, file: ResultFile) -> None:
    size = os.fstat(stream.fileno()).st_size
    if size != file.size:
        problem = f"it has {size} bytes and should have {file.size}"
    elif hashlib.file_digest(stream, "sha256").digest() != file.sha256:
        problem = f"its SHA-256 should be {file.sha256.hex()}"
    else:
        stream.seek(0)
        return
    raise ResultUnavailable(
        f"the result file {path} is damaged: {problem}; restore it from a backup or run the job again"
    )
