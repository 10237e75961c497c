"""The FastAPI application, and the process that serves it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from functools import partial

import msgspec
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.routing import BaseRoute

from tweezer.api import pasqal, service
from tweezer.api.access import routes as access_routes
from tweezer.api.access.auth import AuthenticationMiddleware, Authenticator, RateLimiter, SignedLinks
from tweezer.api.access.logins import Logins
from tweezer.api.access.replay_guard import ReplayGuard, ReplayGuardMiddleware
from tweezer.api.batches import bulk, commands, matching, reads, service_side
from tweezer.api.batches.fast_path import fast_routes
from tweezer.api.devices import routes as devices_routes
from tweezer.api.devices import statistics
from tweezer.api.events import routes as events_routes
from tweezer.api.events.streams import FeedFollowers
from tweezer.api.http.bodies import BodyReader
from tweezer.api.http.limits import RequestLimits, RequestLimitsMiddleware, ResponseLimitsMiddleware
from tweezer.api.http.longpoll import LongPolls
from tweezer.api.http.openapi import TAGS, DescribedAPI
from tweezer.api.http.parameters import CheckedParameters
from tweezer.api.http.responses import handle_defect, install_error_handlers
from tweezer.api.http.security_headers import SecurityHeadersMiddleware
from tweezer.api.http.server import serve
from tweezer.api.metrics import AnswerTimes, Metrics, TimingMiddleware
from tweezer.api.pages.routes import page_routes
from tweezer.api.pasqal import PathPrefixMiddleware
from tweezer.api.read_model import ReadModel
from tweezer.api.schedules import routes as schedules_routes
from tweezer.api.tasks import commands as task_commands
from tweezer.api.tasks import reads as task_reads
from tweezer.api.webhooks import routes as webhooks_routes
from tweezer.api.webhooks.service import WebhookService
from tweezer.duties import Duties
from tweezer.ledger.database import Database
from tweezer.ledger.installation import wait_for_ledger
from tweezer.ledger.queries.feed import Feed
from tweezer.model.ids import new_worker_id
from tweezer.processes.runtime import raise_file_limit
from tweezer.settings import Settings
from tweezer.store.connection import Store
from tweezer.store.measures import REPORT_S, ProcessKind
from tweezer.store.streams.tail import Tail

_ABOUT = """Submit batches of jobs to Tweezer, follow them and fetch their results. Clients written for Pasqal's cloud
work unchanged.

Requests need an API key or an access token: send `Authorization: Bearer twz_…`. The exceptions are `/health`, `/ready`,
`/openapi.json`, `/docs`, `/oauth/token`, `/api/v1/devices/public-specs`, signed links to results, and streams with a
ticket. A key gives access to its own projects, called the projects of the caller; anything in another project is
reported as not found (404).

Responses are JSON in a JSend envelope (`status`, `message`, `code`, `data`), errors included. Only results, metrics,
streams of events and responses with access tokens are sent without it. In an error, `data.reason` is a code for
programs, and `data.description` explains the error to people. After a 503 or a lost connection it is not
known whether a submit took effect: repeat it with the same `Idempotency-Key`.

The status routes hold a request until the batch or job has ended, and the event routes until there are events, in both
cases for `wait_s` seconds at most. Times are ISO 8601 in UTC.
"""

BURST_S = 2.0
"""The size of the burst that a caller may send at once, in seconds of its request rate."""

_UNPACKED_MAX_KB = 65_536  # of a decompressed body; four times the limit for a body as sent, if that is more


def create_app(
    settings: Settings, store: Store | None = None, database: Database | None = None, *, version: str = "0"
) -> FastAPI:
    """Create the application. It does not connect to Redis or to the database yet.

    Args:
        settings: The settings of the API process.
        store: The store to use; it stays open. By default the application opens its own, and closes it at shutdown.
        database: The ledger's database to use, in the same way.
        version: The version of the package, for the OpenAPI document.

    Returns:
        The ASGI application.

    Raises:
        InvalidInput: The URL of Redis or of the database is not valid.
    """
    closing = contextlib.AsyncExitStack()
    if store is None:
        store = Store.open(settings.connect())
        closing.push_async_callback(store.close)
    if database is None:
        database = Database.open(settings.locate_ledger())
        closing.callback(database.close)
        # Keys must be looked up even while lists and statistics use all other connections. Two connections, because
        # one may be waiting for another writer of the database.
        key_database = Database.open(msgspec.structs.replace(settings.locate_ledger(), connections_max=2))
        closing.callback(key_database.close)
    else:
        key_database = database
    authenticator = Authenticator(key_database)
    duties = Duties()
    tail = Tail(store.scripts)
    closing.push_async_callback(tail.close)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with closing, duties, authenticator.writing_used(duties):
            duties.start(
                "presence", partial(store.processes.report, ProcessKind.API, new_worker_id()), every_s=REPORT_S
            )
            await links.prepare()
            yield

    app = DescribedAPI(
        title="Tweezer",
        version=version,
        description=_ABOUT,
        openapi_tags=TAGS,
        servers=[{"url": settings.api.public_url.rstrip("/")}] if settings.api.public_url else None,
        lifespan=lifespan,
        docs_url=None,  # these pages load scripts from other sites; tweezer.api.pages has its own
        redoc_url=None,
        redirect_slashes=False,  # a redirect has no JSON body, which clients expect
    )
    app.state.authenticator = authenticator
    app.state.duties = duties
    app.state.store = store
    app.state.database = database
    app.state.bodies = BodyReader(max(_UNPACKED_MAX_KB, 4 * settings.api.body_max_kb) << 10)
    app.state.live = ReadModel(store, database, patience_s=settings.connect().command_s)
    app.state.holds = LongPolls(store)
    feed = Feed(store, database, namespace=settings.namespace)
    app.state.following = FeedFollowers(feed, tail, app.state.holds, authenticator)
    app.state.results = store.results
    app.state.logins = Logins(store, database, session_s=settings.api.session_s)
    app.state.longpoll_s = settings.api.longpoll_s
    app.state.webhooks = webhooks = WebhookService(settings, store, database)
    links = SignedLinks(
        key_database, lambda: webhooks.vault, public_url=settings.api.public_url, link_s=settings.api.link_s
    )
    app.state.links = links
    times = AnswerTimes()
    app.state.replay_guard = ReplayGuard(store.recent_calls)
    app.state.metrics = Metrics(store, database, namespace=settings.namespace, times=times)
    # The middleware that is added last runs first.
    rates = RateLimiter(settings.api.requests_per_s, max(1, round(BURST_S * settings.api.requests_per_s)))
    app.add_middleware(ResponseLimitsMiddleware)
    app.add_middleware(AuthenticationMiddleware, authenticator=authenticator, tickets=store.stream_tickets, rates=rates)
    limits = RequestLimits(settings.api.body_max_kb << 10, small_bodies={"/oauth/token": access_routes.FORM_MAX})
    app.add_middleware(RequestLimitsMiddleware, limits=limits)
    app.add_middleware(ServerErrorMiddleware, handler=handle_defect)  # here, so that its responses get all headers
    if settings.api.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.api.cors_origins.split(","),
            allow_methods=("GET", "POST", "PUT", "PATCH", "DELETE"),
            allow_headers=("Authorization", "Content-Encoding", "Content-Type", "Idempotency-Key", "Last-Event-ID"),
            expose_headers=("Content-Range", "Retry-After"),
        )
    app.add_middleware(SecurityHeadersMiddleware)
    app.add_middleware(TimingMiddleware, times=times)
    app.add_middleware(ReplayGuardMiddleware, guard=app.state.replay_guard)
    app.add_middleware(PathPrefixMiddleware)
    install_error_handlers(app)
    app.router.routes += _routes()
    return app


def _routes() -> list[BaseRoute]:
    """Return the routes of all modules, in the order in which they match.

    All applications of this process share them: ``include_router`` would build them again for each application, which
    takes a quarter of a second.
    """
    ordered = (
        access_routes,
        statistics,  # its fixed paths must match before the routes with an id in their place
        devices_routes,
        reads,
        events_routes,
        service,
        commands,
        bulk,
        task_reads,
        task_commands,
        matching,
        service_side,
        pasqal,
        webhooks_routes,
        schedules_routes,
    )
    found = [route for module in ordered for route in module.router.routes]
    for route in found:
        if isinstance(route, APIRoute) and not isinstance(route.app, CheckedParameters):
            route.operation_id = route.name
            route.app = CheckedParameters(route)
    return [*fast_routes(), *found, *page_routes()]


def run_api(settings: Settings, *, version: str = "0") -> None:
    """Serve the API until SIGINT or SIGTERM, then answer held requests and return. Call it in the main thread.

    Waits for a database that does not answer.

    Args:
        settings: The settings of the API process.
        version: The version of the package, for the OpenAPI document.

    Raises:
        InvalidInput: ``api_host`` or ``api_port``: the address cannot be listened on. ``url`` or ``database_url``: the
            URL is not valid.
        TweezerError: The ledger does not exist, or its schema is not up to date.
    """
    asyncio.run(wait_for_ledger(settings.locate_ledger(), settings.connect()))
    app = create_app(settings, version=version)
    raise_file_limit()
    serve(
        app,
        app.state.holds,
        app.state.duties,
        host=settings.api.host,
        port=settings.api.port,
        proxies=settings.api.trusted_proxies,
        connections_per_address=settings.api.connections_per_address,
    )
