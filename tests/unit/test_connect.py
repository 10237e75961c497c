"""Which URL, key and options connect accepts; nothing is contacted."""

from __future__ import annotations

from pathlib import Path

import pytest

import tweezer
from tweezer.transports.http_session import HttpSession, check_api_url

KEY = "twz_secret"


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("REDIS_URL", "API_URL", "API_KEY", "API_KEY_FILE", "API_CA_FILE", "PROJECT_ID"):
        monkeypatch.delenv(f"TWEEZER_{name}", raising=False)
    monkeypatch.setenv("TWEEZER_DATA_DIR", str(tmp_path))


@pytest.mark.parametrize(
    "url",
    [
        "https://tweezer.lab",
        "https://tweezer.lab:8443/some/prefix/",
        "HTTPS://tweezer.lab",
        "http://127.0.0.1:8000",
        "http://[::1]:8000",
        "http://localhost:8000/tweezer",
    ],
)
def test_urls_of_an_api(url: str) -> None:
    queue = tweezer.connect_async(url, key=KEY)
    assert repr(queue) == "<queue of the projects of a key>"
    assert KEY not in repr(queue.transport.address)


@pytest.mark.parametrize("url", ["HTTPS://tweezer.lab/x/", "https://tweezer.lab/x\n", "https://tweezer.lab/x "])
def test_a_url_is_used_in_its_usual_form(url: str) -> None:
    session = HttpSession(check_api_url(url), KEY)
    assert session.url == "https://tweezer.lab/x"
    assert session._tls is not None


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("http://tweezer.lab", "plain http would send the key to tweezer.lab unencrypted"),
        ("http://10.0.0.1", "plain http"),
        ("http://127.0.0.1.example.org", "plain http"),
        ("http://localhost.example.org", "plain http"),
        ("http://0.0.0.0:8000", "plain http"),
        ("https://user:password@tweezer.lab", "must not contain a user name or a password"),
        ("https://user@tweezer.lab", "must not contain a user name or a password"),
        ("http://127.0.0.1@tweezer.lab", "must not contain a user name or a password"),
        ("https://", "has no valid host"),
        ("https:///path", "has no valid host"),
        ("https://tweezer .lab", "has no valid host"),
        ("https://tweezer.lab?x=1", "must not have a query"),
        ("https://tweezer.lab#x", "must not have a query"),
        ("https://tweezer.lab:port", "is not a valid URL"),
        ("https://tweezer.lab:99999", "is not a valid URL"),
        ("https://[::1", "is not a valid URL"),
        ("ftp://tweezer.lab", "must start with redis://"),
    ],
)
def test_urls_that_are_refused(url: str, problem: str) -> None:
    with pytest.raises(tweezer.InvalidInput) as raised:
        tweezer.connect_async(url, key=KEY if url.startswith("http") else None)
    assert raised.value.field == "url"
    assert problem in raised.value.problem
    assert "password@" not in str(raised.value)


@pytest.mark.parametrize("key", ["", " ", "two words", "line\n", "clé", "x" * 501, 7, b"twz_x"])
def test_keys_that_cannot_be_sent_are_refused_and_not_quoted(key: object) -> None:
    with pytest.raises(tweezer.InvalidInput) as raised:
        tweezer.connect_async("https://tweezer.lab", key=key)  # type: ignore[arg-type]
    assert raised.value.field == "key"
    assert not str(key).strip() or str(key) not in str(raised.value)


def test_a_key_comes_from_an_argument_a_variable_or_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(tweezer.InvalidInput, match=r"^key: is missing; pass the API key"):
        tweezer.connect_async("https://tweezer.lab")
    file = tmp_path / "key"
    monkeypatch.setenv("TWEEZER_API_KEY_FILE", str(file))
    with pytest.raises(tweezer.InvalidInput, match=r"^TWEEZER_API_KEY_FILE: .* cannot be read"):
        tweezer.connect_async("https://tweezer.lab")
    file.write_text("twz_file\n")
    sent = []
    for variable, argument in ((None, None), ("twz_variable", None), ("twz_variable", "twz_argument")):
        if variable is not None:
            monkeypatch.setenv("TWEEZER_API_KEY", variable)
        sent.append(getattr(tweezer.connect_async("https://tweezer.lab", key=argument).transport.address, "key", None))
    assert sent == ["twz_file", "twz_variable", "twz_argument"]


@pytest.mark.parametrize("option", ["namespace", "results_dir", "database_url"])
def test_options_of_redis_do_not_apply_to_an_api(option: str) -> None:
    with pytest.raises(tweezer.InvalidInput, match=rf"^{option}: applies only to the URL of Redis"):
        tweezer.connect_async("https://tweezer.lab", key=KEY, **{option: "x"})  # type: ignore[arg-type]


@pytest.mark.parametrize("option", ["key", "ca_file"])
def test_options_of_an_api_do_not_apply_to_redis(option: str) -> None:
    with pytest.raises(tweezer.InvalidInput, match=rf"^{option}: applies only to the URL of an API"):
        tweezer.connect_async("redis://127.0.0.1", **{option: "x"})  # type: ignore[arg-type]


def test_a_file_of_authorities_must_be_one(tmp_path: Path) -> None:
    for content in (None, "no certificate"):
        if content is not None:
            (tmp_path / "ca.pem").write_text(content)
        with pytest.raises(tweezer.InvalidInput, match=r"^ca_file: .*ca\.pem cannot be loaded"):
            tweezer.connect_async("https://tweezer.lab", key=KEY, ca_file=tmp_path / "ca.pem")


@pytest.mark.parametrize(
    ("variables", "argument", "kind"),
    [
        ({}, None, "Direct"),
        ({"API_URL": "https://a.lab"}, None, "Http"),
        ({"API_URL": "https://a.lab", "REDIS_URL": "redis://b.lab"}, None, "Direct"),
        ({"REDIS_URL": "redis://b.lab"}, "https://a.lab", "Http"),
        ({"API_URL": "https://a.lab"}, "redis://b.lab", "Direct"),
    ],
)
def test_an_explicit_url_comes_first_then_redis_then_the_api(
    variables: dict[str, str], argument: str | None, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TWEEZER_API_KEY", KEY)
    for name, value in variables.items():
        monkeypatch.setenv(f"TWEEZER_{name}", value)
    assert type(tweezer.connect_async(argument).transport).__name__ == f"{kind}Transport"


async def test_the_events_of_a_project_need_a_ledger_with_tables(tmp_path: Path) -> None:
    for database_url, problem in (
        (None, "is not configured here"),
        (f"sqlite:///{tmp_path}/ledger.db", "no tables yet"),
    ):
        async with tweezer.connect_async("redis://127.0.0.1:9", database_url=database_url) as queue:
            with pytest.raises(tweezer.TweezerError, match=problem) as raised:
                await queue.transport.feed(None, 0.0)
            assert raised.value.code == "no_ledger"
