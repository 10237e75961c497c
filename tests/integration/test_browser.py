"""A real browser uses the API: the page that describes it, and scripts of another origin."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import http.server
import shutil
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.support.furnished_api import FurnishedApi, furnished_api

from tweezer.api.http.openapi import TAGS

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
PATIENCE_S = 60

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")]

# What an application does: with a key it reads a list and an error, gets a ticket, and follows a batch.
APPLICATION = """<!DOCTYPE html>
<title>application</title>
<pre id="found"></pre>
<script>
const [api, key, batch] = decodeURIComponent(location.hash.slice(1)).split(" ");
const show = (text) => { document.getElementById("found").textContent += text + "\\n"; };
const call = (path, options = {}) =>
  fetch(api + path, { ...options, headers: { Authorization: `Bearer ${key}`, "Content-Type": "application/json" } });

async function run() {
  const list = await call("/api/v2/batches?limit=1");
  show(`range ${list.headers.get("Content-Range")}`);
  const refused = await (await call("/api/v2/batches?limt=1")).json();
  show(refused.data.description);
  const stream = `/api/v2/batches/${batch}/events/stream`;
  const { data } = await (await call(`${stream}/ticket`, { method: "POST" })).json();
  const source = new EventSource(data.url);
  for (const type of ["batch.created", "job.done", "batch.done"]) source.addEventListener(type, () => show(type));
  source.addEventListener("end", async () => {
    source.close();
    show(`again ${(await fetch(data.url)).status}`);
  });
}

run().catch((error) => show(`failed: ${error}`));
</script>
"""


@pytest.fixture
def origin(tmp_path: Path) -> Iterator[str]:
    """Serve the application, and return its origin."""
    folder = tmp_path / "application"
    folder.mkdir()
    (folder / "index.html").write_text(APPLICATION, encoding="utf-8")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
async def api(real_redis_url: str, tmp_path: Path, sqlite_template: Path, origin: str) -> AsyncIterator[FurnishedApi]:
    async with furnished_api(real_redis_url, tmp_path, sqlite_template, api_cors_origins=origin) as api:
        yield api


async def load(url: str, folder: Path) -> tuple[str, str]:
    """Return the document that a page has become, and the messages of the browser."""
    browser = await asyncio.create_subprocess_exec(
        *(str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"),
        *("--enable-logging=stderr", "--virtual-time-budget=20000", "--dump-dom", url),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        document, messages = await asyncio.wait_for(browser.communicate(), PATIENCE_S)
    finally:
        with contextlib.suppress(ProcessLookupError):
            browser.kill()
    return document.decode(), messages.decode()


async def test_the_page_shows_the_operations_within_its_policy(api: FurnishedApi, tmp_path: Path) -> None:
    document, messages = await load(f"{api.url}/docs", tmp_path)
    assert document.count("opblock-tag-section") == len(TAGS)
    assert "Submit batches of jobs to Tweezer" in document
    assert "Content Security Policy" not in messages
    assert "Refused to" not in messages


async def test_an_application_of_a_listed_origin_calls_the_api_and_follows_a_batch(
    api: FurnishedApi, origin: str, tmp_path: Path
) -> None:
    batch_id = api.ids["batch_id"][0]
    document, messages = await load(f"{origin}/#{api.url}%20{api.keys['ours']}%20{batch_id}", tmp_path)
    for found in (
        "range 0-0/2",
        "limt: is not a parameter of this route (did you mean limit?)",
        "batch.created",
        "job.done",
        "batch.done",
        "again 401",
    ):
        assert f"{found}\n" in document, f"{document}\n{messages}"


async def test_an_application_of_another_origin_reads_nothing(api: FurnishedApi, origin: str, tmp_path: Path) -> None:
    other = origin.replace("127.0.0.1", "localhost")
    document, _ = await load(f"{other}/#{api.url}%20{api.keys['ours']}%20{api.ids['batch_id'][0]}", tmp_path)
    assert "failed: TypeError: Failed to fetch" in document
    assert "range" not in document.partition("<script>")[0]
