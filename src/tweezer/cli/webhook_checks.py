"""What the doctor says of webhooks: couriers, deliveries, receivers, and the key that seals their secrets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import msgspec

from tweezer.cli import show
from tweezer.cli.findings import Finding, Level
from tweezer.model.errors import InvalidInput, TweezerError
from tweezer.settings import Settings
from tweezer.store.connection import Store
from tweezer.store.measures import measure

if TYPE_CHECKING:
    from tweezer.webhooks.health import Receivers, Secrets, WebhookHealth

_SILENT_S = 30.0
_SLOW_S = 30.0
_START = "start one: tweezer courier"
_MANY = (
    "start another courier (tweezer courier), and look at the logs of those that run and at the load of the database"
)


class Webhooks(msgspec.Struct, frozen=True):
    """What the ledger knows."""

    health: WebhookHealth
    receivers: Receivers
    secrets: Secrets | InvalidInput


def look_at_ledger_of_webhooks(settings: Settings) -> Webhooks:
    """Asks the database, whose tables must be as they should be. Raises TweezerError."""
    from tweezer.ledger.database import Database
    from tweezer.webhooks.health import look_at_receivers, look_at_secrets, look_at_webhooks

    database = Database.open(settings.locate_ledger())
    try:
        secrets: Secrets | InvalidInput
        try:
            secrets = look_at_secrets(database, settings.secrets.key, settings.data_dir)
        except InvalidInput as error:
            secrets = error
        return Webhooks(look_at_webhooks(database, settings.namespace), look_at_receivers(database), secrets)
    finally:
        database.close()


def check_webhooks(found: Webhooks) -> Iterator[Finding]:
    """What can be said without Redis."""
    yield check_deliveries(found.health)
    yield check_receivers(found.receivers, found.health.disabled)
    yield check_secrets(found.secrets)


async def examine_couriers(store: Store, found: Webhooks) -> Finding:
    """Who of them lives, and how far behind they are. Raises TweezerError."""
    from tweezer.webhooks.courier import GROUP

    measures = await measure(store.scripts, None, found.health.position)
    behind_s = measures.undelivered_s if measures.undelivered else None
    return check_couriers(await store.events.idle_s(GROUP), behind_s=behind_s, wanted=found.receivers.endpoints > 0)


def check_couriers(idle_s: Sequence[float] | None, *, behind_s: float | None, wanted: bool) -> Finding:
    """idle_s: of each courier, since when it has asked for nothing; None: there never was one. behind_s: age of the
    oldest event that none has taken care of; None when there is none. wanted: somebody is to be sent webhooks."""
    if idle_s is None:
        level = Level.FAIL if wanted else Level.WARN
        return Finding("courier", level, "none has ever run here, so no webhook is sent", _START)
    alive = sum(idle < _SILENT_S for idle in idle_s)
    if not alive and behind_s is not None:
        says = f"none runs, and what happened in the last {show.duration(behind_s)} is told to nobody; Redis keeps it"
        return Finding("courier", Level.FAIL, says, _START)
    if not alive:
        return Finding("courier", Level.WARN, "none runs; all that happened so far was told", _START)
    runs = "one runs" if alive == 1 else f"{alive} run"
    if behind_s is not None and behind_s > _SLOW_S:
        return Finding("courier", Level.WARN, f"{runs}, {show.duration(behind_s)} behind", _MANY)
    return Finding("courier", Level.OK, f"{runs}, up to date")


def check_deliveries(health: WebhookHealth) -> Finding:
    if health.overdue:
        return Finding(
            "deliveries",
            Level.WARN,
            f"{health.overdue} of {health.pending} that are pending should have been attempted a minute ago",
            _MANY,
        )
    return Finding(
        "deliveries",
        Level.OK,
        f"{health.pending} pending, none overdue; {health.exhausted} given up, {health.held} held back",
    )


def check_receivers(receivers: Receivers, disabled: int) -> Finding:
    troubles = []
    if receivers.failing:
        more = ", …" if receivers.failing > len(receivers.named) else ""
        named = ", ".join(receivers.named)
        troubles.append(f"{receivers.failing} have answered nothing but failures for ten minutes ({named}{more})")
    if disabled:
        troubles.append(f"{disabled} are disabled and sent nothing")
    if troubles:
        return Finding(
            "receivers",
            Level.WARN,
            f"of {receivers.endpoints}, {'; '.join(troubles)}",
            "tweezer webhooks list --all-projects --batches shows which, tweezer webhooks show ID why; once they work "
            "again: tweezer webhooks enable ID, and tweezer webhooks resend --endpoint ID --since TIME",
        )
    return Finding("receivers", Level.OK, f"{receivers.endpoints}, none failing or disabled")


def check_secrets(secrets: Secrets | TweezerError) -> Finding:
    """Whether what signs webhooks and links can be decrypted here."""
    name = "secrets key"
    if isinstance(secrets, TweezerError):
        return Finding(name, Level.FAIL, secrets.message, "restore the key from its backup")
    if secrets.missing and not secrets.total:
        return Finding(name, Level.OK, f"none is needed yet; {secrets.place} is made when one is")
    if secrets.sealed:
        says = f"{secrets.sealed} of {secrets.total} secrets of webhooks and links cannot be decrypted"
        why = f"there is no {secrets.place}" if secrets.missing else f"the key in {secrets.place} is another"
        return Finding(
            name,
            Level.FAIL,
            f"{says}, so nothing is signed with them: {why}",
            "give this host the key of the others (TWEEZER_SECRETS_KEY), or the former one behind the new one with a "
            "comma between; where it is lost, tweezer webhooks rotate --overlap 0, and for links tweezer keys "
            "rotate-links --overlap 0",
        )
    return Finding(
        name, Level.OK, f"{secrets.place} opens all {secrets.total} secrets of webhooks and links; keep a backup of it"
    )
