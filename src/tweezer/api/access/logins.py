"""Log-ins with name and password, with limits on concurrency and on failed attempts."""

from __future__ import annotations

import asyncio
import ipaddress
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from tweezer.ledger.access.credentials import Role
from tweezer.ledger.access.keys import SESSIONS_MAX, NewKey
from tweezer.ledger.access.users import Login, find_login, hash_password, is_password, needs_rehash, open_session
from tweezer.ledger.database import Database
from tweezer.model.errors import TweezerError, Unavailable
from tweezer.store.connection import Store
from tweezer.store.guards import CountedBy, FailedLogins, LoginSource

log = structlog.get_logger(__name__)

AT_ONCE = 2
"""Passwords checked at a time: each takes 64 MiB of memory and a tenth of a second of CPU time."""

_WAITING_MAX = 256
_TRIES = 3  # another log-in may change the user between read and write, if only to rehash the password
_NETWORK_BITS = 64  # of an IPv6 address; the remaining bits number the hosts of one site


class TooManyAttempts(TweezerError):
    """Too many log-ins have failed for this name, or from this address. retry_s: seconds until the next attempt."""

    code = "too_many_attempts"
    retryable = True

    def __init__(self, retry_s: int) -> None:
        super().__init__(f"too many failed log-ins; try again in {retry_s} s")
        self.retry_s = retry_s


class Logins:
    """The log-ins of users. session_s: how long a session lasts. sessions_max: sessions per user; one more ends the
    oldest."""

    def __init__(self, store: Store, database: Database, *, session_s: int, sessions_max: int = SESSIONS_MAX) -> None:
        self.session_s = session_s
        self._sessions_max = sessions_max
        self._attempts: FailedLogins = store.failed_logins
        self._database = database
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._waiting = 0

    async def open(self, name: str, password: str, *, address: str, role: Role = Role.USER) -> NewKey | None:
        """Open a session; return None if the name or the password is wrong. Raises TooManyAttempts, Unavailable.

        Takes equally long for a name that does not exist.
        """
        sources = (LoginSource(CountedBy.NAME, name), LoginSource(CountedBy.ADDRESS, get_network(address)))
        await self._refuse(*sources)
        async with self._turn():
            await self._refuse(*sources)  # earlier attempts may have failed in the meantime
            session = await self._try(name, password, role)
            if session is None:
                await self._attempts.count(*sources)
                log.warning("login.failed", address=address)
            else:
                log.info("login.opened", user=session.about.user, key=session.about.id)
            return session

    async def _try(self, name: str, password: str, role: Role) -> NewKey | None:
        for _ in range(_TRIES):
            login = await self._database.run_read(find_login, name)
            if not await asyncio.to_thread(is_password, password, login.password):
                break
            kept = await asyncio.to_thread(_hash_to_keep, password, login)
            session = await self._database.run_write(
                open_session,
                login,
                password=kept,
                session_s=self.session_s,
                sessions_max=self._sessions_max,
                role=role,
            )
            if session is not None:
                return session
        return None

    async def _refuse(self, *sources: LoginSource) -> None:
        wait_s = await self._attempts.wait_s(*sources)
        if wait_s > 0:
            raise TooManyAttempts(math.ceil(wait_s))

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        if self._waiting >= _WAITING_MAX:
            raise Unavailable(f"too many log-ins at once: {_WAITING_MAX} are waiting already")
        self._waiting += 1
        try:
            async with self._turns:
                yield
        finally:
            self._waiting -= 1


def get_network(address: str) -> str:
    """Return the address to count by; for IPv6 its network, because one host has many addresses."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if found.version == 4:
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((found, _NETWORK_BITS), strict=False))


def _hash_to_keep(password: str, login: Login) -> str:
    kept = login.password or ""
    return hash_password(password) if needs_rehash(kept) else kept
