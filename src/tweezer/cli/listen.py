"""``tweezer webhooks listen``: a local webhook receiver that verifies, prints, and fails on demand."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import UUID

import click
import msgspec

from tweezer.cli import show
from tweezer.cli.options import Options, open_ledger, pass_options
from tweezer.model.errors import InvalidInput, TweezerError
from tweezer.model.ids import short_id
from tweezer.model.signatures import ID_HEADER, Webhook, WebhookInvalid, verify_webhook

if TYPE_CHECKING:
    from aiohttp import web

    from tweezer.settings import Settings

PORT = 8808

_BODY_MAX = 1 << 20
_FRESH_S = 1.0

Secrets = Collection[str] | Callable[[], Collection[str]]


class Manner(msgspec.Struct, frozen=True):
    """How a receiver responds.

    answers: HTTP statuses, used in turn and repeated. slow_s: delay of each response. hang_s: send nothing for this
    time, then close the connection. reset: close the connection at once. retry_after_s: ``Retry-After`` of failures.
    """

    answers: tuple[int, ...] = (204,)
    slow_s: float = 0.0
    hang_s: float | None = None
    reset: bool = False
    retry_after_s: int | None = None


class Received(msgspec.Struct, frozen=True):
    """A received webhook. webhook: None if it could not be verified, for the reason in ``problem``.

    repeated: its id was received before. remarks: about missing or late webhooks, by its sequence number. status: the
    HTTP status of the response; None if nothing was sent.
    """

    at: datetime
    id: str
    webhook: Webhook | None
    problem: str | None
    repeated: bool
    remarks: tuple[str, ...]
    status: int | None
    body: bytes


class Receiver:
    """A webhook receiver that listens from ``start`` to ``close``, and calls ``on_webhook`` for each in order.

    secrets: the accepted secrets, or a function that returns them, which may block and is called about once a second.
    port: 0 picks a free one.
    """

    def __init__(
        self,
        secrets: Secrets,
        on_webhook: Callable[[Received], None],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        manner: Manner | None = None,
    ) -> None:
        self._secrets = secrets
        self._known: tuple[float, Collection[str]] | None = None
        self._on_webhook = on_webhook
        self._host = host
        self._port = port
        self._manner = manner or Manner()
        self._answers = itertools.cycle(self._manner.answers)
        self._tracker = SequenceTracker()
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        """The URL of the receiver."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}/"

    async def start(self) -> None:
        """Start to listen. Raises InvalidInput("port", …) if the port is not available."""
        from aiohttp import web

        app = web.Application(client_max_size=_BODY_MAX)
        app.router.add_post("/{path:.*}", self._receive)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, self._port).start()
        except OSError as error:
            await runner.cleanup()
            raise InvalidInput("port", f"{self._host}:{self._port} is not available: {error.strerror}") from error
        self._runner = runner
        self._port = runner.addresses[0][1]

    async def close(self) -> None:
        """Stop, and close the connections of waiting clients."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _receive(self, request: web.Request) -> web.StreamResponse:
        from aiohttp import web

        body = await request.read()
        webhook, problem = await self._verify(body, request)
        manner = self._manner
        answered = manner.hang_s is None and not manner.reset
        status = None if not answered else next(self._answers) if webhook is not None else 401
        self._on_webhook(self._tracker.read(request.headers.get(ID_HEADER, ""), webhook, problem, status, body))
        await asyncio.sleep(manner.slow_s if answered else manner.hang_s or 0.0)
        if status is None:
            if request.transport is not None:
                request.transport.abort()
            return web.Response(status=500)  # never sent: the connection is closed
        asks = manner.retry_after_s is not None and not 200 <= status < 300
        headers = {"Retry-After": str(manner.retry_after_s)} if asks else {}
        return web.Response(status=status, headers=headers, text=None if problem is None else problem)

    async def _verify(self, body: bytes, request: web.Request) -> tuple[Webhook | None, str | None]:
        """Return the webhook, or the reason why it cannot be verified."""
        try:
            return verify_webhook(body, request.headers, await self._secrets_now()), None
        except WebhookInvalid as error:
            return None, error.message
        except TweezerError as error:
            return None, f"the secrets cannot be read: {error.message}"

    async def _secrets_now(self) -> Collection[str]:
        if not callable(self._secrets):
            return self._secrets
        if self._known is None or time.monotonic() - self._known[0] > _FRESH_S:
            self._known = (time.monotonic(), await asyncio.to_thread(self._secrets))
        return self._known[1]


class SequenceTracker:
    """Tracks the ids of webhooks, and the sequence numbers of each batch."""

    def __init__(self) -> None:
        self._ids: set[str] = set()
        self._seen: dict[str, set[int]] = {}
        self._missing: dict[str, set[int]] = {}

    def read(
        self, identity: str, webhook: Webhook | None, problem: str | None, status: int | None, body: bytes
    ) -> Received:
        """Record a webhook, and note whether it is repeated, late, or follows a gap."""
        repeated = webhook is not None and webhook.id in self._ids
        remarks = () if webhook is None or repeated else tuple(self._remarks(webhook.data))
        if webhook is not None:
            self._ids.add(webhook.id)
        return Received(datetime.now(UTC), identity, webhook, problem, repeated, remarks, status, body)

    def _remarks(self, data: dict[str, Any]) -> Iterator[str]:
        batch, number, before = data.get("batch_id"), data.get("sequence"), data.get("previous_sequence")
        if not isinstance(batch, str) or not isinstance(number, int):
            return
        missing = self._missing.setdefault(batch, set())
        seen = self._seen.setdefault(batch, set())
        if number in missing:
            missing.discard(number)
            yield f"late: fills the gap at {number}"
        elif seen and isinstance(before, int) and before not in seen:
            missing.add(before)
            yield f"gap: {before} is missing"
        seen.add(number)


def format_line(received: Received) -> str:
    """Describe a webhook on one line."""
    at = f"{received.at.astimezone():%H:%M:%S}"
    answered = "no response" if received.status is None else f"answered {received.status}"
    if received.webhook is None:
        named = "".join(letter if letter.isprintable() else " " for letter in received.id[:60])  # untrusted
        return f"{at}  NOT VERIFIED: {received.problem}  ({answered}; id {named or 'none'})"
    data = received.webhook.data
    about = _about(data)
    number = f"#{data['sequence']}" if isinstance(data.get("sequence"), int) else ""
    remarks = [*(["repeated"] if received.repeated else []), *received.remarks]
    ending = f"  ({'; '.join(remarks)})" if remarks else ""
    return f"{at}  {received.webhook.type:<16}  {about}  {number:>5}  verified, {answered}{ending}"


def to_json(received: Received) -> bytes:
    """Return a webhook as a JSON object."""
    webhook = received.webhook
    return msgspec.json.encode(
        {
            "at": received.at,
            "id": received.id,
            "verified": webhook is not None,
            "problem": received.problem,
            "type": None if webhook is None else webhook.type,
            "data": None if webhook is None else webhook.data,
            "repeated": received.repeated,
            "remarks": received.remarks,
            "status": received.status,
        }
    )


@click.command()
@click.option(
    "--port", type=click.IntRange(0, 65_535), default=PORT, show_default=True, help="Port; 0 picks a free one."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--secret",
    "secrets",
    multiple=True,
    help="Secret (whsec_…) or public key (whpk_…); may be repeated  [default: those of the project and its endpoints].",
)
@click.option(
    "--answer", default="204", show_default=True, metavar="STATUS,…", help="HTTP statuses to respond with, in turn."
)
@click.option("--retry-after", type=click.IntRange(0), metavar="S", help="Send Retry-After: S with failures.")
@click.option(
    "--slow", "slow_s", type=click.FloatRange(0), default=0.0, metavar="S", help="Delay each response by S seconds."
)
@click.option("--hang", "hang_s", type=click.FloatRange(0), metavar="S", help="Send nothing for S seconds, then close.")
@click.option("--reset", is_flag=True, help="Close each connection at once.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per webhook.")
@pass_options
def listen(
    options: Options,
    *,
    port: int,
    host: str,
    secrets: Sequence[str],
    answer: str,
    retry_after: int | None,
    slow_s: float,
    hang_s: float | None,
    reset: bool,
    as_json: bool,
) -> None:
    """Receive webhooks on this machine, and verify and print them.

    The receiver runs until Ctrl-C. Options specify how it answers, to simulate failures.

    Couriers deliver to 127.0.0.1 only if TWEEZER_WEBHOOK_ALLOW includes it; `tweezer webhooks replay` always can.
    """
    manner = Manner(_statuses(answer), slow_s, hang_s, reset, retry_after)
    known: Secrets = secrets
    if not secrets:
        known = partial(read_secrets, options.settings())
        try:
            known()  # report errors before listening
        except TweezerError as error:
            raise TweezerError(f"{error.message}; or give the secret with --secret", code=error.code) from error

    def print_it(received: Received) -> None:
        if as_json:
            click.echo(to_json(received))
        else:
            show.echo(format_line(received))

    from tweezer.processes.runtime import stopped_by_signals

    async def run() -> None:
        receiver = Receiver(known, print_it, host=host, port=port, manner=manner)
        await receiver.start()
        try:
            show.echo(f"Listening at {receiver.url}; press Ctrl-C to stop.", err=True)
            await stopped_by_signals().wait()
        finally:
            await receiver.close()

    asyncio.run(run())


def read_secrets(settings: Settings) -> Collection[str]:
    """Read all secrets that sign webhooks of the project from the ledger. Raises TweezerError."""
    from tweezer.ledger.access.projects import find_project
    from tweezer.model.signatures import Algorithm
    from tweezer.webhooks.endpoints import list_endpoints
    from tweezer.webhooks.secrets import SecretOwner, ensure_secrets

    with open_ledger(settings, "webhooks listen") as database, database.write() as connection:
        vault = settings.vault()  # it may create the key, and only a ledger needs one
        project = SecretOwner(find_project(connection, settings.project_id).no)
        owners = [project, *(it.secret_owner for it in list_endpoints(connection, [settings.project_id]))]
        return {
            secret.text
            for owner in dict.fromkeys(owners)
            for secret in ensure_secrets(connection, vault, owner)
            if secret.algorithm is Algorithm.HMAC_SHA256
        }


def _statuses(text: str) -> tuple[int, ...]:
    found = tuple(int(part) for part in text.split(",") if part.strip().isdecimal())
    if len(found) != len(text.split(",")) or not all(200 <= status <= 599 for status in found):
        raise click.BadParameter(
            f"{text!r} is not a list of HTTP statuses from 200 to 599; use e.g. 500 or 200,500,500"
        )
    return found


def _short(batch_id: str) -> str:
    try:
        return short_id(UUID(batch_id))
    except ValueError:  # a webhook of another sender
        return batch_id


def _about(data: dict[str, Any]) -> str:
    """Return the subject of a webhook: a batch or job, a device, or an endpoint."""
    if isinstance(data.get("batch_id"), str):
        job = f"/{data['index']}" if isinstance(data.get("index"), int) else ""
        return f"{'job' if job else 'batch'} {_short(data['batch_id'])}{job}  {data.get('status', '')}"
    return str(data.get("device") or data.get("endpoint_id") or "")
