"""The simulated QPU's own Keycloak: tokens for one client, which expire."""

from __future__ import annotations

import hmac
import secrets
import time

import msgspec

from tweezer.model.errors import InvalidInput

REALM = "qpu"


class Client(msgspec.Struct, frozen=True):
    """Who may ask for tokens. token_s: how long one is good."""

    client_id: str
    client_secret: str
    token_s: float = 60.0

    def __repr__(self) -> str:
        return f"Client(client_id={self.client_id!r}, token_s={self.token_s!r})"

    @classmethod
    def read(cls, text: str, token_s: float) -> Client:
        """``ID:SECRET``. Raises InvalidInput."""
        client_id, _, client_secret = text.partition(":")
        if not client_id or not client_secret:
            raise InvalidInput("token_auth", "must be ID:SECRET, of the client that may ask for tokens")
        return cls(client_id, client_secret, token_s)


class TokenDesk:
    """Gives tokens out, and knows those that are good. client: None lets everybody in."""

    def __init__(self, client: Client | None) -> None:
        self._client = client
        self._good_until: dict[str, float] = {}

    def issue(self, grant_type: str, client_id: str, client_secret: str) -> str | None:
        """A new token; None when these are not the client's credentials."""
        client = self._client
        if client is None or grant_type != "client_credentials" or client_id != client.client_id:
            return None
        if not hmac.compare_digest(client_secret.encode(), client.client_secret.encode()):
            return None
        token, moment_s = secrets.token_urlsafe(24), time.monotonic()
        self._good_until = {known: until for known, until in self._good_until.items() if until > moment_s}
        self._good_until[token] = moment_s + client.token_s
        return token

    def admits(self, authorization: str) -> bool:
        """Whether a request with this header is let in."""
        if self._client is None:
            return True
        kind, _, token = authorization.partition(" ")
        return kind == "Bearer" and self._good_until.get(token, 0.0) > time.monotonic()

    def revoke_all(self) -> None:
        """From now on only new tokens are good."""
        self._good_until.clear()

    @property
    def token_s(self) -> float:
        return 0.0 if self._client is None else self._client.token_s
