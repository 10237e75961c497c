"""The application: the routes on one store, and the process that serves it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from fastapi import FastAPI

from tweezer.api import routes_batches, routes_jobs, routes_service
from tweezer.api.edge import Edge
from tweezer.api.envelope import install_failures
from tweezer.api.live import Live
from tweezer.api.longpoll import Holds
from tweezer.api.serve import serve
from tweezer.settings import Settings
from tweezer.store.connection import Store

_ABOUT = """The state of batches and jobs, in the words of Pasqal's cloud.

Answers are in a JSend envelope, errors too; only results are sent as they are. The status routes hold a
request until there is something to say. There are no credentials yet: the API listens on the loopback
only and shows the work of all projects.
"""


def create_app(settings: Settings, store: Store | None = None, *, version: str = "0") -> FastAPI:
    """The API on a store of its own, which it closes at its end, or on the given one, which stays open.

    Asks nothing of Redis. ``version`` is that of the package, for the OpenAPI document. Raises
    InvalidInput when the URL of Redis cannot be used.
    """
    opened = Store.open(settings.connect()) if store is None else store

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        if store is None:
            await opened.close()

    app = FastAPI(
        title="Tweezer",
        version=version,
        description=_ABOUT,
        lifespan=lifespan,
        docs_url=None,  # these pages load scripts from elsewhere, into the origin that shows everything
        redoc_url=None,
        redirect_slashes=False,  # a redirect has no body, and clients want JSON
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.live = Live(opened, project=None, patience_s=settings.command_timeout_s)
    app.state.holds = Holds(opened)
    app.state.longpoll_s = settings.longpoll_s
    app.add_middleware(Edge)
    install_failures(app)
    for routes in (routes_batches, routes_jobs, routes_service):
        app.include_router(routes.router)
    return app


def run_api(settings: Settings, *, version: str = "0") -> None:
    """Serves the API until SIGINT or SIGTERM, then answers what is held and returns. Call it in the main thread.

    It listens on the loopback only, until credentials exist. Raises InvalidInput("api_host", …) for
    another host, ("api_port", …) when the port is not to be had, ("url", …) when Redis' is none.
    """
    app = create_app(settings, version=version)
    serve(app, app.state.holds, host=settings.api_host, port=settings.api_port)
