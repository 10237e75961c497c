"""Settings, read from ``TWEEZER_…`` variables, then an optional ``tweezer.toml``, then defaults.

Settings are grouped by process or subject. The setting ``worker.lanes`` is the key ``lanes`` of the table ``[worker]``
in the file, and the variable ``TWEEZER_WORKER_LANES``: the prefix, the group and the name.

The settings file is given by ``TWEEZER_CONFIG``, else it is ``./tweezer.toml`` if that exists. A variable that ends in
``_FILE`` names a file that contains a secret, as container platforms mount it. If no Redis is configured, a ``tweezer
up`` that is running in the data folder is used (:mod:`tweezer.data_folder`). Names of durations end in their unit.
``docs/draw_settings.py`` generates the tables in the documentation from this module.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Self
from urllib.parse import quote, urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from tweezer.adapters.lane.jail import JailMode
from tweezer.adapters.lane.lane import LaneOptions
from tweezer.adapters.registry import DEVICE_KINDS, Binding, check_binding, default_binding, get_kind, unknown_device
from tweezer.data_folder import default_data_dir, running_environment
from tweezer.ledger.config import LINK_MAX_S, OpenDatabase, sqlite_file, sqlite_url
from tweezer.logs import LogFormat, LogLevel
from tweezer.model.addresses import WebhookPolicy
from tweezer.model.arguments import read_secret
from tweezer.model.checks import check_characters
from tweezer.model.errors import InvalidInput
from tweezer.model.ids import DEFAULT_PROJECT
from tweezer.store.connection import Connect, check_url
from tweezer.store.scripts import StoreConfig

if TYPE_CHECKING:
    from tweezer.ledger.access.vault import Vault

PREFIX = "TWEEZER_"
CONFIG_VARIABLE = "TWEEZER_CONFIG"
DEFAULT_CONFIG = "tweezer.toml"

_DEVICE_NAME = r"^[A-Za-z0-9_.-]{1,64}$"
_PLAIN = {"extra_forbidden": "is not a known setting", "missing": "is missing"}
_SCHEDULE_S = (0, 5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
_DAY_S = 86_400
_HEARTBEAT_S = 2.0
_WEBHOOK_LINK_S = 7 * _DAY_S  # minimum validity of the link to a result in a webhook

_CONNECT, _STORE, _LANE = Connect(), StoreConfig(), LaneOptions()  # the defaults of several settings

DeviceName = Annotated[str, Field(pattern=_DEVICE_NAME)]
_Wait = Annotated[float, Field(ge=0)]


def _redis_url(url: str) -> str:
    try:
        check_url(url)
    except InvalidInput as error:
        raise ValueError(error.problem) from None
    return url


def _public_url(url: str) -> str:
    parts = urlsplit(url)
    if url and (parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment):
        raise ValueError("must be a URL such as https://tweezer.example.org")
    return url


_ORIGIN = re.compile(r"https?://([a-z0-9_-]+(\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")


def _origins(text: str) -> str:
    """Return the origins as browsers send them: in lower case, and without the usual port."""
    origins = [origin.strip().lower() for origin in text.split(",") if origin.strip()]
    if not all(_ORIGIN.fullmatch(origin) for origin in origins):
        raise ValueError(
            "must be exact origins such as https://app.example.org, separated by commas: no `*`, and nothing after the "
            "host and port"
        )
    return ",".join(it.removesuffix(":443" if it.startswith("https") else ":80") for it in origins)


def _setting(default: Any, read_by: str, **constraints: Any) -> Any:
    """Declare a setting. read_by: the processes that use it, for the documentation."""
    return Field(default, json_schema_extra={"read_by": read_by}, **constraints)


def _secret(default: str, read_by: str) -> Any:
    """Declare a setting that is never shown, and may be read from a separate file."""
    return _setting(default, read_by, repr=False)


class _Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    @field_validator("*", mode="before")
    @classmethod
    def _have_no_control_characters(cls, value: object) -> object:
        """Reject control characters in all texts, at any depth of a table."""
        try:
            _check_characters("", value)
        except InvalidInput as error:
            raise ValueError(error.problem) from error if error.field else None
        return value


class DeviceSettings(_Group):
    """A device that an operator configured: a table ``[devices.NAME]``."""

    adapter: str
    """Kind of adapter that serves the device, such as ``qutip``."""
    specs: Path | None = None
    """File with the device's specs in Pulser's abstract representation. Default: the adapter's, without limits."""
    options: dict[str, Any] = {}
    """Options of the adapter for this device."""

    @model_validator(mode="after")
    def _the_adapter_takes_it(self) -> Self:
        try:
            check_binding(self.adapter, self.options)
        except InvalidInput as error:
            raise ValueError(error.message) from error
        return self


class RedisSettings(_Group):
    """The Redis that holds live work."""

    url: Annotated[str, AfterValidator(_redis_url)] = _secret(_CONNECT.url, "all")
    """URL of Redis, with its credentials: ``redis://``, ``rediss://`` (TLS), ``unix://``, or
    ``redis+sentinel://host:26379,host:26379/service/0`` to find the primary with Sentinel."""
    password: str = _secret("", "all")
    """Password for the URL, if it contains none."""
    grace_s: int = _setting(_DAY_S, "recorder", ge=0)
    """How long an ended batch stays in Redis after it was recorded in the ledger; less if Redis runs full."""
    restore_wait_s: float = _setting(_STORE.restore_wait_s, "worker, scheduler", ge=0, le=3600)
    """Maximum time after a restart of Redis in which the recorder restores lost data. Until it has finished, workers
    wait, and changes to older batches are rejected with ``503``."""


class DatabaseSettings(_Group):
    """The database of the ledger."""

    url: str = _secret("", "api, recorder, courier, scheduler, commands")
    """URL of the [ledger]'s database: ``postgresql://user:password@host/database``, or ``sqlite:///file``
    (encode ``%``, ``?`` and ``#`` in its path as ``%25``, ``%3F`` and ``%23``). Empty: ``ledger.db`` in the data
    folder."""
    password: str = _secret("", "api, recorder, courier, scheduler, commands")
    """Password for the URL of a PostgreSQL database, if it contains none."""
    connections: int = _setting(OpenDatabase("").connections_max, "api, recorder, courier, scheduler", ge=1, le=256)
    """Maximum number of database connections per process. In an API process, the requests of one user, or of one
    project without users, may use 3/8 of them at once."""
    retention_s: int = _setting(0, "scheduler", ge=0)
    """How long the ledger keeps ended batches and their results, unless their project has another limit; 0: forever."""


class SecretsSettings(_Group):
    """Encryption of secrets in the ledger."""

    key: str = _secret("", "api, courier, commands")
    """Key that encrypts the secrets of [webhooks] and links: 32 bytes in base64. It may be several keys,
    separated by commas: the first one encrypts, all of them decrypt. Empty: the file ``secrets.key`` in the data
    folder, created when needed."""


class WorkerSettings(_Group):
    """Workers and their lanes."""

    device: str = _setting("EMU_FREE", "worker", pattern=_DEVICE_NAME)
    """Device that a worker serves."""
    lanes: int = _setting(2, "worker", ge=1, le=256)
    """Number of lanes of a worker: emulator processes that run in parallel, each on one core."""
    memory_limit_mb: int = _setting(_LANE.memory_limit_mb, "worker", ge=0)
    """Memory limit of one lane; a job that needs more ends in ERROR. 0: no limit."""
    jail: JailMode = _setting(_LANE.jail, "worker")
    """Whether lanes are [jailed]: ``on`` as far as the kernel supports
    it, or ``off``, where they can access everything that the worker's user can."""
    lease_s: float = _setting(15.0, "worker, scheduler", ge=1, le=3600)
    """How long a worker owns a ticket without renewing it. Work of a dead worker restarts after this time plus a
    second. Workers send a heartbeat every 2 s, or every quarter of a lease if that is shorter."""
    drain_s: float = _setting(4.0, "worker, scheduler", ge=0, le=86_400)
    """How long jobs may continue after SIGTERM. The service manager must wait longer before it sends SIGKILL."""
    quantum_s: float = _setting(_STORE.quantum_s, "worker, scheduler", ge=0.01, le=60)
    """Lane time after which a batch yields its lane to a waiting batch of another project or of a higher priority."""
    prepare_timeout_s: float = _setting(_LANE.prepare_timeout_s, "worker", gt=0, le=3600)
    """Time limit for preparing a batch on a lane (reading, checking and building its sequence). A batch that exceeds it
    ends in ERROR."""

    @property
    def heartbeat_s(self) -> float:
        """Interval at which a worker reports that it is alive and what it does."""
        return min(_HEARTBEAT_S, self.lease_s / 4)


class QuotaSettings(_Group):
    """Limits of each [project][quotas]; ``tweezer projects limit`` sets the limits of a single project."""

    queued_jobs: int = _setting(_STORE.queued_jobs, "worker, scheduler", ge=0)
    """Maximum number of pending jobs of a [project][quotas]; 0: no limit."""
    queued_mb: int = _setting(_STORE.queued_bytes >> 20, "worker, scheduler", ge=0)
    """Maximum memory in Redis for the sequences and jobs of a project's batches that have not ended; 0: no limit. Any
    other limit is capped at a quarter of the memory that Redis may fill with work (80 % of ``maxmemory``)."""
    results_mb: int = _setting(_STORE.result_bytes >> 20, "worker, scheduler", ge=0)
    """Maximum size of all stored results of a project, including those in the results folder; 0: no limit."""


class ApiSettings(_Group):
    """The HTTP API."""

    host: str = _setting("127.0.0.1", "api", min_length=1)
    """Address or name on which the API listens; ``0.0.0.0`` is all addresses, which requires
    [a proxy with TLS][proxies] in front of the API."""
    port: int = _setting(8000, "api", ge=0, le=65_535)
    """Port of the API; 0 picks a free one."""
    key: str = _secret("", "tweezer up, clients")
    """API key for ``tweezer up`` to use; empty: it generates one. Also the key that the Python API and the command line
    send to an API."""
    public_url: Annotated[str, AfterValidator(_public_url)] = _setting("", "api, courier")
    """URL by which clients reach the API, for links to results. Empty: the URL of the request."""
    trusted_proxies: str = _setting("", "api")
    """Addresses or networks of proxies in front of the API, separated by commas, whose ``X-Forwarded-For`` and
    ``X-Forwarded-Proto`` headers are trusted; ``*`` trusts all clients."""
    cors_origins: Annotated[str, AfterValidator(_origins)] = _setting("", "api")
    """Origins of web applications whose scripts may call the API in a [browser][browsers], such as
    ``https://app.example.org``, separated by commas. Empty: none."""
    connections_per_address: int = _setting(1000, "api", ge=1, le=65_536)
    """Maximum number of connections from one address (for IPv6, one /64 network) to an API process; trusted proxies
    have no limit. Never more than half of the process's limit on open files, which it raises at its start as far as the
    system allows."""
    requests_per_s: float = _setting(200.0, "api", gt=0)
    """Average number of requests per second of one user or key, with bursts of twice as many; further requests get
    ``429``. Each API process counts separately."""
    body_max_kb: int = _setting(16_384, "api", ge=1)
    """Maximum size of a request body as sent. A compressed body may have 64 MiB uncompressed, or four times this
    setting if that is more."""
    longpoll_s: float = _setting(20.0, "api", ge=0, le=20)
    """How long a status request waits for a change; 0 answers at once. Pasqal's clients time out after 30 s."""
    session_s: int = _setting(_DAY_S, "api", ge=60)
    """How long an access token from a login with name and password is valid."""
    link_s: int = _setting(3600, "api", ge=10, le=LINK_MAX_S)
    """How long a link to results is valid; 30 days at most."""


class WebhookSettings(_Group):
    """Delivery of webhooks."""

    allow: str = _setting("", "api, courier, commands")
    """Networks (``10.1.0.0/16``), addresses and names (``hooks.lab``, ``*.lab``), separated by commas, to which
    [webhooks][addresses] may be sent although they are not public. Plain http and any port are
    allowed there; for a URL with a name, only if the name is listed."""
    ports: str = _setting("443,8443", "api, courier, commands")
    """Ports to which webhooks may be sent elsewhere, separated by commas."""
    processes: int = _setting(2, "courier", ge=1, le=64)
    """Number of processes of one ``tweezer courier``, which share the work."""
    endpoint_connections: int = _setting(16, "courier", ge=1, le=1024)
    """Maximum number of simultaneous attempts of one courier process to one receiver."""
    timeout_s: float = _setting(15.0, "courier, commands", gt=0, le=120)
    """Time limit for one attempt, from the connection to the end of the response."""
    schedule_s: tuple[_Wait, ...] = _setting(_SCHEDULE_S, "courier", min_length=1, max_length=50)
    """Delay of each attempt after the previous one; the first number is 0. As a variable: JSON (``[0, 5, 60]``)."""
    kept_s: int = _setting(30 * _DAY_S, "scheduler", ge=0)
    """How long ended deliveries are kept, with all attempts; 0: as long as their batch."""

    @property
    def link_s(self) -> int:
        """Validity of the link to a result in a webhook: a week, or twice the duration of all attempts if longer."""
        return min(LINK_MAX_S, max(_WEBHOOK_LINK_S, 2 * round(sum(self.schedule_s))))


class LogSettings(_Group):
    """Logs, on stderr."""

    format: LogFormat = _setting("auto", "all")
    """``json``, ``console``, or ``auto``: ``console`` in a terminal, else ``json``."""
    level: LogLevel = _setting("INFO", "all")
    """Lowest level to log: ``DEBUG``, ``INFO``, ``WARNING`` or ``ERROR``."""


class Settings(_Group):
    """All settings. Read them with :func:`load`, which reports the first error as one sentence."""

    data_dir: Path = Field(default_factory=default_data_dir, json_schema_extra={"read_by": "all"})
    """Data folder of [`tweezer up`][up], where commands also find a running instance
    (``$XDG_DATA_HOME/tweezer`` if that variable is set); created when needed."""
    results_dir: Path | None = _setting(None, "worker, api, recorder, scheduler")
    """Folder of [results] that are too large for Redis, which workers, API, recorder and scheduler must
    share. Empty: ``results`` in the data folder."""
    namespace: str = _setting(_CONNECT.namespace, "all", pattern=r"^[A-Za-z0-9_.-]{1,32}$")
    """Prefix of all keys in Redis. A second installation on the same server also needs another database number,
    because arq's keys do not include the namespace."""
    project_id: str = _setting(DEFAULT_PROJECT, "commands", pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    """Project of ``tweezer up`` and of the commands that submit and read."""
    devices: dict[DeviceName, DeviceSettings] = _setting({}, "worker")
    """Additional [devices], or replacements of ``EMU_FREE`` and ``NULL``: the tables ``[devices.NAME]``, or
    the variable as one JSON object."""
    redis: RedisSettings = RedisSettings()
    database: DatabaseSettings = DatabaseSettings()
    secrets: SecretsSettings = SecretsSettings()
    worker: WorkerSettings = WorkerSettings()
    quota: QuotaSettings = QuotaSettings()
    api: ApiSettings = ApiSettings()
    webhook: WebhookSettings = WebhookSettings()
    log: LogSettings = LogSettings()

    def binding(self, device: str) -> Binding:
        """Return the adapter binding of a device. Raises InvalidInput("device", …) for an unknown device."""
        given = self.devices.get(device)
        if given is not None:
            return Binding(given.adapter, given.options, given.specs)
        usual = default_binding(device)
        if usual is None:
            raise unknown_device(device, {**DEVICE_KINDS, **self.devices})
        return usual

    def machines(self) -> list[str]:
        """Return the configured devices whose jobs continue when their worker ends."""
        return [name for name, given in self.devices.items() if get_kind(given.adapter).reattaches]

    def devices_text(self) -> str:
        """Return the configured devices in the format of the variable ``TWEEZER_DEVICES``."""
        return json.dumps({name: given.model_dump(mode="json") for name, given in self.devices.items()})

    def connect(self) -> Connect:
        """Return the connection settings of Redis."""
        return Connect(
            url=_with_password(self.redis.url, self.redis.password),
            namespace=self.namespace,
            results_dir=self.results_folder(),
        )

    def locate_ledger(self) -> OpenDatabase:
        """Return the connection settings of the ledger's database."""
        url = self.database.url or sqlite_url(self.data_dir.absolute() / "ledger.db")
        most = self.database.connections
        return OpenDatabase(
            url=url if sqlite_file(url) else _with_password(url, self.database.password),
            connections_max=most,
            share=max(1, most * 3 // 8),
        )

    def public_base(self) -> str:
        """Return the URL of the API for links created outside of requests, without a trailing slash."""
        if self.api.public_url:
            return self.api.public_url.rstrip("/")
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.api.host, self.api.host)  # noqa: S104  # not listened on
        return f"http://[{host}]:{self.api.port}" if ":" in host else f"http://{host}:{self.api.port}"

    def webhook_policy(self) -> WebhookPolicy:
        """Return the allowed targets of webhooks. Raises InvalidInput."""
        return WebhookPolicy.parse(self.webhook.allow, self.webhook.ports)

    def vault(self) -> Vault:
        """Return the vault that encrypts secrets in the ledger; may create its key file. Raises InvalidInput."""
        from tweezer.ledger.access.vault import Vault

        return Vault.of(self.secrets.key, self.data_dir)

    def results_folder(self) -> Path:
        """Return the folder of large results."""
        return (self.results_dir or self.data_dir / "results").absolute()

    def store_config(self) -> StoreConfig:
        """Return the configuration of the scripts in Redis."""
        return StoreConfig(
            quantum_s=self.worker.quantum_s,
            restore_wait_s=self.redis.restore_wait_s,
            queued_jobs=self.quota.queued_jobs,
            queued_bytes=self.quota.queued_mb << 20,
            result_bytes=self.quota.results_mb << 20,
        )


class Setting(NamedTuple):
    """A setting with its names."""

    group: str
    """Name of its table in the file; empty for settings outside of tables."""
    name: str
    field: FieldInfo

    @property
    def key(self) -> str:
        """The name in the file, such as ``api.port``."""
        return f"{self.group}.{self.name}" if self.group else self.name

    @property
    def variable(self) -> str:
        return variable_name(self.key)

    @property
    def is_secret(self) -> bool:
        return not self.field.repr


def variable_name(key: str) -> str:
    """Return the variable of a setting: ``TWEEZER_API_PORT`` for ``api.port``."""
    return PREFIX + key.replace(".", "_").upper()


def _find_settings() -> Iterator[Setting]:
    for name, field in Settings.model_fields.items():
        match field.default:
            case _Group() as group:
                yield from (Setting(name, inner, found) for inner, found in type(group).model_fields.items())
            case _:
                yield Setting("", name, field)


SETTINGS: Mapping[str, Setting] = {setting.key: setting for setting in _find_settings()}
"""Key → setting."""

SECRET_FILES = {key: f"{setting.variable}_FILE" for key, setting in SETTINGS.items() if setting.is_secret}
"""Key of a secret → the variable that names a file with its value."""


def find_variable(key: str) -> str | None:
    """Return the variable that sets this key, directly or with a secret file; None if neither is set."""
    variables = (variable_name(key), SECRET_FILES.get(key, ""))
    return next((variable for variable in variables if os.environ.get(variable)), None)


def to_environment(values: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables for these values (key → value)."""
    return {variable_name(key): value for key, value in values.items()}


def load(given: Mapping[str, object] | None = None) -> Settings:
    """Read the settings from the environment and the settings file.

    Args:
        given: Values that override all other sources (key → value), for example from the command line.

    Returns:
        The settings, with defaults for everything that is not set.

    Raises:
        InvalidInput: A value is not valid. ``field`` is the variable, or the key and the file, that contains it.

    Example:
        ```python
        settings = load({"worker.lanes": 4})
        ```
    """
    given = given or {}
    path = Path(os.environ.get(CONFIG_VARIABLE) or DEFAULT_CONFIG)
    values = _merge(_nest(given), _merge(_read_environment(), _read_file(path)))
    redis = values.get("redis")
    if not isinstance(redis, dict) or not redis.get("url"):
        folder = values.get("data_dir")
        running = running_environment(Path(str(folder)) if folder else None)
        values = _merge(
            values, _nest({k: running[it.variable] for k, it in SETTINGS.items() if it.variable in running})
        )
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise _first_problem(error, given, path) from error


def _read_file(path: Path) -> dict[str, Any]:
    """Read the settings file, which may begin with a byte order mark from an editor on Windows."""
    if not path.is_file():
        if CONFIG_VARIABLE in os.environ:
            raise InvalidInput(CONFIG_VARIABLE, f"the file {path} does not exist")
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InvalidInput(str(path), f"is not valid UTF-8 text: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput(str(path), f"is not valid TOML: {error}") from error
    except OSError as error:
        raise InvalidInput(str(path), f"cannot be read: {error.strerror}") from error


def _read_environment() -> dict[str, Any]:
    """Read the variables, and the secret files of unset variables. Empty variables count as unset."""
    found: dict[str, object] = {}
    for key, setting in SETTINGS.items():
        file_variable = SECRET_FILES.get(key, "")
        if text := os.environ.get(setting.variable):
            found[key] = text
            if isinstance(setting.field.default, dict | tuple):
                try:
                    found[key] = json.loads(text)
                except ValueError as error:
                    raise InvalidInput(setting.variable, f"is not valid JSON: {error}") from error
        elif file := os.environ.get(file_variable):
            found[key] = read_secret(file_variable, Path(file))
    return _nest(found)


def _nest(values: Mapping[str, object]) -> dict[str, Any]:
    """Turn keys such as ``api.port`` into tables."""
    nested: dict[str, Any] = {}
    for key, value in values.items():
        group, _, name = key.rpartition(".")
        (nested.setdefault(group, {}) if group else nested)[name] = value
    return nested


def _merge(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Merge tables at every depth; values of the first one take precedence."""
    merged = second | first
    for name in first.keys() & second.keys():
        if isinstance(first[name], dict) and isinstance(second[name], dict):
            merged[name] = _merge(first[name], second[name])
    return merged


def _with_password(url: str, password: str) -> str:
    """Add the password to the URL, unless it contains one."""
    scheme, _, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    user, _, place = authority.rpartition("@")
    if not password or ":" in user:
        return url
    return f"{scheme}://{user}:{quote(password, safe='')}@{place}{slash}{path}"


def _check_characters(field: str, value: object) -> None:
    match value:
        case str():
            check_characters(field, value)
        case dict():
            for key, item in value.items():
                name = f"{field}.{key}" if field else str(key)
                _check_characters(name, str(key))
                _check_characters(name, item)
        case list() | tuple():
            for item in value:
                _check_characters(field, item)


def _first_problem(error: ValidationError, given: Mapping[str, object], path: Path) -> InvalidInput:
    details = error.errors(include_url=False)[0]
    cause = getattr(details.get("ctx", {}).get("error"), "__cause__", None)
    steps = [str(step) for step in details["loc"] if step != "[key]"]
    if isinstance(cause, InvalidInput):
        steps += cause.field.split(".")
    setting = SETTINGS.get(".".join(steps[:2])) or SETTINGS.get(steps[0])
    source = f"{'.'.join(steps)} in {path}"
    if setting is not None:
        within = ".".join(steps)[len(setting.key) :]
        if setting.key in given:
            source = f"{setting.key}{within}"
        elif variable := find_variable(setting.key):
            source = f"{variable}{within}"
    is_secret = setting is None or setting.is_secret
    return InvalidInput(
        source, cause.problem if isinstance(cause, InvalidInput) else _sentence(details, shows_value=not is_secret)
    )


def _sentence(details: ErrorDetails, *, shows_value: bool) -> str:
    """Return pydantic's message, with the given value unless it may contain a password."""
    if details["type"] in _PLAIN:
        return _PLAIN[details["type"]]
    message = details["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return f"{message} (got {details['input']!r})" if shows_value else message
