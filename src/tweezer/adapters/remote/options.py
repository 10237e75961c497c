"""Options of devices whose jobs run elsewhere, on a QPU or another server. No HTTP library is needed to read them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from tweezer.model.addresses import WebhookPolicy
from tweezer.model.errors import InvalidInput

Seconds = Annotated[float, Meta(gt=0, le=3600)]
_RetrySeconds = Annotated[float, Meta(ge=0, le=3600)]
Text = Annotated[str, Meta(min_length=1)]

API_PATH = "/api/v1"

_QPU_URL, _SERVER_URL = "http://qpu.example.org:4300", "https://tweezer.example.org"


class RemoteOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a remote API is reached, and how its jobs are followed.

    base_url: what comes before ``/api/v1``. tls_verify: whether its certificate is checked, and tls_ca_file: against
    which PEM file (None: the system's authorities). connect_timeout_s: for a connection. read_timeout_s: for the answer
    to a read or a cancel. submit_timeout_s: for that to a submit; later, whether it was executed is not known.
    retry_s: how long a read is tried again. poll_s: between polls of a job. probe_s: between polls of the device.
    ask_again_s: between requests to stop a job that goes on. turned_away_s: how long submits are repeated that
    something other than the API turns away, such as a proxy.
    """

    base_url: str
    tls_verify: bool = True
    tls_ca_file: str | None = None
    connect_timeout_s: Seconds = 5.0
    read_timeout_s: Seconds = 10.0
    submit_timeout_s: Seconds = 30.0
    retry_s: _RetrySeconds = 10.0
    poll_s: Seconds = 1.0
    probe_s: Seconds = 5.0
    ask_again_s: Seconds = 5.0
    turned_away_s: Seconds = 1800.0

    def check(self) -> None:
        """Raises InvalidInput naming the option that cannot be used."""
        if self.tls_ca_file is not None and not self.tls_verify:
            raise InvalidInput("tls_ca_file", "is given, but tls_verify is false: leave one of them out")


class KeycloakOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Client credentials at a Keycloak. The secret is given, or a file that holds it and nothing else."""

    url: Text
    realm: Text
    client_id: Text
    client_secret: str | None = None
    client_secret_file: str | None = None

    def __repr__(self) -> str:
        return f"KeycloakOptions(url={self.url!r}, realm={self.realm!r}, client_id={self.client_id!r})"

    @property
    def token_url(self) -> str:
        return f"{self.url.rstrip('/')}/realms/{self.realm}/protocol/openid-connect/token"

    def secret(self) -> str:
        """Return the client's secret. Raises InvalidInput when there is none, or its file cannot be read."""
        return _read_secret("keycloak.client_secret", self.client_secret, self.client_secret_file)


class QpuOptions(RemoteOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of a QPU as a device.

    keycloak: None where it asks for no token. confirm_s: how long the machine may take to say what became of a job that
    it was asked to stop; then the job ends as ``unconfirmed``, unless the machine said that it is too late to stop it.
    forgotten_s: how long after it first says that it does not know a job, and has not shown it since, it is believed.
    """

    keycloak: KeycloakOptions | None = None
    confirm_s: Seconds = 120.0
    forgotten_s: Seconds = 30.0

    @property
    def api_url(self) -> str:
        """Where its paths begin. Raises InvalidInput for what is no such URL."""
        url = _check_url("base_url", self.base_url, _QPU_URL, "keycloak")
        return url if url.endswith(API_PATH) else url + API_PATH

    def check(self) -> None:
        _ = self.api_url
        super().check()
        if self.keycloak is not None:
            _check_url("keycloak.url", self.keycloak.url, _QPU_URL, "keycloak")
            self.keycloak.secret()


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
        """Return what is posted for a token. Raises InvalidInput naming what is missing, or cannot be read."""
        given: dict[str, str | None] = {"client_id": self.client_id, "realm": self.realm, "audience": self.audience}
        if self.username is not None:
            given |= {"grant_type": self.grant_type or "password", "username": self.username}
            given["password"] = _read_secret("login.password", self.password, self.password_file)
            if self.client_secret is not None or self.client_secret_file is not None:
                given["client_secret"] = self._client_secret()
        else:
            if self.client_id is None:
                raise InvalidInput(
                    "login.username", "is missing: give it with a password, or a client_id with a secret"
                )
            given["grant_type"] = self.grant_type or "client_credentials"
            given["client_secret"] = self._client_secret()
        return {name: value for name, value in given.items() if value is not None}

    def _client_secret(self) -> str:
        return _read_secret("login.client_secret", self.client_secret, self.client_secret_file)


class ForwardOptions(RemoteOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of a device whose jobs another server runs.

    device: its name there (``device_type``). project_id: None where the key belongs to one project. api_key, or
    api_key_file, or login: the credentials. idempotency_s: for how long the server recognises a repeated
    ``Idempotency-Key``; 0: it does not; a Tweezer: 86400. is_emulator: whether the device there is one. max_runs: the
    most shots of a job there, where its specs do not say. poll_s: between polls of a job, where the server does not
    hold the question until it has ended. lag_s: how far its lists may be behind. results_allow: networks, addresses and
    names, with commas between, to which links to results may lead beside the server itself and public addresses.
    """

    device: Text
    project_id: str | None = None
    api_key: str | None = None
    api_key_file: str | None = None
    login: LoginOptions | None = None
    idempotency_s: Annotated[float, Meta(ge=0)] = 0.0
    is_emulator: bool = True
    max_runs: Annotated[int, Meta(ge=1)] = 1_000_000
    read_timeout_s: Seconds = 30.0
    submit_timeout_s: Seconds = 60.0
    results_allow: str = ""
    probe_s: Seconds = 15.0
    ask_again_s: Seconds = 10.0
    lag_s: Annotated[float, Meta(ge=0, le=86_400)] = 60.0

    def __repr__(self) -> str:
        return f"ForwardOptions(base_url={self.base_url!r}, device={self.device!r})"

    @property
    def url(self) -> str:
        """Where its paths begin. Raises InvalidInput for what is no such URL."""
        return _check_url("base_url", self.base_url, _SERVER_URL, "login").removesuffix(API_PATH)

    @property
    def results_policy(self) -> WebhookPolicy:
        """Where links to results may lead beside the server itself. Raises InvalidInput."""
        try:
            return WebhookPolicy.parse(self.results_allow, "443,8443")
        except InvalidInput as error:
            raise InvalidInput("results_allow", error.problem) from error

    def key(self) -> str | None:
        """Return the key that is sent as it is; None with a log-in. Raises InvalidInput if its file cannot be read."""
        return None if self.login is not None else _read_secret("api_key", self.api_key, self.api_key_file)

    def check(self) -> None:
        _ = self.url, self.results_policy
        super().check()
        if self.login is None:
            if self.api_key is None and self.api_key_file is None:
                raise InvalidInput("api_key", "is missing: give it, or api_key_file, or login")
            self.key()
            return
        if self.api_key is not None or self.api_key_file is not None:
            raise InvalidInput("login", "is given beside a key: leave one of them out")
        _check_url("login.token_url", self.login.token_url, _SERVER_URL, "login")
        self.login.form()


def _read_secret(field: str, given: str | None, file: str | None) -> str:
    """Return the secret that is given, or that the file holds. Raises InvalidInput naming the field."""
    if file is None:
        if not given:
            raise InvalidInput(field, f"is missing: give it, or {field.rpartition('.')[2]}_file")
        return given
    try:
        text = Path(file).read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{field}_file", f"cannot be read: {error}") from error
    if not text:
        raise InvalidInput(f"{field}_file", "is empty")
    return text


def _check_url(field: str, url: str, example: str, credentials: str) -> str:
    """Return the URL without a slash at its end. Raises InvalidInput naming the field. credentials: their option."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise InvalidInput(field, f"is no URL: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise InvalidInput(field, f"must be a URL such as {example}")
    if parts.username or parts.password:
        raise InvalidInput(field, f"must not carry a user or a password; credentials go into {credentials}")
    return url.rstrip("/")
