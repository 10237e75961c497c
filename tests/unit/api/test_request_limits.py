"""Limits of a request before it is parsed: sizes, compression, malicious JSON, and rates."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Annotated, Any

import httpx
import msgspec
import pytest
from fastapi import FastAPI, Request
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message, Scope
from tests.support.costs import cpu_time_below
from tests.support.waiting import until

from tweezer.api.access.auth import RateLimiter
from tweezer.api.access.routes import FORM_MAX
from tweezer.api.http import bodies
from tweezer.api.http.bodies import (
    MAX_DEPTH,
    MAX_NUMBER_LENGTH,
    MAX_RATIO,
    MAX_VALUES,
    UNPACKED_FREE,
    BodyReader,
    read_json,
)
from tweezer.api.http.header_limits import HEAD_MAX, HEAD_S
from tweezer.api.http.limits import _DRAIN_BYTES, RequestLimits, RequestLimitsMiddleware
from tweezer.api.http.openapi import DescribedAPI, describe_route
from tweezer.api.http.responses import RequestRejected, install_error_handlers
from tweezer.model.errors import InvalidInput
from tweezer.model.messages import MAX_JOBS_PER_CALL
from tweezer.model.sequence import MAX_SEQUENCE_BYTES

KIB = 1024
BODY_MAX, UNPACKED_MAX = 64 * KIB, 256 * KIB
SOON_S = 10.0


class Inner(msgspec.Struct, frozen=True):
    number: int | None = None
    anything: dict[str, Any] | None = None


class Outer(msgspec.Struct, frozen=True):
    inner: list[Inner]
    text: str | None = None


def create(limits: RequestLimits, unpacked_max: int = UNPACKED_MAX) -> FastAPI:
    app = FastAPI()
    app.state.bodies = BodyReader(unpacked_max)
    app.add_middleware(RequestLimitsMiddleware, limits=limits)
    install_error_handlers(app)

    @app.post("/read/{key}")
    async def read(request: Request, key: str) -> Any:
        return msgspec.to_builtins(await app.state.bodies.read(request, Outer, account=key))

    @app.get("/deaf")
    @app.post("/deaf")
    async def deaf() -> str:
        return "read nothing"

    return app


@pytest.fixture
def app() -> FastAPI:
    return create(RequestLimits(BODY_MAX, small_bodies={"/deaf": KIB}, patience_s=0.2))


@pytest.fixture
async def http(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://h") as client:
        yield client


async def post(http: httpx.AsyncClient, content: Any, **headers: str) -> httpx.Response:
    named = {"Content-Type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    return await http.post("/read/k", content=content, headers=named)


def refusal(response: httpx.Response) -> tuple[int, str, str | None]:
    """Return status, reason and field, and check the envelope of errors."""
    body = response.json()
    assert body["code"] == str(response.status_code)
    assert body["status"] == ("fail" if response.status_code < 500 else "error")
    assert body["data"]["description"]
    return response.status_code, body["data"]["reason"], body["data"]["field"]


async def in_chunks(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


GOOD = b'{"inner":[{"number":1}],"text":"\xc3\xa9"}'
READ = {"inner": [{"number": 1, "anything": None}], "text": "é"}


# --- sizes


async def test_a_body_is_read(http: httpx.AsyncClient) -> None:
    assert (await post(http, GOOD)).json() == READ
    assert (await post(http, in_chunks(GOOD[:9], b"", GOOD[9:]))).json() == READ
    assert (await post(http, gzip.compress(GOOD), Content_Encoding="gzip")).json() == READ
    assert (
        await post(http, in_chunks(*map(bytes, zip(gzip.compress(GOOD)))), Content_Encoding="x-gzip")
    ).json() == READ


async def test_a_body_whose_content_length_is_too_large_is_refused_unread(http: httpx.AsyncClient) -> None:
    read = 0

    async def counted() -> AsyncIterator[bytes]:
        nonlocal read
        read += 1
        yield b" " * (BODY_MAX + 1)

    answer = await post(http, counted(), Content_Length=str(BODY_MAX + 1))
    assert refusal(answer) == (413, "body_too_large", "body")
    assert f"{BODY_MAX // KIB} KiB" in answer.text
    assert answer.headers["connection"] == "close"


@pytest.mark.parametrize("length", ["9" * 5000, str(BODY_MAX + 1), "1000000000000000"])
async def test_a_content_length_with_many_digits_is_refused(http: httpx.AsyncClient, length: str) -> None:
    assert refusal(await post(http, in_chunks(GOOD), Content_Length=length)) == (413, "body_too_large", "body")


@pytest.mark.parametrize("length", ["-1", "x", "1.5", "²", "+1"])
async def test_a_content_length_that_is_not_a_number_is_refused(http: httpx.AsyncClient, length: str) -> None:
    headers = {"Content-Length": length.encode("latin-1")}
    answer = await http.post("/read/k", content=in_chunks(GOOD), headers=headers)  # type: ignore[arg-type]
    assert refusal(answer) == (400, "bad_length", "Content-Length")


async def test_a_body_without_a_length_is_refused_once_it_is_too_large(app: FastAPI) -> None:
    sent = await exchange(app, (b" " * KIB for _ in range(2 * BODY_MAX // KIB + 2)))
    assert sent.status == 413
    assert (b"connection", b"close") in sent.headers


async def test_a_body_that_claims_to_be_smaller_than_it_is_is_refused(app: FastAPI) -> None:
    sent = await exchange(app, [b" " * (BODY_MAX + 1)], headers=[(b"content-length", b"10")])
    assert sent.status == 413


async def test_the_largest_body_is_read(http: httpx.AsyncClient) -> None:
    body = GOOD + b" " * (BODY_MAX - len(GOOD))
    assert (await post(http, body)).status_code == 200
    assert (await post(http, body + b" ")).status_code == 413


async def test_a_path_with_small_bodies_has_a_smaller_limit(http: httpx.AsyncClient) -> None:
    assert refusal(await http.post("/deaf", content=b" " * (KIB + 1))) == (413, "body_too_large", "body")
    assert (await http.post("/deaf", content=b" " * KIB)).status_code == 200


async def test_an_answer_to_a_body_that_was_not_read_closes_the_connection(http: httpx.AsyncClient) -> None:
    app = create(RequestLimits(4 * _DRAIN_BYTES))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://h") as large:
        answer = await large.post("/deaf", content=b" " * (_DRAIN_BYTES + 1))
        assert answer.headers["connection"] == "close"
        endless = in_chunks(*[b" " * _DRAIN_BYTES] * 3)
        assert (await large.post("/deaf", content=endless)).headers["connection"] == "close"
        waiting = {"Expect": "100-continue"}  # the server would ask for the body
        assert (await large.post("/deaf", content=b" ", headers=waiting)).headers["connection"] == "close"
    assert "connection" not in (await http.post("/deaf", content=b" " * KIB)).headers
    assert "connection" not in (await http.get("/deaf")).headers
    assert "connection" not in (await http.post("/deaf", headers={"Content-Length": "0"})).headers
    assert "connection" not in (await post(http, GOOD)).headers


async def test_a_url_is_bounded(http: httpx.AsyncClient) -> None:
    assert refusal(await http.get("/deaf", params={"a": "x" * 20_000})) == (414, "url_too_long", "url")
    assert refusal(await http.get("/" + "x" * 20_000)) == (414, "url_too_long", "url")
    assert refusal(await http.get("/deaf?" + "&" * 400)) == (400, "too_many_parameters", "url")
    assert (await http.get("/deaf?" + "a=1&" * 399 + "a=1")).status_code == 200


# --- slowness


class Exchange:
    """The ASGI messages that an application sent."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    @property
    def status(self) -> int:
        return int(self.messages[0]["status"])

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return list(self.messages[0]["headers"])

    @property
    def reason(self) -> str:
        body = b"".join(message.get("body", b"") for message in self.messages[1:])
        return str(json.loads(body)["data"]["reason"])


async def exchange(
    app: FastAPI,
    chunks: Iterable[bytes],
    *,
    headers: Iterable[tuple[bytes, bytes]] = ((b"transfer-encoding", b"chunked"),),
    pause_s: float = 0.0,
    ends: str = "complete",
) -> Exchange:
    """Send a body in chunks with a pause before each; it ``ends`` complete, gone (disconnected) or never."""
    left, sent, over = iter(chunks), Exchange(), asyncio.Event()

    async def receive() -> Message:
        chunk = next(left, None)
        if chunk is not None:
            await asyncio.sleep(pause_s)
            return {"type": "http.request", "body": chunk, "more_body": True}
        match ends:
            case "complete":
                return {"type": "http.request", "body": b"", "more_body": False}
            case "gone":
                return {"type": "http.disconnect"}
            case _:
                await over.wait()
                raise AssertionError

    async def send(message: Message) -> None:
        sent.messages.append(message)

    scope: Scope = {
        "type": "http",
        "method": "POST",
        "path": "/read/k",
        "raw_path": b"/read/k",
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "http_version": "1.1",
        "server": ("h", 80),
        "client": ("c", 1),
        "headers": [(b"host", b"h"), *headers],
    }
    await asyncio.wait_for(app(scope, receive, send), SOON_S)
    return sent


async def test_a_body_that_does_not_arrive_times_out(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tweezer.api.http.limits._LINGER_S", 0.01)
    sent = await exchange(app, [b"{"], ends="never")
    assert (sent.status, sent.reason) == (408, "body_too_slow")
    assert (b"connection", b"close") in sent.headers


async def test_a_slow_body_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tweezer.api.http.limits._LINGER_S", 0.01)
    app = create(RequestLimits(BODY_MAX, patience_s=0.1, least_rate=KIB))
    pieces = iter([b" "] * 1000)
    sent = await exchange(app, pieces, pause_s=0.02)
    assert (sent.status, sent.reason) == (408, "body_too_slow")
    assert next(pieces, None) is not None, "it did not wait for the whole body"


async def test_a_body_that_arrives_fast_enough_may_take_longer() -> None:
    app = create(RequestLimits(BODY_MAX, patience_s=0.1, least_rate=KIB))
    sent = await exchange(app, [b" " * KIB, b" " * KIB, GOOD], pause_s=0.07)
    assert sent.status == 200


async def test_a_client_that_leaves_during_its_body_leaves_no_state(app: FastAPI) -> None:
    sent = await exchange(app, [GOOD[:5]], ends="gone")
    assert (sent.status, sent.reason) == (400, "incomplete")
    assert not app.state.bodies._held


# --- packing


def packed(data: bytes, level: int = 9) -> bytes:
    return gzip.compress(data, level, mtime=0)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "broken_gzip"),
        (GOOD, "broken_gzip"),
        (packed(GOOD)[:-1], "broken_gzip"),
        (packed(GOOD)[:10], "broken_gzip"),
        (packed(GOOD)[:-8] + b"\0" * 8, "broken_gzip"),  # checksum and length
        (packed(GOOD) + b"x", "broken_gzip"),
        (packed(GOOD) + b"\0" * 100, "broken_gzip"),
        (packed(GOOD) + packed(b""), "broken_gzip"),
        (zlib.compress(GOOD), "broken_gzip"),
        (packed(packed(GOOD)), "not_json"),
    ],
)
async def test_a_body_that_is_not_one_whole_gzip_member_is_refused(
    http: httpx.AsyncClient, body: bytes, reason: str
) -> None:
    for content in (body, in_chunks(*(body[at : at + 1] for at in range(len(body))))):
        assert refusal(await post(http, content, Content_Encoding="gzip")) == (400, reason, "body")


@pytest.mark.parametrize("encoding", ["br", "deflate", "zstd", "gzip, gzip", "gzip,identity", "GZIP2", "\u00e9"])
async def test_other_content_encodings_are_refused(http: httpx.AsyncClient, encoding: str) -> None:
    headers = {"Content-Encoding": encoding.encode("latin-1"), "Content-Type": b"application/json"}
    answer = await http.post("/read/k", content=packed(GOOD), headers=headers)  # type: ignore[arg-type]
    assert refusal(answer) == (415, "content_encoding", "Content-Encoding")
    assert answer.headers["accept-encoding"] == "gzip"


async def test_a_body_may_unpack_to_the_limit_and_no_further(http: httpx.AsyncClient) -> None:
    body = GOOD + b" " * (UNPACKED_MAX - len(GOOD))
    assert (await post(http, packed(body), Content_Encoding="gzip")).json() == READ
    answer = await post(http, packed(body + b" "), Content_Encoding="gzip")
    assert refusal(answer) == (413, "unpacked_too_large", "body")
    assert f"{UNPACKED_MAX // KIB} KiB" in answer.text


async def test_a_large_body_with_an_extreme_compression_ratio_is_refused() -> None:
    app = create(RequestLimits(1 << 25), unpacked_max=1 << 25)
    large = GOOD + b" " * (UNPACKED_FREE - len(GOOD))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://h") as http:
        assert (await post(http, packed(large), Content_Encoding="gzip")).status_code == 200
        answer = await post(http, packed(large + b" "), Content_Encoding="gzip")
        assert refusal(answer) == (413, "unpacked_too_large", "body")
        assert (await post(http, large + b" ")).status_code == 200
        assert (await post(http, packed(large + b" ", level=0), Content_Encoding="gzip")).status_code == 200


def test_a_repeated_key_is_not_named_in_a_huge_body(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tweezer.api.http.bodies._first_repeated_key", None)  # it would take seconds of CPU time
    keys = b",".join(b'"%d":1' % number for number in range(100_000))
    with pytest.raises(RequestRejected, match="has an object with a repeated key") as caught:
        read(b'{"inner":[],"other":{' + keys + b',"5":2}}')
    assert (caught.value.code, caught.value.field) == ("repeated_key", "body")


async def test_a_gzip_bomb_is_never_unpacked_further_than_the_limit() -> None:
    app = create(RequestLimits(1 << 24), unpacked_max=1 << 20)
    bomb = packed(b"\0" * (1 << 28))  # a thousand times as large
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://h") as http:
        tracemalloc.start()
        try:
            answer = await post(http, bomb, Content_Encoding="gzip")
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert refusal(answer) == (413, "unpacked_too_large", "body")
    assert peak < 8 << 20


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "x"])
async def test_other_types_than_json_are_refused(http: httpx.AsyncClient, media_type: str) -> None:
    assert refusal(await post(http, GOOD, Content_Type=media_type)) == (415, "content_type", "Content-Type")


async def test_json_may_have_several_content_types(http: httpx.AsyncClient) -> None:
    for media_type in ("application/json; charset=utf-8", "Application/JSON", "application/json;"):
        assert (await post(http, GOOD, Content_Type=media_type)).status_code == 200
    assert (await http.post("/read/k", content=GOOD)).status_code == 200


async def test_one_key_cannot_fill_the_memory_with_bodies() -> None:
    release = asyncio.Event()
    spaces = packed(b" " * (UNPACKED_MAX - KIB))

    async def endless(chunk: bytes) -> AsyncIterator[bytes]:
        yield chunk
        await release.wait()
        yield b""

    slow = create(RequestLimits(BODY_MAX))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=slow), base_url="http://h") as http:
        holding = [asyncio.create_task(post(http, endless(spaces[:-1]), Content_Encoding="gzip")) for _ in range(2)]
        await until(lambda: slow.state.bodies._held["k"] == 2 * (UNPACKED_MAX - KIB))
        answer = await post(http, spaces, Content_Encoding="gzip")
        assert refusal(answer) == (429, "too_many_bodies", None)
        assert answer.headers["retry-after"] == "1"
        other = await http.post("/read/other", content=GOOD)
        assert other.status_code == 200
        release.set()
        for task in holding:
            assert (await task).status_code == 400
    assert not slow.state.bodies._held


# --- unknown fields


class Item(msgspec.Struct, frozen=True):
    runs: int | None = None
    values: dict[str, Any] | None = None


class Whole(msgspec.Struct, frozen=True):
    items: Annotated[list[Item], msgspec.Meta(max_length=50_000)] = []
    limits: Item | None = None


@pytest.mark.parametrize(
    ("document", "kind", "field", "problem"),
    [
        ({"item": []}, Whole, "item", "is not a known field (did you mean items?)"),
        ({"items": [{"runs": 1}, {"run": 2}]}, Whole, "items[1].run", "is not a known field (did you mean runs?)"),
        ({"items": [{"runs": "x"}], "zzz": 1}, Whole, "zzz", "is not a known field"),
        ({"limits": {"shots": 1}}, Whole, "limits.shots", "is not a known field"),
        ({"": 1}, Whole, "''", "is not a known field"),
        ({"x" * 3000: 1}, Whole, "'xxxxxxxxxxxx...xxxxxxxxxxxxx'", "is not a known field"),
        ([{}, {"values": {}, "value": 1}], list[Item], "jobs[1].value", "is not a known field (did you mean values?)"),
        ({"items": [{}] * 40_000 + [{"a": 1}]}, Whole, "items[40000].a", "is not a known field"),
    ],
)
def test_an_unknown_field_is_refused_with_the_name_that_may_be_meant(
    document: Any, kind: Any, field: str, problem: str
) -> None:
    data = json.dumps(document).encode()
    with pytest.raises(InvalidInput) as caught:
        read_json(data, kind, root="jobs" if isinstance(document, list) else "body")
    assert (caught.value.field, caught.value.problem) == (field, problem)


@pytest.mark.parametrize("document", [{"items": [{"values": {"any": 1}}], "limits": None}, {"limits": {}}, {}])
def test_known_fields_and_free_keys_are_accepted(document: Any) -> None:
    assert isinstance(read_json(json.dumps(document).encode(), Whole), Whole)


@pytest.mark.parametrize("document", [1, [], {"items": 1}, {"items": [1, {"run": 1}]}, {"limits": [], "items": {}}])
def test_a_value_of_another_kind_is_refused_too(document: Any) -> None:
    with pytest.raises(InvalidInput):
        read_json(json.dumps(document).encode(), Whole)


def test_unknown_fields_are_ignored_where_that_is_allowed() -> None:
    assert read_json(b'{"items":[{"a":1}],"b":2}', Whole, is_open=True) == Whole([Item()])


# --- JSON


def read(text: bytes) -> Outer:
    return read_json(text, Outer)


def refused(text: bytes) -> tuple[str, str | None]:
    with pytest.raises((RequestRejected, InvalidInput)) as caught:
        read(text)
    error = caught.value
    assert isinstance(error, RequestRejected | InvalidInput)
    return error.code, error.field


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"   ",
        b"{",
        b'{"inner":[]',
        b'{"inner":[]}x',
        b'{"inner":[],}',
        b"{'inner':[]}",
        b'{"inner":[{"number":01}]}',
        b'{"inner":[],"text":"\xff"}',
        b'{"\xff":1,"inner":[]}',
        b'{"inner":[],"text":"\\x41"}',
        b'{"inner":[],"text":"',
        b'{"inner":[],"text":"\\',
        b'\\"[[[',
        b"\xef\xbb\xbf{}",
        '{"inner":[]}'.encode("utf-16"),
        b"\x00",
        packed(GOOD),
    ],
)
def test_a_body_that_is_not_json_is_refused(text: bytes) -> None:
    assert refused(text) == ("not_json", "body")


@pytest.mark.parametrize(
    ("text", "field", "problem"),
    [
        (b'{"inner":[{},NaN]}', "inner[1]", "is NaN, which is not valid JSON"),
        (b'{"inner":[{"anything":{"a":Infinity}}]}', "inner[0].anything.a", "is Infinity"),
        (b'{"inner":[{"anything":{"a":-Infinity}}]}', "inner[0].anything.a", "is -Infinity"),
        (b'{"inner":[{"anything":{"a":[0,-1e999]}}]}', "inner[0].anything.a[1]", "does not fit into 64 bits"),
        (b'{"inner":[],"text":"\xed\xa0\x80"}', "text", "half of a surrogate pair"),
        (b'{"inner":[],"text":"\\ud800"}', "text", "half of a surrogate pair"),
        (b'{"inner":[],"text":"\\udc00\\ud800"}', "text", "half of a surrogate pair"),
        (b'{"inner":[{"anything":{"\\ud800":1}}]}', "inner[0].anything.'\\ud800'", "half of a surrogate pair"),
        (b'{"inner":[{"anything":["\\n"]}],"text":"a\0\x1b"}', "text", "has an unescaped control character"),
        (b'{"inner":[],"text":"\n"}', "text", "has an unescaped control character"),
        (b'{"inner":[],"unknown":NaN}', "unknown", "is NaN"),
        (b"[NaN]", "body[0]", "is NaN"),
    ],
)
def test_a_value_that_json_cannot_represent_is_refused_with_its_field(text: bytes, field: str, problem: str) -> None:
    assert refused(text) == ("not_json", field)
    with pytest.raises(RequestRejected, match=problem):
        read(text)


def test_the_field_is_not_searched_in_a_long_invalid_text() -> None:
    long = b'{"inner":[],"text":NaN,"padding":"%s"}'
    assert refused(long % (b"a" * 1000)) == ("not_json", "text")
    assert refused(long % (b"a" * (1 << 20))) == ("not_json", "body")


@pytest.mark.parametrize(
    ("text", "field", "problem"),
    [
        (b"[]", "body", "expected object, got array"),
        (b"null", "body", "expected object, got null"),
        (b"7", "body", "expected object, got int"),
        (b"{}", "inner", "is missing"),
        (b'{"inner":null}', "inner", "expected array, got null"),
        (b'{"inner":{}}', "inner", "expected array, got object"),
        (b'{"inner":[{},7]}', "inner[1]", "expected object, got int"),
        (b'{"inner":[{"number":"7"}]}', "inner[0].number", "expected int | null, got str"),
        (b'{"inner":[{"number":1.5}]}', "inner[0].number", "expected int | null, got float"),
        (b'{"inner":[{"number":true}]}', "inner[0].number", "expected int | null, got bool"),
        (b'{"inner":[{"anything":[]}]}', "inner[0].anything", "expected object | null, got array"),
        (b'{"inner":[],"text":["a"]}', "text", "expected str | null, got array"),
    ],
)
def test_a_value_of_another_type_is_refused_by_its_path(text: bytes, field: str, problem: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read(text)
    assert (caught.value.field, caught.value.problem) == (field, problem)


def test_the_root_of_a_body_can_have_a_name() -> None:
    with pytest.raises(InvalidInput, match=r"jobs\[1\].number: expected"):
        read_json(b'[{},{"number":"x"}]', list[Inner], root="jobs")
    with pytest.raises(InvalidInput, match=r"jobs: expected array, got object"):
        read_json(b"{}", list[Inner], root="jobs")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (b'{"inner":[],"inner":[]}', "inner"),
        (b'{"inner":[],"inn\\u0065r":[]}', "inner"),
        (b'{"inner":[{"number":1,"number":1}]}', "number"),
        (b'{"inner":[{"anything":{"a":{"b":1,"c":2,"b":3}}}]}', "b"),
        (b'{"inner":[],"unknown":{"x":1,"x":1}}', "x"),
        (b'{"inner":[],"":1,"":2}', "''"),
        (b'{"inner":[],"\\n":1,"\\n":2}', "'\\n'"),
    ],
)
def test_a_key_that_is_given_twice_is_refused(text: bytes, key: str) -> None:
    assert refused(text) == ("repeated_key", key)


def test_a_long_repeated_key_is_shortened() -> None:
    name = b'"' + b"k" * 100_000 + b'":1'
    code, field = refused(b'{"inner":[],' + name + b"," + name + b"}")
    assert code == "repeated_key"
    assert field is not None
    assert len(field) < 100


def nested(depth: int) -> bytes:
    levels = depth - 4  # the document, the list, the struct, and the dictionary around them
    return b'{"inner":[{"anything":{"a":' + b"[" * levels + b"]" * levels + b"}}]}"


def test_nesting_is_bounded() -> None:
    read(nested(MAX_DEPTH))
    assert refused(nested(MAX_DEPTH + 1)) == ("nested_too_deeply", "body")


@pytest.mark.parametrize("text", [b"[" * 1_000_000, b'{"a":' * 300_000, nested(100_000), b'[{"":' * 200_000])
def test_very_deep_nesting_is_refused_quickly(text: bytes) -> None:
    assert refused(text) == ("nested_too_deeply", "body")


@pytest.mark.parametrize(
    "content", ["[" * 1000, "{[" * 1000, '\\"[' * 1000, "\\\\", "[\\\\", '\\\\\\"[', "]" * 1000, ":,:,", "0" * 1000]
)
def test_brackets_in_strings_are_not_counted(content: str) -> None:
    text = '{"inner":[],"text":"' + content + '"}'
    assert read(text.encode()).text == json.loads(text)["text"]


def test_the_number_of_values_is_bounded() -> None:
    most = b'{"inner":[{"anything":{"a":[' + b"0," * (MAX_VALUES - 6) + b"0]}}]}"
    assert len((read(most).inner[0].anything or {})["a"]) == MAX_VALUES - 5
    assert refused(most.replace(b"0]", b"0,0,0]")) == ("too_many_values", "body")


@pytest.mark.parametrize("item", [b"{},", b"[],", b'"",', b'"[",', b'"\\"",'])
def test_many_small_values_are_refused_in_any_notation(item: bytes) -> None:
    text = b'{"inner":[{"anything":{"a":[' + item * (MAX_VALUES + 1) + b"0]}}]}"
    assert refused(text) == ("too_many_values", "body")


@pytest.mark.parametrize("digits", [b"9", b"-9", b"0.", b"1e", b"1E+"])
def test_long_numbers_are_refused_unparsed(digits: bytes) -> None:
    text = b'{"inner":[{"anything":{"a":' + digits + b"0" * MAX_NUMBER_LENGTH + b"}}]}"
    assert refused(text) == ("number_too_long", "body")
    with cpu_time_below(2):
        assert refused(text.replace(b"00", b"00" * 100_000)) == ("number_too_long", "body")


def test_the_longest_valid_number_is_accepted() -> None:
    assert (read(b'{"inner":[{"anything":{"a":-1.7976931348623157e+308}}]}').inner[0].anything or {})["a"] < -1e308
    assert read(b'{"inner":[{"number":' + b"1" * 30 + b"}]}").inner[0].number == int("1" * 30)


@pytest.mark.parametrize("filler", [b'""', b'"[","', b"\\\\", b'\\"', b"[]", b"{}", b'"a":', b"0", b"\xff"])
def test_hostile_text_is_scanned_in_bounded_time(filler: bytes) -> None:
    text = filler * ((16 << 20) // len(filler))
    with cpu_time_below(5):
        refused(text)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def depth_of(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth_of, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth_of, value), default=0)
    return 0


@given(value=json_values, ascii_only=st.booleans(), limit=st.integers(0, 5), step=st.integers(1, 40))
def test_the_scan_of_the_text_is_exact(value: Any, ascii_only: bool, limit: int, step: int) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=1).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bodies, "MAX_DEPTH", limit)
        patch.setattr(bodies, "_STEP", step)
        if depth_of(value) > limit:
            with pytest.raises(RequestRejected, match="nested more than"):
                read_json(text, Any)
        else:
            assert read_json(text, Any) == value


@given(text=st.binary(max_size=200) | st.text(alphabet='{}[]",:\\0e-', max_size=60).map(str.encode))
def test_any_bytes_are_accepted_or_refused(text: bytes) -> None:
    try:
        read(text)
    except (RequestRejected, InvalidInput) as error:
        assert error.field


async def test_large_bodies_are_decoded_in_a_thread(http: httpx.AsyncClient) -> None:
    large = create(RequestLimits(1 << 22), unpacked_max=1 << 22)
    body = json.dumps({"inner": [{"number": number} for number in range(30_000)]}).encode()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=large), base_url="http://h") as client:
        answers = await asyncio.gather(*(client.post(f"/read/{n}", content=body) for n in range(4)))
    assert [len(answer.json()["inner"]) for answer in answers] == [30_000] * 4


def test_the_openapi_document_gets_the_schema_of_a_body() -> None:
    docs = describe_route(None, body=list[Inner])["openapi_extra"]
    content = docs["requestBody"]["content"]["application/json"]["schema"]
    assert content == {"type": "array", "items": {"$ref": "#/components/schemas/Inner"}}
    schemas = DescribedAPI().openapi()["components"]["schemas"]
    assert set(schemas["Inner"]["properties"]) == {"number", "anything"}


# --- rates


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def granted(rates: RateLimiter, key: str, tries: int) -> int:
    count = 0
    for _ in range(tries):
        try:
            rates.spend(key)
        except RequestRejected:
            continue
        count += 1
    return count


def test_a_key_has_its_burst_and_then_its_rate() -> None:
    clock = Clock()
    rates = RateLimiter(10, 40, clock=clock)
    assert granted(rates, "k", 1000) == 40
    clock.now += 1
    assert granted(rates, "k", 1000) == 10
    clock.now += 1000
    assert granted(rates, "k", 1000) == 40


def test_keys_do_not_share_a_bucket() -> None:
    rates = RateLimiter(1, 5, clock=Clock())
    assert granted(rates, "a", 10) == 5
    assert granted(rates, "b", 10) == 5


def test_the_response_to_too_many_requests_has_a_retry_after() -> None:
    clock = Clock()
    rates = RateLimiter(0.5, 1, clock=clock)
    rates.spend("k")
    with pytest.raises(RequestRejected) as caught:
        rates.spend("k")
    assert (caught.value.status, caught.value.code) == (429, "too_many_requests")
    assert caught.value.headers == {"Retry-After": "2"}
    clock.now += 2
    rates.spend("k")


@given(per_s=st.floats(0.01, 10_000), burst=st.integers(1, 500), pauses=st.lists(st.floats(0, 10), max_size=30))
def test_no_key_gets_more_than_its_rate_and_burst(per_s: float, burst: int, pauses: list[float]) -> None:
    clock = Clock()
    rates = RateLimiter(per_s, burst, clock=clock)
    count = granted(rates, "k", burst)
    assert count == burst
    for pause in pauses:
        clock.now += pause
        count += granted(rates, "k", 3)
    assert count <= burst + per_s * (clock.now - Clock.now) * (1 + 1e-6) + 1e-3


def test_idle_keys_are_forgotten() -> None:
    clock = Clock()
    rates = RateLimiter(1, 1, clock=clock)
    for number in range(30_000):
        rates.spend(f"k{number}")
        clock.now += 0.001
    assert len(rates._full_at) <= 20_001
    with pytest.raises(RequestRejected):
        rates.spend("k29999")


# --- the page


def test_every_reason_to_refuse_is_in_the_documentation() -> None:
    root = Path(__file__).parents[3]
    sources = "\n".join(file.read_text() for file in (root / "src/tweezer/api").rglob("*.py"))
    reasons = set(re.findall(r'(?:RequestRejected|_refuse|failure)\(\s*\d{3},\s*"(\w+)"', sources))
    assert {"too_many_jobs", "body_too_slow", "head_too_large", "unauthorized"} <= reasons
    page = "".join((root / "docs" / page).read_text() for page in ("guides/http-api.md", "reference/errors.md"))
    assert {reason for reason in reasons if f"`{reason}`" not in page} == set()


def test_the_limits_on_the_page_are_those_of_the_code() -> None:
    page = (Path(__file__).parents[3] / "docs/guides/http-api.md").read_text()
    limits = RequestLimits(0)
    for row in (
        f"| {HEAD_MAX >> 10} KiB | 431",
        f"| {HEAD_S:g} s | the connection",
        f"| body of a log-in | {FORM_MAX >> 10} KiB | 413",
        f"| {limits.url_max:,} characters | 414",
        f"| {limits.parameters_max} | 400",
        f"| {limits.patience_s:g} s, and a second more for each {limits.least_rate >> 10} KiB | 408",
        f". Above {UNPACKED_FREE >> 20} MiB, also {MAX_RATIO} times the size that was sent | 413",
        f"| {MAX_DEPTH} levels | 400",
        f"| {MAX_VALUES:,} | 400",
        f"| {MAX_NUMBER_LENGTH} characters | 400",
        f"| {MAX_JOBS_PER_CALL:,} | 413",
        f"| {MAX_SEQUENCE_BYTES >> 20} MiB | 413",
    ):
        assert row in page
