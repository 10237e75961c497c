"""Where the API may listen."""

from __future__ import annotations

import socket

import pytest

from tweezer.api.app import create_app, run_api
from tweezer.api.serve import listen, loopback_address
from tweezer.model.errors import InvalidInput
from tweezer.settings import Settings


@pytest.mark.parametrize(
    ("host", "address"),
    [("127.0.0.1", "127.0.0.1"), ("127.8.9.10", "127.8.9.10"), ("::1", "::1"), ("0:0:0:0:0:0:0:1", "::1")],
)
def test_an_address_of_the_loopback_is_taken(host: str, address: str) -> None:
    assert loopback_address(host)[1] == address


@pytest.mark.parametrize(
    "host",
    [
        "0.0.0.0",  # noqa: S104  # refused
        "::",
        "10.0.0.1",
        "::ffff:10.0.0.1",
        "::ffff:0.0.0.0",
        "fe80::1",
        "127.1",
        "0",
        "*",
        " 127.0.0.1",
        "[::1]",
        "example.org",
        "localhost.example.org",
        "ip6-localhost",
        "127.0.0.1\n",
        "\x00",
        "x" * 5000,
    ],
)
def test_every_other_host_is_refused(host: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        run_api(Settings(api_host=host, api_port=0))
    assert caught.value.field == "api_host"


def test_localhost_is_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[str] = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(2, 1, 6, "", (address, 0)) for address in answers])
    answers[:] = ["::1", "127.0.0.1"]
    assert loopback_address("LocalHost") == (socket.AF_INET, "127.0.0.1")
    answers[:] = ["::1"]
    assert loopback_address("localhost") == (socket.AF_INET6, "::1")
    for hijacked in (["10.0.0.1"], ["127.0.0.1", "10.0.0.1"], []):
        answers[:] = hijacked
        with pytest.raises(InvalidInput):
            loopback_address("localhost")


def test_a_port_that_is_taken_is_named() -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InvalidInput) as caught:
            listen("127.0.0.1", port)
    assert caught.value.field == "api_port"
    assert str(port) in caught.value.message


def test_a_url_that_redis_does_not_take_is_named() -> None:
    with pytest.raises(InvalidInput) as caught:
        create_app(Settings(redis_url="redis://u:secret@127.0.0.1:x/0"))
    assert caught.value.field == "url"
    assert "secret" not in caught.value.message
