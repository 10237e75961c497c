"""Read the bodies of requests: decompress them, check their limits, and convert their JSON to frozen structs.

An error names the field at fault, and is raised before anything is written. Fields that a type does not have are
rejected, except those of Pasqal's clients, because newer ones send more.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import math
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from itertools import accumulate
from typing import Any, TypeVar, cast

import msgspec
from msgspec import inspect
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import Scope

from tweezer.api.http.limits import ActiveCounts
from tweezer.api.http.responses import RequestRejected
from tweezer.model.arguments import conversion_error, quote_name
from tweezer.model.checks import suggest_name
from tweezer.model.errors import InvalidInput

T = TypeVar("T")

MAX_DEPTH = 32
MAX_VALUES = 2_000_000
MAX_NUMBER_LENGTH = 100
UNPACKED_FREE = 16 << 20
"""Bytes to which a compressed body may decompress regardless of its ratio."""
MAX_RATIO = 200
"""The largest ratio of decompressed to sent size, for bodies that decompress to more than UNPACKED_FREE."""

_STEP = 1 << 18  # bytes decompressed or decoded at once, which blocks the event loop
_EXPLAINED = 1 << 20  # in bodies up to this size, the field that is not valid JSON is searched for
_PER_ACCOUNT, _IN_ALL = 2, 8  # bodies of the largest size that may be in memory at once
_RETRY_AFTER = {"Retry-After": "1"}
_DIGEST = "tweezer.body"
_PASQALS = b"PasqalCloudSDK/"

_HALF = re.compile("[\ud800-\udfff]")


def body_digest(scope: Scope) -> str:
    """Return the SHA-256 of the request's decompressed body; '' if it was not read."""
    return cast(str, scope.get(_DIGEST, ""))


def is_pasqals(scope: Scope) -> bool:
    """Return whether one of Pasqal's clients sent the request. Newer ones send more than this version knows."""
    return any(name == b"user-agent" and value.startswith(_PASQALS) for name, value in scope["headers"])


class BodyReader:
    """A reader of request bodies. unpacked_max: the largest size of a decompressed body, in bytes."""

    def __init__(self, unpacked_max: int) -> None:
        self._max = unpacked_max
        self._held = ActiveCounts()
        self._large = asyncio.Lock()

    async def read(
        self, request: Request, kind: type[T], *, account: str, root: str = "body", is_open: bool = False
    ) -> T:
        """Return the body as a value of this type.

        root: its name in errors without a field. is_open: unknown fields are ignored. Raises RequestRejected and
        InvalidInput.
        """
        _check_content_type(request.headers)
        unpack = _choose_unpacker(request.headers)
        data, digest, came = bytearray(), hashlib.sha256(), 0
        try:
            async for chunk in request.stream():
                came += len(chunk)
                for piece in unpack.pieces(chunk):
                    data += piece
                    digest.update(piece)
                    self._hold(account, len(piece), len(data), came)
                    if len(piece) == _STEP:
                        await asyncio.sleep(0)
            unpack.finish()
            request.scope[_DIGEST] = digest.hexdigest()
            is_open = is_open or is_pasqals(request.scope)
            if len(data) <= _STEP:
                return read_json(data, kind, root=root, is_open=is_open)
            async with self._large:  # one at a time: its values take several times as much memory
                return await asyncio.to_thread(read_json, data, kind, root=root, is_open=is_open)
        finally:
            self._held.add(account, -len(data))

    def _hold(self, account: str, more: int, size: int, came: int) -> None:
        self._held.add(account, more)
        if size > self._max:
            problem = f"is larger than {self._max >> 10} KiB when decompressed; send fewer jobs per request"
            raise RequestRejected(413, "unpacked_too_large", problem, field="body")
        if size > UNPACKED_FREE and size > MAX_RATIO * came:
            problem = f"decompresses to more than {MAX_RATIO} times the size that was sent; send fewer jobs per request"
            raise RequestRejected(413, "unpacked_too_large", problem, field="body")
        if self._held[account] > _PER_ACCOUNT * self._max:
            problem = f"{account} is sending too many large bodies at once; send them one after the other"
            raise RequestRejected(429, "too_many_bodies", problem, headers=_RETRY_AFTER)
        if self._held.total() > _IN_ALL * self._max:
            problem = "too many large bodies are being received; try again"
            raise RequestRejected(503, "too_many_bodies", problem, headers=_RETRY_AFTER)


# --- compression


class _Plain:
    """A body without compression."""

    def pieces(self, chunk: bytes) -> Iterator[bytes]:
        yield chunk

    def finish(self) -> None:
        """Do nothing: the server checks the length."""


class _Gzip:
    """A body that is compressed with gzip (RFC 1952), in one member."""

    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(wbits=31)

    def pieces(self, chunk: bytes) -> Iterator[bytes]:
        """Decompress a part, and yield it in pieces of a bounded size."""
        piece = b""
        while chunk or (len(piece) == _STEP and not self._inflate.eof):
            if self._inflate.eof:
                raise _broken_gzip("there is data after its end")
            try:
                piece = self._inflate.decompress(chunk, _STEP)
            except zlib.error as error:
                raise _broken_gzip(str(error)) from error
            chunk = self._inflate.unconsumed_tail or self._inflate.unused_data
            yield piece

    def finish(self) -> None:
        if not self._inflate.eof:
            raise _broken_gzip("its end is missing")


def _broken_gzip(problem: str) -> RequestRejected:
    return RequestRejected(400, "broken_gzip", f"is not valid gzip data: {problem}", field="body")


def _choose_unpacker(headers: Headers) -> _Plain | _Gzip:
    match ", ".join(headers.getlist("content-encoding")).strip().lower():
        case "" | "identity":
            return _Plain()
        case "gzip" | "x-gzip":
            return _Gzip()
        case _:
            raise RequestRejected(
                415,
                "content_encoding",
                "is not supported; send the body uncompressed, or compressed once with gzip",
                field="Content-Encoding",
                headers={"Accept-Encoding": "gzip"},
            )


def _check_content_type(headers: Headers) -> None:
    media_type = headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise RequestRejected(
            415,
            "content_type",
            "must be application/json; send a JSON body",
            field="Content-Type",
            headers={"Accept": "application/json"},
        )


# --- JSON


def read_json(data: bytes | bytearray, kind: type[T], *, root: str = "body", is_open: bool = False) -> T:
    """Decode JSON text as a value of this type. is_open: unknown fields are ignored.

    Raises InvalidInput, and RequestRejected if it exceeds a limit.
    """
    document = _decode(data, root)
    if not is_open:
        _refuse_unknown(document, _find_shape(cast(Any, kind)), "" if root == "body" else root)
    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        raise conversion_error(error, root) from error


def _decode(data: bytes | bytearray, root: str) -> Any:
    keys = _check_size(data)
    if not data:
        raise RequestRejected(400, "not_json", "is empty; expected a JSON document", field="body")
    try:
        document = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _not_json(data, str(error), root) from error
    if keys != _count_keys(document):
        if len(data) > _STEP:  # finding it would block the event loop for long
            problem = "has an object with a repeated key; send each key once"
            raise RequestRejected(400, "repeated_key", problem, field="body")
        raise RequestRejected(
            400, "repeated_key", "appears twice in one object; send it once", field=_first_repeated_key(data)
        )
    return document


_Shape = dict[str, Any] | tuple[Any] | None
"""The fields of an object with their shapes, or the shape of each item of a list; None if any value may be there."""


@functools.cache
def _find_shape(kind: Any) -> _Shape:
    return _as_shape(inspect.type_info(kind))


def _as_shape(kind: inspect.Type) -> _Shape:
    match kind:
        case inspect.Metadata():
            return _as_shape(kind.type)
        case inspect.UnionType():
            return next((shape for shape in map(_as_shape, kind.types) if shape), None)
        case inspect.StructType():
            return {field.encode_name: _as_shape(field.type) for field in kind.fields}
        case inspect.ListType():
            inner = _as_shape(kind.item_type)
            return None if inner is None else (inner,)
        case _:
            return None


def _refuse_unknown(value: Any, shape: _Shape, place: str = "") -> None:
    """Raise InvalidInput for a field that its object should not have, with the name that may be meant."""
    match shape:
        case dict() if type(value) is dict:
            if not value.keys() <= shape.keys():
                name = next(name for name in value if name not in shape)
                problem = f"is not a known field{suggest_name(name, shape)}"
                raise InvalidInput(f"{place}.{quote_name(name)}".removeprefix("."), problem)
            for name, inner in shape.items():
                if inner is not None and name in value:
                    _refuse_unknown(value[name], inner, f"{place}.{name}".removeprefix("."))
        case (inner,) if type(value) is list:
            for index, item in enumerate(value):
                _refuse_unknown(item, inner, f"{place}[{index}]")


_KEPT = b'"[]{},:'
_DIGITS = b"+-.0123456789eE"
_KINDS = bytes.maketrans(_DIGITS + b"{}", b"0" * len(_DIGITS) + b"[]")
_OTHERS = bytes(sorted(set(range(256)) - set(_KEPT + _DIGITS)))
_STEPS = bytes.maketrans(b"[]", b"\x01\xff")


def _check_size(data: bytes | bytearray) -> int:
    """Check that the JSON text would not decode to huge or slow values; return the number of its keys.

    Scans the text outside strings in a few passes of C code. The counts are exact if the text is JSON.
    """
    plain = data.replace(b"\\\\", b"").replace(b'\\"', b"").translate(_KINDS, _OTHERS)
    outside = b"".join(_outside_strings(plain))
    if outside.count(b",") + outside.count(b"[") > MAX_VALUES:
        problem = f"has more than {MAX_VALUES} values; send fewer jobs per request"
        raise RequestRejected(400, "too_many_values", problem, field="body")
    if b"0" * (MAX_NUMBER_LENGTH + 1) in outside:
        problem = f"has a number of more than {MAX_NUMBER_LENGTH} characters; shorten it"
        raise RequestRejected(400, "number_too_long", problem, field="body")
    steps = outside.translate(_STEPS, b"0,:")
    if max(accumulate(memoryview(steps).cast("b")), default=0) > MAX_DEPTH:
        raise RequestRejected(
            400, "nested_too_deeply", f"is nested more than {MAX_DEPTH} levels deep; flatten it", field="body"
        )
    return outside.count(b":")


def _outside_strings(plain: bytes | bytearray) -> Iterator[bytes | bytearray]:
    """Yield the parts outside strings of a text without escaped quotes."""
    plain = plain.replace(b'""', b"")  # dropping empty strings does not change what is outside or inside strings
    inside = False
    for start in range(0, len(plain), _STEP):
        parts = plain[start : start + _STEP].split(b'"')
        yield from parts[inside::2]
        inside ^= len(parts) % 2 == 0


def _count_keys(document: Any) -> int:
    keys, left = 0, [document]
    while left:
        value = left.pop()
        if type(value) is dict:
            keys += len(value)
            left.extend(value.values())
        elif type(value) is list:
            left.extend(value)
    return keys


def _first_repeated_key(data: bytes | bytearray) -> str:
    repeated: list[str] = []

    def look(pairs: list[tuple[str, Any]]) -> None:
        if not repeated and len(dict(pairs)) < len(pairs):
            repeated.append(Counter(name for name, _ in pairs).most_common(1)[0][0])

    json.loads(data, object_pairs_hook=look)
    (name,) = repeated
    return quote_name(name)


def _not_json(data: bytes | bytearray, problem: str, root: str) -> RequestRejected:
    """Return the error for a text that msgspec cannot decode. It names the field if Python's JSON decoder finds it."""
    field, problem = "body", f"is not valid JSON: {problem.removeprefix('JSON is malformed: ')}"
    if len(data) <= _EXPLAINED:
        try:
            document = _decode_leniently(bytes(data).decode("utf-8", "surrogatepass"))
        except UnicodeDecodeError:
            problem = "is not UTF-8 text; encode it as UTF-8"
        except ValueError:
            pass  # no field can be found in such a text
        else:
            found = next(_find_unsendable(document), None)
            if found is not None:
                place, problem = found
                field = place.removeprefix(".") if place.startswith(".") else f"{root}{place}"
    return RequestRejected(400, "not_json", problem, field=field)


class _Constant(str):
    """``NaN``, ``Infinity`` or ``-Infinity``: Python writes them, but they are not JSON."""

    __slots__ = ()


_BARE = "Invalid control character at"  # a message of Python's JSON decoder
_MARK = "\udcff"


def _decode_leniently(text: str) -> Any:
    """Decode JSON that may contain such constants and unpaired surrogates. Raises ValueError.

    The first unescaped control character is replaced by a mark; others are accepted.
    """
    try:
        return json.loads(text, parse_constant=_Constant)
    except json.JSONDecodeError as error:
        if error.msg != _BARE:
            raise
        marked = f"{text[: error.pos]}{_MARK}{text[error.pos + 1 :]}"
        return json.loads(marked, parse_constant=_Constant, strict=False)


def _find_unsendable(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Yield each place with a value that JSON or UTF-8 cannot represent, and the problem."""
    match value:
        case _Constant():
            yield place, f"is {value}, which is not valid JSON; send a finite number"
        case float() if math.isinf(value):
            yield place, "is a number that does not fit into 64 bits; send a smaller one"
        case str() if _MARK in value:
            yield place, "has an unescaped control character; remove it"
        case str() if _HALF.search(value):
            yield place, "has half of a surrogate pair, which is not valid Unicode text; remove it"
        case dict():
            for name, item in value.items():
                inner = f"{place}.{quote_name(name)}"
                yield from _find_unsendable(name, inner)
                yield from _find_unsendable(item, inner)
        case list():
            for index, item in enumerate(value):
                yield from _find_unsendable(item, f"{place}[{index}]")
