"""How a QPU's API is reached: options of a device. No HTTP library is needed to read them."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from tweezer.adapters.remote.http_options import API_PATH, Seconds, Text, http_url, secret
from tweezer.model.errors import InvalidInput


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
        """The client's secret. Raises InvalidInput when there is none, or its file cannot be read."""
        return secret("keycloak.client_secret", self.client_secret, self.client_secret_file)


class ApiOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the API of one QPU is reached.

    base_url: ``http://host:port``; what comes before ``/api/v1``. tls_verify: whether its certificate is checked, and
    tls_ca_file: against which PEM file (None: the system's authorities). keycloak: None where it asks for no token.
    connect_timeout_s: for a connection. read_timeout_s: for the answer to a read or a cancel. submit_timeout_s: for
    that to a submit; later, whether it was executed is not known. retry_s: how long a read is tried again.
    """

    base_url: str
    tls_verify: bool = True
    tls_ca_file: str | None = None
    keycloak: KeycloakOptions | None = None
    connect_timeout_s: Seconds = 5.0
    read_timeout_s: Seconds = 10.0
    submit_timeout_s: Seconds = 30.0
    retry_s: Annotated[float, Meta(ge=0, le=3600)] = 10.0

    @property
    def api_url(self) -> str:
        """Where its paths begin. Raises InvalidInput for what is no such URL."""
        url = _url("base_url", self.base_url)
        return url if url.endswith(API_PATH) else url + API_PATH

    def check(self) -> None:
        """Raises InvalidInput naming the option that cannot be used."""
        _ = self.api_url
        if self.tls_ca_file is not None and not self.tls_verify:
            raise InvalidInput("tls_ca_file", "is given, but tls_verify is false: leave one of them out")
        if self.keycloak is not None:
            _url("keycloak.url", self.keycloak.url)
            self.keycloak.secret()


def _url(field: str, url: str) -> str:
    return http_url(field, url, example="http://qpu.example.org:4300", credentials="keycloak")


class QpuOptions(ApiOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of a QPU as a device: its API's, and how its jobs are followed.

    poll_s: between looks at the job that runs. probe_s: between looks whether the machine is up. ask_again_s: between
    requests to stop a job that goes on. confirm_s: how long the machine may take to say what became of a job that it
    was asked to stop; then the job ends as ``unconfirmed``, unless the machine said that it is too late to stop it.
    forgotten_s: how long after it first says that it does not know a job, and has not shown it since, it is believed.
    turned_away_s: how long submits are repeated that something other than the API turns away, such as a proxy.
    """

    poll_s: Seconds = 1.0
    probe_s: Seconds = 5.0
    ask_again_s: Seconds = 5.0
    confirm_s: Seconds = 120.0
    forgotten_s: Seconds = 30.0
    turned_away_s: Seconds = 1800.0
