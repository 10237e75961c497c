"""How another server is reached: options of a device. No HTTP library is needed to read them."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from tweezer.adapters.remote.http_options import API_PATH, Seconds, Text, http_url, secret
from tweezer.model.addresses import WebhookPolicy
from tweezer.model.errors import InvalidInput


class LoginOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Tokens from a token endpoint: by a user's name and password, or else by a client's secret.

    Secrets are given, or files that hold one and nothing else. grant_type: None is ``password`` with a username, and
    ``client_credentials`` without; Auth0's has a name of its own. realm and audience: where the server asks for them.
    """

    token_url: Text
    client_id: str | None = None
    username: str | None = None
    password: str | None = None
    password_file: str | None = None
    client_secret: str | None = None
    client_secret_file: str | None = None
    grant_type: str | None = None
    realm: str | None = None
    audience: str | None = None

    def __repr__(self) -> str:
        return f"LoginOptions(token_url={self.token_url!r}, who={self.who!r})"

    @property
    def who(self) -> str:
        """Whom the tokens are for."""
        return self.username or self.client_id or ""

    def form(self) -> dict[str, str]:
        """What is posted for a token. Raises InvalidInput naming what is missing, or cannot be read."""
        given: dict[str, str | None] = {"client_id": self.client_id, "realm": self.realm, "audience": self.audience}
        if self.username is not None:
            given |= {"grant_type": self.grant_type or "password", "username": self.username}
            given["password"] = secret("login.password", self.password, self.password_file)
            if self.client_secret is not None or self.client_secret_file is not None:
                given["client_secret"] = secret("login.client_secret", self.client_secret, self.client_secret_file)
        else:
            if self.client_id is None:
                raise InvalidInput(
                    "login.username", "is missing: give it with a password, or a client_id with a secret"
                )
            given["grant_type"] = self.grant_type or "client_credentials"
            given["client_secret"] = secret("login.client_secret", self.client_secret, self.client_secret_file)
        return {name: value for name, value in given.items() if value is not None}


class ForwardOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of a device whose jobs another server runs.

    base_url: what comes before ``/api/v1`` there. device: its name there (``device_type``). project_id: None where
    the key belongs to one project. api_key, or api_key_file, or login: how it knows us.
    idempotency_s: for how long it knows a repeated ``Idempotency-Key``; 0: it does not heed it. A Tweezer: 86400.
    is_emulator: whether the device there is one. max_runs: the most shots of a job there, where its specs do not say.
    tls_verify: whether its certificate is checked, and tls_ca_file: against which PEM file (None: the system's
    authorities). connect_timeout_s: for a connection. read_timeout_s: for the answer to a read or a cancel, beside the
    time that a server holds it. submit_timeout_s: for that to a submit. retry_s: how long reads are tried again before
    that is noted. poll_s: between looks at a job, where the server does not hold the question until it has ended.
    probe_s: between looks at the device. ask_again_s: between requests to stop a job that goes on. lag_s: how far its
    lists may be behind. turned_away_s: how long submits are repeated that something other than the API turns away, such
    as a proxy. results_allow: networks, addresses and names, with commas between, to which links to results may lead
    beside the server itself and public addresses.
    """

    base_url: str
    device: Text
    project_id: str | None = None
    api_key: str | None = None
    api_key_file: str | None = None
    login: LoginOptions | None = None
    idempotency_s: Annotated[float, Meta(ge=0)] = 0.0
    is_emulator: bool = True
    max_runs: Annotated[int, Meta(ge=1)] = 1_000_000
    tls_verify: bool = True
    tls_ca_file: str | None = None
    connect_timeout_s: Seconds = 5.0
    read_timeout_s: Seconds = 30.0
    submit_timeout_s: Seconds = 60.0
    retry_s: Annotated[float, Meta(ge=0, le=3600)] = 10.0
    results_allow: str = ""
    poll_s: Seconds = 1.0
    probe_s: Seconds = 15.0
    ask_again_s: Seconds = 10.0
    lag_s: Annotated[float, Meta(ge=0, le=86_400)] = 60.0
    turned_away_s: Seconds = 1800.0

    def __repr__(self) -> str:
        return f"ForwardOptions(base_url={self.base_url!r}, device={self.device!r})"

    @property
    def url(self) -> str:
        """Where its paths begin. Raises InvalidInput for what is no such URL."""
        return _url("base_url", self.base_url).removesuffix(API_PATH)

    @property
    def results_policy(self) -> WebhookPolicy:
        """Where links to results may lead beside the server itself. Raises InvalidInput."""
        try:
            return WebhookPolicy.parse(self.results_allow, "443,8443")
        except InvalidInput as error:
            raise InvalidInput("results_allow", error.problem) from error

    def key(self) -> str | None:
        """The key that is shown as it is; None with a log-in. Raises InvalidInput when its file cannot be read."""
        return None if self.login is not None else secret("api_key", self.api_key, self.api_key_file)

    def check(self) -> None:
        """Raises InvalidInput naming the option that cannot be used."""
        _ = self.url, self.results_policy
        if self.tls_ca_file is not None and not self.tls_verify:
            raise InvalidInput("tls_ca_file", "is given, but tls_verify is false: leave one of them out")
        if self.login is None:
            if self.api_key is None and self.api_key_file is None:
                raise InvalidInput("api_key", "is missing: give it, or api_key_file, or login")
            self.key()
            return
        if self.api_key is not None or self.api_key_file is not None:
            raise InvalidInput("login", "is given beside a key: leave one of them out")
        _url("login.token_url", self.login.token_url)
        self.login.form()


def _url(field: str, url: str) -> str:
    return http_url(field, url, example="https://tweezer.example.org", credentials="login")
