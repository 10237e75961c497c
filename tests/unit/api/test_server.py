"""The address of the API, and what it needs to start."""

from __future__ import annotations

import asyncio
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI
from pydantic import ValidationError
from tests.support.waiting import PATIENCE_S

from tweezer.api.app import create_app, run_api
from tweezer.api.http import server as http_server
from tweezer.api.http.server import is_loopback, listen
from tweezer.duties import Duties
from tweezer.ledger.database import Database
from tweezer.model.errors import InvalidInput, TweezerError
from tweezer.settings import ApiSettings, DatabaseSettings, RedisSettings, Settings


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "localhost", "LocalHost"])
def test_the_loopback_is_known_as_such(host: str) -> None:
    with listen(host, 0) as listener:
        assert is_loopback(listener)
        assert listener.family is socket.AF_INET


@pytest.mark.parametrize("host", ["0.0.0.0", ""])  # noqa: S104  # the subject of the test
def test_every_address_may_be_listened_on(host: str) -> None:
    with listen(host or "0.0.0.0", 0) as listener:  # noqa: S104  # the same
        assert not is_loopback(listener)


def test_of_several_addresses_of_a_name_that_of_ipv4_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(socket.AF_INET6, 1, 6, "", ("::1", 0, 0, 0)), (socket.AF_INET, 1, 6, "", ("127.0.0.1", 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with listen("here", 0) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"


@pytest.mark.parametrize(
    "host",
    ["no-such-host.invalid", "10.0.0.1.2", "*", " 127.0.0.1", "[::1]", "127.0.0.1\n", "\x00", "x" * 5000],
)
def test_an_invalid_host_is_named(host: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        listen(host, 0)
    assert caught.value.field == "api_host"
    assert len(caught.value.message) < 300


def test_an_address_of_another_machine_is_named() -> None:
    with pytest.raises(InvalidInput) as caught:
        listen("192.0.2.1", 0)  # an address for documentation (RFC 5737)
    assert caught.value.field == "api_host"


def test_a_port_that_is_taken_is_named() -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InvalidInput) as caught:
            listen("127.0.0.1", port)
    assert caught.value.field == "api_port"
    assert str(port) in caught.value.message


def test_an_invalid_redis_url_is_named() -> None:
    with pytest.raises(ValidationError, match=r"RedisSettings\nurl") as caught:
        Settings(redis=RedisSettings(url="redis://u:secret@127.0.0.1:x/0"))
    assert "secret" not in str(caught.value)


def test_an_invalid_database_url_is_named() -> None:
    with pytest.raises(InvalidInput) as caught:
        create_app(Settings(database=DatabaseSettings(url="mysql://u:secret@h/x")))
    assert caught.value.field == "database_url"
    assert "secret" not in caught.value.message


def test_the_api_does_not_start_on_a_ledger_without_tables(tmp_path: Path) -> None:
    with pytest.raises(TweezerError) as caught:
        run_api(Settings(data_dir=tmp_path, api=ApiSettings(port=0)))
    assert caught.value.code == "schema"
    assert "tweezer db upgrade" in caught.value.message


@pytest.mark.parametrize("url", ["", "http://h", "https://q.example.org:8443/tweezer"])
def test_a_public_url_is_accepted(url: str) -> None:
    assert Settings(api=ApiSettings(public_url=url)).api.public_url == url


@pytest.mark.parametrize("url", ["q.example.org", "ftp://h", "https://", "https://h/?a=b", "https://h/#x"])
def test_an_invalid_public_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="must be a URL"):
        Settings(api=ApiSettings(public_url=url))


async def test_the_application_closes_what_it_opened(ledger: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[Database] = []
    close = Database.close

    def note(database: Database) -> None:
        closed.append(database)
        close(database)

    monkeypatch.setattr(Database, "close", note)
    own = create_app(Settings(database=DatabaseSettings(url=str(ledger.engine.url))))
    async with own.router.lifespan_context(own):
        assert own.state.database not in closed
    assert own.state.database in closed
    assert len(closed) == 2

    lent = create_app(Settings(), database=ledger)
    async with lent.router.lifespan_context(lent):
        pass
    assert ledger not in closed


def test_a_signal_ends_the_server_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "_TICK_S", 600.0)
    holds: Any = None  # nothing is held
    server = http_server._Server(uvicorn.Config(FastAPI(), log_config=None), holds, Duties(), "http://here")

    async def end_by_signal() -> None:
        looping = asyncio.create_task(server.main_loop())
        await asyncio.sleep(0)  # until it waits
        await asyncio.to_thread(server.handle_exit, signal.SIGTERM, None)
        await asyncio.wait_for(looping, PATIENCE_S)

    asyncio.run(end_by_signal())
    assert server.should_exit
