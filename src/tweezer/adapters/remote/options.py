"""Options of devices whose jobs run on a QPU or another server. Reading them needs no HTTP library."""

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
    """How a remote API is reached, and how its jobs are followed. Times are in seconds.

    Attributes:
        base_url: The part of the URL before ``/api/v1``.
        tls_verify: Whether the API's certificate is checked.
        tls_ca_file: A PEM file with the authorities for that check; None: those of the system.
        connect_timeout_s: Time to open a connection.
        read_timeout_s: Time for the answer to a read or a cancel.
        submit_timeout_s: Time for the answer to a submit. After it, it is unknown whether the submit was executed.
        retry_s: How long a read is retried.
        poll_s: Time between two polls of a job.
        probe_s: Time between two probes of the device.
        ask_again_s: Time between two requests to stop a job that continues to run.
        turned_away_s: How long submits are repeated that something in front of the API refuses, such as a proxy.
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
        """Check the options. Raises InvalidInput naming the invalid one."""
        if self.tls_ca_file is not None and not self.tls_verify:
            raise InvalidInput("tls_ca_file", "cannot be combined with tls_verify = false; remove one of them")


class KeycloakOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Client credentials at a Keycloak. The secret is given directly, or as a file that contains only the secret."""

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
        """Return the client's secret. Raises InvalidInput if it is missing or its file cannot be read."""
        return _read_secret("keycloak.client_secret", self.client_secret, self.client_secret_file)


class QpuOptions(RemoteOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of a QPU as a device.

    Attributes:
        keycloak: Where tokens come from; None if the API needs none.
        confirm_s: How long the machine may take to report the end of a job that it was asked to stop. Then the job ends
            as ``unconfirmed``, unless the machine answered that it is too late to stop it.
        forgotten_s: How long the machine must report that it does not know a job before the job counts as forgotten.
    """

    keycloak: KeycloakOptions | None = None
    confirm_s: Seconds = 120.0
    forgotten_s: Seconds = 30.0

    @property
    def api_url(self) -> str:
        """The URL at which the API's paths begin. Raises InvalidInput if ``base_url`` is not a valid URL."""
        url = _check_url("base_url", self.base_url, _QPU_URL, "keycloak")
        return url if url.endswith(API_PATH) else url + API_PATH

    def check(self) -> None:
        _ = self.api_url
        super().check()
        if self.keycloak is not None:
            _check_url("keycloak.url", self.keycloak.url, _QPU_URL, "keycloak")
            self.keycloak.secret()


class LoginOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How to get tokens from a token endpoint: with a user's name and password, or with a client's secret.

    Secrets are given directly, or as files that contain only the secret.

    Attributes:
        token_url: The token endpoint.
        grant_type: OAuth's grant type; Auth0 has its own. None: ``password`` with a username, else
            ``client_credentials``.
        realm: Sent if the server needs it.
        audience: Sent if the server needs it.
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
        """The user or client for whom tokens are fetched."""
        return self.username or self.client_id or ""

    def form(self) -> dict[str, str]:
        """Return the form to post for a token. Raises InvalidInput naming what is missing or cannot be read."""
        given: dict[str, str | None] = {"client_id": self.client_id, "realm": self.realm, "audience": self.audience}
        if self.username is not None:
            given |= {"grant_type": self.grant_type or "password", "username": self.username}
            given["password"] = _read_secret("login.password", self.password, self.password_file)
            if self.client_secret is not None or self.client_secret_file is not None:
                given["client_secret"] = self._client_secret()
        else:
            if self.client_id is None:
                raise InvalidInput(
                    "login.username", "is missing; give it with a password, or a client_id with a client_secret"
                )
            given["grant_type"] = self.grant_type or "client_credentials"
            given["client_secret"] = self._client_secret()
        return {name: value for name, value in given.items() if value is not None}

    def _client_secret(self) -> str:
        return _read_secret("login.client_secret", self.client_secret, self.client_secret_file)


class ForwardOptions(RemoteOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of a device whose jobs another server runs.

    The credentials are ``api_key``, ``api_key_file`` or ``login``.

    Attributes:
        device: The device's name on the server (``device_type``).
        project_id: The project on the server; None if the key belongs to one project.
        idempotency_s: How long the server recognises a repeated ``Idempotency-Key``, in seconds; 0: it does not. A
            Tweezer recognises it for 86400 s.
        is_emulator: Whether the device is an emulator.
        max_runs: The largest number of shots of a job, if the device's specs do not define it.
        poll_s: Seconds between two polls of a job, unless the server delays its answer until the job has ended.
        lag_s: How old the server's lists may be, in seconds.
        results_allow: Networks, addresses and host names, separated by commas, to which links to results may lead, in
            addition to the server itself and public addresses.
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
        """The URL at which the API's paths begin. Raises InvalidInput if ``base_url`` is not a valid URL."""
        return _check_url("base_url", self.base_url, _SERVER_URL, "login").removesuffix(API_PATH)

    @property
    def results_policy(self) -> WebhookPolicy:
        """The addresses to which links to results may lead, beside the server itself. Raises InvalidInput."""
        try:
            return WebhookPolicy.parse(self.results_allow, "443,8443")
        except InvalidInput as error:
            raise InvalidInput("results_allow", error.problem) from error

    def key(self) -> str | None:
        """Return the key; None with ``login``. Raises InvalidInput if its file cannot be read."""
        return None if self.login is not None else _read_secret("api_key", self.api_key, self.api_key_file)

    def check(self) -> None:
        _ = self.url, self.results_policy
        super().check()
        if self.login is None:
            if self.api_key is None and self.api_key_file is None:
                raise InvalidInput("api_key", "is missing; give api_key, api_key_file or login")
            self.key()
            return
        if self.api_key is not None or self.api_key_file is not None:
            raise InvalidInput("login", "cannot be combined with a key; remove one of them")
        _check_url("login.token_url", self.login.token_url, _SERVER_URL, "login")
        self.login.form()


def _read_secret(field: str, given: str | None, file: str | None) -> str:
    """Return the given secret, or the one in the file. Raises InvalidInput naming the field."""
    if file is None:
        if not given:
            raise InvalidInput(field, f"is missing; give it, or {field.rpartition('.')[2]}_file")
        return given
    try:
        text = Path(file).read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{field}_file", f"cannot be read: {error}") from error
    if not text:
        raise InvalidInput(f"{field}_file", f"{file} is empty; it must contain only the secret")
    return text


def _check_url(field: str, url: str, example: str, credentials: str) -> str:
    """Return the URL without trailing slashes. Raises InvalidInput naming the field.

    credentials: The option for credentials, for the error.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise InvalidInput(field, f"is not a valid URL: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise InvalidInput(field, f"must be an http or https URL, such as {example}")
    if parts.username or parts.password:
        raise InvalidInput(field, f"must not contain a user or a password; give credentials in {credentials}")
    return url.rstrip("/")
