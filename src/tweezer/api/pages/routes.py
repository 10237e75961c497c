"""The pages for browsers: an entry page, and the description of the API, which can also send requests.

Every file comes from this package, so the pages work without access to the internet, and their Content-Security-Policy
allows nothing from elsewhere and no inline code.
"""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # a browser may keep the files, and asks whether they have changed
}


class _PageFiles(StaticFiles):
    """The files of the pages; a request for one that has not changed gets 304."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(_HEADERS)
        return response


_files = _PageFiles(directory=Path(__file__).parent / "files")


async def show_entry(request: Request) -> Response:
    """Return a page that links to what the server offers to people."""
    return await _files.get_response("index.html", request.scope)


async def show_docs(request: Request) -> Response:
    """Return the page that shows the OpenAPI document."""
    return await _files.get_response("docs.html", request.scope)


async def send_file(request: Request) -> Response:
    """Return a file of the pages; `/docs/` leads to the page."""
    name: str = request.path_params["file"]
    if not name:
        return RedirectResponse("../docs")  # relative, because a proxy may add a prefix
    return await _files.get_response(name, request.scope)


def page_routes() -> list[BaseRoute]:
    """Return the routes of the pages and their files, none of which needs a key."""
    return [
        Route("/", show_entry),
        Route("/docs", show_docs),
        Route("/docs/{file:path}", send_file),
    ]
