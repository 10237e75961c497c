"""What browsers get: pages from this package alone, and CORS for the origins in the settings."""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from tests.support.api_rig import ApiRig, bearer

import tweezer.api.pages
from tweezer.ledger.database import Database
from tweezer.settings import ApiSettings, Settings

ORIGIN = "https://app.example.org"
PAGES = Path(tweezer.api.pages.__file__).parent
FILES = PAGES / "files"


@pytest.fixture
async def rig(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ledger: Database) -> AsyncIterator[ApiRig]:
    monkeypatch.chdir(tmp_path)  # no tweezer.toml of the developer's
    rig = ApiRig(Settings(api=ApiSettings(cors_origins=f"{ORIGIN},http://localhost:5173", requests_per_s=5)), ledger)
    await rig.announce()
    yield rig
    await rig.close()


# -- pages ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/docs"])
async def test_a_page_needs_no_key_and_loads_only_files_of_this_server(rig: ApiRig, path: str) -> None:
    answer = await rig.stranger.get(path)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=|<script(?![^>]* src=)", answer.text)
    for target in re.findall(r'(?:src|href)="([^"]+)"', answer.text):
        assert re.fullmatch(r"[a-z][\w./-]*", target), "relative, so that a proxy may add a prefix"
        assert (await rig.stranger.get(httpx.URL(f"http://127.0.0.1:8000{path}").join(target))).status_code == 200


async def test_files_of_the_pages_are_sent_again_only_if_they_changed(rig: ApiRig) -> None:
    script = "/docs/swagger-ui/swagger-ui-bundle.js"
    first = await rig.stranger.get(script)
    assert "javascript" in first.headers["content-type"]
    assert first.headers["cache-control"] == "no-cache"
    again = await rig.stranger.get(script, headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("name", ["../routes.py", "..%2f__init__.py", "%2e%2e/routes.py", "swagger-ui", "no.js", "%00"])
async def test_only_files_of_the_pages_are_sent(rig: ApiRig, name: str) -> None:
    answer = await rig.stranger.get(f"/docs/{name}")
    assert answer.status_code in (401, 404), answer.text
    assert answer.json()["status"] == "fail"


async def test_the_page_with_a_slash_leads_to_the_one_without(rig: ApiRig) -> None:
    answer = await rig.stranger.get("/docs/")
    assert answer.url.join(answer.headers["location"]).path == "/docs"


def test_the_vendored_files_are_those_of_the_release() -> None:
    listed = dict(re.findall(r"\| `(\S+)` \| `([0-9a-f]{64})` \|", (PAGES / "README.md").read_text("utf-8")))
    found = {it.name: hashlib.sha256(it.read_bytes()).hexdigest() for it in (FILES / "swagger-ui").iterdir()}
    assert listed == found


def test_the_page_asks_no_other_server() -> None:
    script = (FILES / "docs.js").read_text("utf-8")
    assert "validatorUrl: null" in script  # by default Swagger UI sends the address of the document to its maker
    assert "://" not in script


# -- CORS -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("origin", [ORIGIN, "http://localhost:5173"])
async def test_a_listed_origin_may_call_the_api_with_a_key(rig: ApiRig, origin: str) -> None:
    asked = {
        "Origin": origin,
        "Access-Control-Request-Method": "PATCH",
        "Access-Control-Request-Headers": "authorization, content-type, idempotency-key",
    }
    preflight = await rig.stranger.options("/api/v1/batches", headers=asked)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == origin
    assert "PATCH" in preflight.headers["access-control-allow-methods"]
    answer = await rig.get("/api/v1/batches", headers={"Origin": origin})
    assert answer.headers["access-control-allow-origin"] == origin
    assert "Content-Range" in answer.headers["access-control-expose-headers"]
    for each in (preflight, answer):
        assert "Origin" in each.headers["vary"]
        assert "access-control-allow-credentials" not in each.headers


async def test_a_listed_origin_can_read_errors(rig: ApiRig) -> None:
    headers = {"Origin": ORIGIN}
    key = rig.key()
    found = {}
    for _ in range(40):
        answer = await rig.get("/api/v2/jobs?limt=1", key=key, headers=headers)
        found[answer.status_code] = answer.headers["access-control-allow-origin"]
    refused = await rig.stranger.get("/api/v2/jobs", headers=headers)
    assert refused.headers["access-control-allow-origin"] == ORIGIN
    assert found == {422: ORIGIN, 429: ORIGIN}


async def test_a_listed_origin_can_read_that_the_server_failed(rig: ApiRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rig.app.state, "live", None)
    answer = await rig.get("/api/v2/batches/counts", headers={"Origin": ORIGIN})
    assert (answer.status_code, answer.json()["data"]["reason"]) == (500, "internal")
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "http://app.example.org", f"{ORIGIN}.evil.example", f"{ORIGIN}:8443", "null"]
)
async def test_other_origins_get_no_permission(rig: ApiRig, origin: str) -> None:
    asked = {"Origin": origin, "Access-Control-Request-Method": "GET"}
    for answer in (
        await rig.stranger.options("/api/v1/batches", headers=asked),
        await rig.get("/health", headers=asked),
    ):
        assert "access-control-allow-origin" not in answer.headers


async def test_a_key_in_a_cookie_is_ignored_even_for_a_listed_origin(rig: ApiRig) -> None:
    cookie = {"Origin": ORIGIN, "Cookie": f"Authorization={bearer(rig.key())['Authorization']}"}
    assert (await rig.stranger.get("/api/v1/batches", headers=cookie)).status_code == 401
