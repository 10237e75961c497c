"""The client of a QPU's API: how it reads responses, junk above all, and its options."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.support.effort import effort

from tweezer.adapters.remote.errors import (
    RemoteError,
    RemoteRefused,
    RemoteUnreachable,
    SubmitDeferred,
    SubmitRefused,
    SubmitTurnedAway,
    SubmitUncertain,
    TooLate,
    UnknownRemoteJob,
)
from tweezer.adapters.remote.http import HttpAnswer, make_excerpt
from tweezer.adapters.remote.options import KeycloakOptions, QpuOptions
from tweezer.adapters.remote.qpu.api import (
    QpuApi,
    QpuJob,
    SubmitContext,
    _OperationalStatus,
    _read_submitted,
    _System,
    read_data,
)
from tweezer.model.errors import InvalidInput
from tweezer.model.lifecycle import JobStatus

CONTEXT = SubmitContext("batch", "job")
SECRET = "s3cr3t-of-ours"
KINDS: tuple[type[Any], ...] = (QpuJob, _OperationalStatus, _System, dict)

JOB = {"uid": 7, "status": "PENDING", "context": {"pasqman_job_id": "job"}}

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
words = st.sampled_from(
    ["data", "status", "code", "message", "uid", "specs", "operational_status", "context", "result"]
)
near = st.dictionaries(words, anything | st.dictionaries(words, anything, max_size=4), max_size=5)
bodies = st.binary(max_size=200) | (anything | near).map(lambda value: json.dumps(value).encode())
statuses = st.integers(100, 599)


def answer(status: int, /, **envelope: Any) -> HttpAnswer:
    return HttpAnswer("GET /x", status, json.dumps(envelope).encode())


# --- reading answers


@given(status=statuses, body=bodies)
@example(status=200, body=b"[" * 100_000)
@example(status=200, body=b'{"data": ' + b"9" * 5000 + b"}")
def test_every_response_is_read_or_raises_an_error_of_the_qpu(status: int, body: bytes) -> None:
    for kind in KINDS:
        with contextlib.suppress(RemoteUnreachable, RemoteRefused):
            read_data(HttpAnswer("GET /x", status, body), kind)
            assert 200 <= status < 300


@given(status=statuses, body=bodies)
def test_an_answer_to_a_submit_is_a_job_a_refusal_or_open(status: int, body: bytes) -> None:
    try:
        job = _read_submitted(HttpAnswer("POST /jobs", status, body), CONTEXT)
    except (SubmitRefused, SubmitDeferred):
        assert 400 <= status < 500 or (200 <= status < 300 and 400 <= json.loads(body)["code"] < 500)
    except SubmitUncertain as error:
        assert not error.retryable
        assert not (400 <= status < 500 and status not in (408, 499))
    else:
        assert job.pasqman_job_id in (None, CONTEXT.pasqman_job_id)


@given(result=st.text() | anything.map(json.dumps) | near.map(lambda value: json.dumps({"counter": value})))
def test_a_result_is_a_counter_or_junk(result: str) -> None:
    try:
        counter = QpuJob(1, JobStatus.DONE, result=result).counter()
    except RemoteUnreachable:
        return
    assert counter is not None
    assert all(count >= 0 for count in counter.values())


@pytest.mark.parametrize(
    ("result", "problem"),
    [
        ('{"counter": {"01": 2, "1": 3}}', "differ in length"),
        ('{"counter": {"0x": 2}}', "not a counter of bitstrings"),
        ('{"counter": {"01": -2}}', "not a counter of bitstrings"),
        ('{"counts": {}}', "counter"),
        ("", "result of job 1"),
    ],
)
def test_an_invalid_counter_is_reported(result: str, problem: str) -> None:
    with pytest.raises(RemoteUnreachable, match=problem):
        QpuJob(1, JobStatus.DONE, result=result).counter()


def test_a_job_without_a_result_has_no_counter() -> None:
    assert QpuJob(1, JobStatus.RUNNING).counter() is None
    assert QpuJob(1, JobStatus.DONE, result='{"counter": {"01": 3, "10": 4}}').counter() == {"01": 3, "10": 4}


def test_specs_keep_numbers_that_only_pulser_writes() -> None:
    body = b'{"status": "success", "code": 200, "data": {"specs": {"name": "X", "max": Infinity}}}'
    assert read_data(HttpAnswer("GET /system", 200, body), _System).specs["max"] == float("inf")


def test_an_unknown_status_is_reported_with_its_text() -> None:
    with pytest.raises(RemoteUnreachable, match=r"GET /x: .*is not valid \(.*'MELTED'.*\): .*MELTED"):
        read_data(answer(200, status="success", data={"uid": 1, "status": "MELTED"}), QpuJob)


def test_a_page_of_a_proxy_is_reported_shortened_in_one_line() -> None:
    page = b"<html>\n" + b"<p>Welcome to the gateway</p>\n" * 100
    with pytest.raises(RemoteUnreachable, match="check base_url") as raised:
        read_data(HttpAnswer("GET /jobs/1", 200, page), QpuJob)
    assert len(raised.value.message) < 400
    assert "\n" not in raised.value.message
    assert make_excerpt(b"\x1b[31m\x00") == "�[31m�"
    assert make_excerpt(b"") == "(empty)"


@pytest.mark.parametrize("status", [200, 400])
def test_a_refusal_with_status_200_is_a_refusal(status: int) -> None:
    with pytest.raises(RemoteRefused) as raised:
        read_data(answer(status, code=400, data={"code": "PRG-3003", "data": {"status": "DONE"}}), QpuJob)
    assert (raised.value.status, raised.value.remote_code) == (400, "PRG-3003")


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, SubmitRefused),
        (401, SubmitDeferred),
        (408, SubmitUncertain),
        (422, SubmitRefused),
        (429, SubmitDeferred),
        (301, SubmitUncertain),
        (500, SubmitUncertain),
        (503, SubmitUncertain),
        (204, SubmitUncertain),
    ],
)
def test_the_http_status_shows_whether_a_submit_was_executed(status: int, kind: type[RemoteError]) -> None:
    with pytest.raises(kind) as raised:
        _read_submitted(answer(status, status="fail"), CONTEXT)
    assert type(raised.value) is kind


@pytest.mark.parametrize("status", [400, 403, 404, 405, 422])
def test_a_refusal_without_the_envelope_comes_from_a_proxy_and_is_retryable(status: int) -> None:
    with pytest.raises(SubmitTurnedAway, match=str(status)):
        _read_submitted(HttpAnswer("POST /jobs", status, b"<html>Not Found</html>"), CONTEXT)
    with pytest.raises(SubmitRefused) as raised:
        _read_submitted(answer(status, status="fail", message="no"), CONTEXT)
    assert type(raised.value) is SubmitRefused


def test_a_job_that_is_too_large_for_a_proxy_is_refused() -> None:
    with pytest.raises(SubmitRefused) as raised:
        _read_submitted(HttpAnswer("POST /jobs", 413, b"<html>Request Entity Too Large</html>"), CONTEXT)
    assert type(raised.value) is SubmitRefused


def test_a_response_about_another_job_leaves_the_submit_open() -> None:
    job = {**JOB, "context": {"pasqman_job_id": "another client's"}}
    with pytest.raises(SubmitUncertain, match="another job, another client's instead of job"):
        _read_submitted(answer(200, status="success", data=job), CONTEXT)


# --- over a socket


Answering = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def served(answering: Answering) -> AsyncIterator[str]:
    """Run a server that reads a request and then does this; yield its URL."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            for line in head.lower().split(b"\r\n"):
                if line.startswith(b"content-length:"):
                    head += await reader.readexactly(int(line.split(b":")[1]))
            await answering(head, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await server.wait_closed()


def http(status: int, body: bytes) -> bytes:
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (status, len(body), body)


async def submit(api: QpuApi) -> QpuJob:
    return await api.submit(nb_run=1, pulser_sequence="{}", context=CONTEXT)


@given(received=st.binary(max_size=300) | bodies.map(lambda body: http(200, body)))
@settings(max_examples=effort(short=20, full=60), deadline=None)
def test_junk_on_the_wire_is_an_error_of_the_qpu_and_leaves_a_submit_open(received: bytes) -> None:
    async def answering(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(received)
        await writer.drain()

    async def scene() -> None:
        options = {"retry_s": 0.0, "read_timeout_s": 2.0, "submit_timeout_s": 2.0}
        async with served(answering) as url, QpuApi(QpuOptions(base_url=url, **options)) as api:  # type: ignore[arg-type]
            with contextlib.suppress(RemoteUnreachable, RemoteRefused):
                await api.get_job(1)
            with contextlib.suppress(SubmitUncertain, SubmitRefused, SubmitDeferred):
                await submit(api)

    asyncio.run(scene())


async def test_a_submit_is_sent_once_with_any_response() -> None:
    requests: list[bytes] = []

    async def answering(request: bytes, writer: asyncio.StreamWriter) -> None:
        requests.append(request)

    async with served(answering) as url, QpuApi(QpuOptions(base_url=url)) as api:
        with pytest.raises(SubmitUncertain, match="did not answer the submit"):
            await submit(api)
    (request,) = requests
    assert request.startswith(b"POST /api/v1/jobs HTTP/1.1\r\n")
    body = json.loads(request.partition(b"\r\n\r\n")[2])
    context = {"batch_id": "batch", "pasqman_job_id": "job"}
    assert body == {"nb_run": 1, "pulser_sequence": "{}", "context": context}


async def test_each_refusal_of_a_cancel_is_recognised() -> None:
    answers = iter(
        [
            http(400, json.dumps({"code": "3003", "data": {"status": "DONE"}}).encode()),
            http(200, json.dumps({"code": 400, "data": {"code": "3003"}}).encode()),
            http(400, b'{"detail": "Bad request"}'),
            http(403, b""),
            http(404, json.dumps({"status": "fail", "code": "404", "data": None}).encode()),
        ]
    )

    async def answering(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(next(answers))

    async with served(answering) as url, QpuApi(QpuOptions(base_url=url)) as api:
        for kind in (TooLate, TooLate, UnknownRemoteJob, RemoteRefused, UnknownRemoteJob):
            with pytest.raises(kind) as raised:
                await api.cancel(1)
            assert type(raised.value) is kind


@pytest.mark.parametrize("page", [b"<html>404 Not Found</html>", b'{"message": "no Route matched"}', b""])
async def test_a_404_of_a_proxy_has_no_meaning_for_a_job(page: bytes) -> None:
    async def answering(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(http(404, page))

    async with served(answering) as url, QpuApi(QpuOptions(base_url=url, retry_s=0)) as api:
        for call in (api.get_job(1), api.get_job(1, patient=False), api.cancel(1)):
            with pytest.raises(RemoteUnreachable):
                await call


async def test_an_endless_response_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(QpuApi, "max_answer_bytes", 1 << 20)

    async def answering(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        while True:
            writer.write(b"x" * 65_536)
            await writer.drain()

    async with served(answering) as url, QpuApi(QpuOptions(base_url=url, retry_s=0)) as api:
        with pytest.raises(RemoteUnreachable, match="longer than"):
            await api.get_job(1)


async def test_a_server_that_echoes_everything_gets_no_secret_into_an_error() -> None:
    token = "t0ken-of-ours"

    async def answering(request: bytes, writer: asyncio.StreamWriter) -> None:
        if request.startswith(b"POST /realms/"):
            granted = {"access_token": token, "expires_in": 60}
            refused = {"error": SECRET, "error_description": request.decode()}
            writer.write(http(400, json.dumps(refused).encode()) if answers.pop() else http(200, _json(granted)))
        else:
            writer.write(http(400, b"your request: " + request[-150:]))

    async with served(answering) as url:
        keycloak = KeycloakOptions(url, "r", "id", client_secret=SECRET)
        for refuse in (False, True):
            answers = [refuse] * 3
            async with QpuApi(QpuOptions(base_url=url, keycloak=keycloak), agent="") as api:
                for call in (api.get_status(), submit(api)):
                    with pytest.raises(RemoteError) as raised:
                        await call
                    shown = f"{raised.value!r} {raised.value.__cause__!r} {api._options!r}"
                    assert token not in shown
                    assert SECRET not in shown


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


# --- options


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://qpu:4300", "http://qpu:4300/api/v1"),
        ("https://qpu.example.org/", "https://qpu.example.org/api/v1"),
        ("http://qpu:8005/api/v1/", "http://qpu:8005/api/v1"),
    ],
)
def test_the_base_url_may_omit_its_path(url: str, expected: str) -> None:
    assert QpuOptions(base_url=url).api_url == expected


@pytest.mark.parametrize("url", ["", "qpu:4300", "ftp://qpu", "http://", "http://qpu:port", "http://qpu/?x=1"])
def test_an_invalid_url_is_refused(url: str) -> None:
    with pytest.raises(InvalidInput, match="base_url: "):
        QpuApi(QpuOptions(base_url=url))


def test_credentials_in_the_url_are_refused_without_showing_them() -> None:
    with pytest.raises(InvalidInput, match="base_url: must not contain a user or a password") as raised:
        QpuApi(QpuOptions(base_url=f"http://me:{SECRET}@qpu"))
    assert SECRET not in str(raised.value)


def test_a_secret_is_required_from_a_file_or_the_option(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(f"{SECRET}\n")
    assert KeycloakOptions("http://k", "r", "id", client_secret_file=str(file)).secret() == SECRET
    with pytest.raises(InvalidInput, match=r"keycloak\.client_secret: is missing"):
        QpuApi(QpuOptions(base_url="http://qpu", keycloak=KeycloakOptions("http://k", "r", "id")))
    with pytest.raises(InvalidInput, match=r"keycloak.client_secret_file: cannot be read: .*No such file"):
        KeycloakOptions("http://k", "r", "id", client_secret_file=str(tmp_path / "none")).secret()


def test_a_ca_file_without_verification_is_a_contradiction() -> None:
    with pytest.raises(InvalidInput, match="tls_ca_file: cannot be combined with tls_verify = false"):
        QpuApi(QpuOptions(base_url="https://qpu", tls_verify=False, tls_ca_file="/x.pem"))
