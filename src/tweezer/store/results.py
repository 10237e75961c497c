"""Results that are too large for Redis, as files in a folder that workers and readers share.

A file contains the result as the API returns it, gzipped. Its name is derived from the job and the content, so that a
repeated execution, or one that should have stopped, never overwrites another result.
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
_QUICK = 256 << 10  # characters of a result, packed in a few milliseconds: not worth a thread
_CHARACTERS_PER_BITSTRING = 100
_LEVEL = 1  # of gzip: results are written once and read rarely


class ResultsFolder:
    """Result files in a local or mounted folder, with one subfolder per batch, spread over 256 folders.

    All methods block and raise ResultUnavailable. Folders are created when needed.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def put(self, job: UUID, content: bytes) -> ResultFile:
        """Store the content durably: it survives a power loss after this returns."""
        digest = hashlib.sha256(content)
        path = batch_folder(self._root, split_job_id(job)[0]) / f"{job}-{digest.hexdigest()}.json.gz"
        try:
            write_file(path, content)
        except OSError as error:
            raise ResultUnavailable(
                f"the result of job {job} ({len(content)} bytes) cannot be written to {path.parent}: "
                f"{error.strerror}; free some space there, or set TWEEZER_RESULTS_DIR to a writable folder"
            ) from error
        return ResultFile(path.relative_to(self._root).as_posix(), len(content), digest.digest())

    def open(self, file: ResultFile) -> BufferedReader:
        """Open the file after checking its size and digest."""
        path = self._root / file.name
        if not _NAME.fullmatch(file.name):
            raise ResultUnavailable(f"a job's result refers to {path}, which is not a valid name of a result file")
        try:
            stream = path.open("rb")
        except FileNotFoundError as error:
            raise ResultUnavailable(
                f"the result file {path} is missing; set TWEEZER_RESULTS_DIR (or results_dir of connect) to the folder "
                "that the workers write to; if it already is, restore the file from a backup or run the job again"
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
        """Remove one file, if it exists."""
        path = self._root / file.name
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise ResultUnavailable(f"the result file {path} cannot be removed: {error.strerror}") from error

    def delete_batch(self, batch_id: UUID) -> None:
        """Remove all files of a batch, if there are any."""
        folder = batch_folder(self._root, batch_id)
        try:
            shutil.rmtree(folder)
        except FileNotFoundError:
            return
        except OSError as error:
            raise ResultUnavailable(f"the results in {folder} cannot be removed: {error.strerror}") from error


class Results:
    """Packs results for settle, and unpacks results from Redis or from files.

    files: None in a process without a results folder. inline_max: size of a packed result, in bytes, above which it is
    written to a file.
    """

    def __init__(self, files: ResultsFolder | None = None, *, inline_max: int = INLINE_MAX_BYTES) -> None:
        self._files = files
        self.inline_max = inline_max

    async def pack(self, batch_id: UUID, index: int, result: Result) -> bytes:
        """Pack a job's result for settle: the result itself or a reference to its file. Raises ResultUnavailable."""
        packed = encode_result(result) if _is_quick(result) else await asyncio.to_thread(encode_result, result)
        if len(packed) <= self.inline_max:
            return packed
        return encode_result_file(await asyncio.to_thread(self._put, job_id(batch_id, index), result))

    async def unpack(self, packed: bytes) -> Result:
        """Unpack a result. Raises ResultUnavailable."""
        file = result_file(packed)
        return decode_result(packed) if file is None else await asyncio.to_thread(self._read, file)

    async def read(self, packed: bytes) -> Result | ResultUnavailable:
        """Unpack a result, or return the error, so that one unreadable result does not hide the rest of its batch."""
        try:
            return await self.unpack(packed)
        except ResultUnavailable as error:
            return error

    async def open(self, file: ResultFile) -> BufferedReader:
        """Open the file of a large result, gzipped JSON; the caller must close it. Raises ResultUnavailable."""
        return await asyncio.to_thread(self._open, file)

    async def discard(self, packed: bytes) -> None:
        """Remove the file, if there is one, of a packed result that was not stored. Raises ResultUnavailable."""
        file = result_file(packed)
        if file is not None and self._files is not None:
            await asyncio.to_thread(self._files.delete, file)

    async def delete_batch(self, batch_id: UUID) -> None:
        """Remove the files of a batch, if there are any. Raises ResultUnavailable."""
        if self._files is not None:
            await asyncio.to_thread(self._files.delete_batch, batch_id)

    def _put(self, job: UUID, result: Result) -> ResultFile:
        if self._files is None:
            raise ResultUnavailable(f"the result of job {job} needs a results folder; set TWEEZER_RESULTS_DIR")
        return self._files.put(job, gzip.compress(result_json(result), _LEVEL, mtime=0))

    def _read(self, file: ResultFile) -> Result:
        with self._open(file) as stream:
            return decode_result_json(gzip.decompress(stream.read()))

    def _open(self, file: ResultFile) -> BufferedReader:
        if self._files is None:
            raise ResultUnavailable(
                f"the result is large and stored in the workers' results folder, as {file.name}; where that folder is "
                "mounted, pass its path to connect as results_dir or set TWEEZER_RESULTS_DIR; elsewhere get the result "
                "from the API, GET /api/v1/jobs/{id}/results"
            )
        return self._files.open(file)


def _is_quick(result: Result) -> bool:
    size = len(result.serialised_results or "") + _CHARACTERS_PER_BITSTRING * len(result.counter or ())
    return size <= _QUICK


def batch_folder(root: Path, batch_id: UUID) -> Path:
    """Return the folder of a batch. The two digits of a batch id before its zeros are random."""
    return root / batch_id.hex[24:26] / str(batch_id)


def _make(folder: Path) -> None:
    """Create the folder and its parents durably."""
    if folder.is_dir():
        return
    _make(folder.parent)
    with contextlib.suppress(FileExistsError):
        folder.mkdir()
    _sync(folder.parent)


def write_file(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Write the file atomically. Its folder is always durable, because other files may follow."""
    _make(path.parent)
    temporary = path.with_name(f".{secrets.token_hex(8)}")
    try:
        with temporary.open("xb") as stream:
            stream.write(content)
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    if durable:
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
        problem = f"it has {size} bytes, expected {file.size}"
    elif hashlib.file_digest(stream, "sha256").digest() != file.sha256:
        problem = f"its SHA-256 is not the expected {file.sha256.hex()}"
    else:
        stream.seek(0)
        return
    raise ResultUnavailable(
        f"the result file {path} is damaged: {problem}; restore it from a backup or run the job again"
    )
