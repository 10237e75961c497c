"""Connect the client of either stack to a server by changing only its endpoints, and record the responses."""

from __future__ import annotations

import os
from importlib.metadata import version
from typing import Any

from pasqal_cloud.authentication import TokenProvider
from pasqal_cloud.endpoints import Endpoints, TokenProviderConf

NEW = not version("pasqal-cloud").startswith("0.22.")
"""Whether this is stack A: pasqal-cloud with Pulser's connections."""

if NEW:
    from pasqal_cloud import OVHConnection, PasqalCloudConnection
    from pasqal_cloud.pasqal_cloud_client import PasqalCloudClient
else:
    from pasqal_cloud import SDK as PasqalCloudClient  # noqa: N811  # its old name
    from pulser_pasqal import OVHConnection
    from pulser_pasqal import PasqalCloud as PasqalCloudConnection


class _Key(TokenProvider):
    def __init__(self, key: str) -> None:
        self._key = key

    def get_token(self) -> str:
        return self._key


class Access:
    """Access to the server with a key, with a name and password, or with neither.

    ``prefix`` precedes the paths of the core API. With ``plain``, bodies are not compressed.
    """

    def __init__(
        self,
        base: str,
        project: str,
        key: str | None = None,
        username: str | None = None,
        password: str | None = None,
        prefix: str = "",
        plain: bool = False,
    ) -> None:
        self.requests: list[dict[str, Any]] = []
        self.base = base
        self._project = project
        self._key = key
        self._plain = plain
        self._options: dict[str, Any] = {
            "project_id": project,
            "endpoints": Endpoints(core=base + prefix, account=base + "/account"),
        }
        if key is not None:
            self._options["token_provider"] = _Key(key)
        elif username is not None:
            self._options |= {"username": username, "password": password, "auth_config": self._login()}

    def moved(self, base: str) -> Access:
        """Return an access with the same key to another base URL."""
        return Access(base, self._project, self._key)

    def client(self, **options: Any) -> Any:
        """Return the client itself."""
        return self._noted(PasqalCloudClient(**self._options, **options))

    def connection(self) -> Any:
        """Return Pulser's connection."""
        connection = PasqalCloudConnection(**self._options)
        self._noted(connection.cloud_client if NEW else connection._sdk_connection)
        return connection

    def third_party(self) -> Any:
        """Return Pulser's connection for customers of OVH: its token comes from the environment."""
        os.environ["PASQAL_PULSER_ACCESS_TOKEN"] = self._key or ""
        connection = OVHConnection(endpoints=self._options["endpoints"])
        self._noted(connection.cloud_client if NEW else connection._sdk_connection)
        return connection

    def _login(self) -> TokenProviderConf:
        return TokenProviderConf(
            token_endpoint=f"{self.base}/oauth/token",
            public_client_id="local",
            audience="local",
            realm="local",
            grant_type="password",
        )

    def _noted(self, client: Any) -> Any:
        def note(response: Any, **_: Any) -> None:
            sent = response.request
            self.requests.append(
                {
                    "method": sent.method,
                    "path": sent.path_url.partition("?")[0],
                    "query": sent.path_url.partition("?")[2],
                    "status": response.status_code,
                    "encoding": sent.headers.get("Content-Encoding"),
                    "authorized": "Authorization" in sent.headers,
                }
            )

        if self._plain:  # as PASQAL_SKIP_GZIP_REQUEST_BODY does
            client._client.allow_gzip_request_body = False
        client._client.session.hooks["response"].append(note)
        return client
