"""Settings: from the environment (prefix ``TWEEZER_``), then an optional ``tweezer.toml``, then defaults.

Where neither names a Redis, a ``tweezer up`` that runs in the data folder is used (:mod:`tweezer.data_folder`).

A secret may be in a file that the variable with ``_FILE`` behind its name names, as container platforms mount it. The
file is the one that ``TWEEZER_CONFIG`` names, else ``./tweezer.toml`` if it is there; its keys are the
field names below, in lower case. Durations carry their unit in the name.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self
from urllib.parse import quote, urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from tweezer.adapters.lane.jail import JailMode
from tweezer.adapters.registry import DEVICE_KINDS, Binding, check_binding, kind_of, unknown_device, usual_binding
from tweezer.data_folder import default_data_dir, running_environment
from tweezer.ledger.place import LINK_MAX_S, DeadLetterBounds, OpenDatabase, sqlite_file, sqlite_url
from tweezer.logs import LogFormat, LogLevel
from tweezer.model.addresses import WebhookPolicy
from tweezer.model.checks import check_characters
from tweezer.model.errors import InvalidInput
from tweezer.store.connection import Connect, check_url
from tweezer.store.scripts import StoreConfig

PREFIX = "TWEEZER_"
CONFIG_VARIABLE = "TWEEZER_CONFIG"
DEFAULT_CONFIG = "tweezer.toml"

_DEVICE_NAME = r"^[A-Za-z0-9_.-]{1,64}$"
_PLAIN = {"extra_forbidden": "there is no such setting", "missing": "is missing"}
_SECRET = ("redis_url", "redis_password", "database_url", "database_password", "api_key", "secrets_key")
SECRET_FILES = {name: f"{PREFIX}{name.upper()}_FILE" for name in _SECRET}
"""Setting → the variable that names a file with its value."""
_SCHEDULE_S = (0, 5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)


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


class DeviceSettings(BaseModel):
    """A device as its operator names it: a table ``[devices.NAME]``."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    adapter: str
    """Kind of the adapter that serves it: ``qutip`` or ``null``."""
    specs: Path | None = None
    """File with Pulser's abstract representation of the device; none: the adapter's own, which have no limits."""
    options: dict[str, Any] = {}
    """Options of the adapter, in which this device differs from the others."""

    @model_validator(mode="after")
    def _the_adapter_takes_it(self) -> Self:
        try:
            check_binding(self.adapter, self.options)
        except InvalidInput as error:
            raise ValueError(error.message) from error
        return self


class _TomlFile(TomlConfigSettingsSource):
    """The file, which may begin with a byte order mark, as editors on Windows write it."""

    def _read_file(self, file_path: Any) -> dict[str, Any]:
        text: str = file_path.read_text(encoding="utf-8-sig")
        return tomllib.loads(text)


class _SecretFiles(PydanticBaseSettingsSource):
    """Secrets that are in files of their own; the variable of a secret itself goes before its file."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Raises InvalidInput, naming the variable."""
        variable = SECRET_FILES.get(field_name, "")
        path = os.environ.get(variable)
        return read_secret(variable, Path(path)) if path else None, field_name, False

    def __call__(self) -> dict[str, Any]:
        found = {name: self.get_field_value(field, name)[0] for name, field in self.settings_cls.model_fields.items()}
        return {name: value for name, value in found.items() if value is not None}


def read_secret(variable: str, path: Path) -> str:
    """Return the text of a file without the line end. Raises InvalidInput, naming the variable."""
    try:
        text = path.read_text(encoding="utf-8").rstrip("\r\n")
    except OSError as error:
        raise InvalidInput(variable, f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidInput(variable, f"{path} is not a text in UTF-8") from error
    if not text:
        raise InvalidInput(variable, f"{path} is empty")
    return text


def _with_password(url: str, password: str) -> str:
    """Return the URL with the password, unless it has one."""
    scheme, _, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    user, _, place = authority.rpartition("@")
    if not password or ":" in user:
        return url
    return f"{scheme}://{user}:{quote(password, safe='')}@{place}{slash}{path}"


class _RunningUp(PydanticBaseSettingsSource):
    """What the ``tweezer up`` that runs in the data folder holds ready, unless something else names a Redis."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        raise NotImplementedError("all fields come from one file")

    def __call__(self) -> dict[str, Any]:
        if self.current_state.get("redis_url"):
            return {}
        folder = self.current_state.get("data_dir")
        found = running_environment(Path(folder) if folder else None)
        fields = {PREFIX + name.upper(): name for name in self.settings_cls.model_fields}
        return {fields[variable]: value for variable, value in found.items() if variable in fields}


class Settings(BaseSettings):
    """What an operator can set. Get one with :func:`load`, which turns errors into one sentence."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, extra="forbid", frozen=True, hide_input_in_errors=True
    )

    redis_url: Annotated[str, AfterValidator(_redis_url)] = Field("redis://127.0.0.1:6379/0", repr=False)
    """The Redis that holds live work, with its credentials: ``redis://``, ``rediss://``, ``unix://``, or
    ``redis+sentinel://host:26379,host:26379/service/0`` to ask Sentinels for the primary."""
    redis_password: str = Field("", repr=False)
    """Password for that URL, if it has none."""
    namespace: str = Field("tweezer", pattern=r"^[A-Za-z0-9_.-]{1,32}$")
    """First part of every key in Redis: two installations can share one server."""
    connect_timeout_s: float = Field(5.0, gt=0, le=60)
    """How long to wait for a connection to Redis."""
    command_timeout_s: float = Field(10.0, gt=0, le=300)
    """How long to wait for Redis to answer a command; waits for work come on top."""

    lease_s: float = Field(15.0, ge=1, le=3600)
    """How long a ticket is a worker's without renewal; the work of a dead worker restarts after it, plus a second."""
    heartbeat_s: float = Field(2.0, ge=0.1, le=600)
    """How often a worker says that it lives and what it does; at most half a lease."""
    drain_s: float = Field(4.0, ge=0, le=86_400)
    """How long a worker that was told to stop lets its jobs go on; whoever stops it must wait longer."""
    quantum_s: float = Field(1.0, ge=0.01, le=60)
    """Lane time after which a batch yields its lane when another project's, or a more urgent one, waits."""
    ticket_failures_max: int = Field(10, ge=1, le=1000)
    """Failures in a row to prepare or run a batch after which it ends in ERROR."""
    soft_cancel_s: float = Field(1.0, ge=0, le=60)
    """How long a cancelled job may take to stop by itself before its lane is killed."""
    prepare_timeout_s: float = Field(20.0, gt=0, le=3600)
    """How long preparing a batch on a lane may take (reading, checking and building its sequence); then the batch ends
    in ERROR."""
    lanes: int = Field(2, ge=1, le=256)
    """Execution slots of a worker: emulator processes side by side, each on one core."""
    device: str = Field("EMU_FREE", pattern=_DEVICE_NAME)
    """The device that a worker serves."""
    devices: dict[DeviceName, DeviceSettings] = {}
    """Devices beside ``EMU_FREE`` and ``NULL``, or instead of them, by name; in the environment as one JSON object."""
    memory_limit_mb: int = Field(4096, ge=0)
    """Memory of one lane, in MiB; a job that needs more ends in ERROR. 0: no limit."""
    lane_jail: JailMode = JailMode.ON
    """Whether the processes of lanes are kept from files, the network and other processes: ``on``, as far as the
    kernel can, or ``off``."""

    grace_s: int = Field(86_400, ge=0)
    """How long a finished batch stays in Redis once the ledger has it; less when Redis runs full."""
    idempotency_s: int = Field(86_400, ge=60)
    """How long an idempotency key is remembered."""
    restore_wait_s: float = Field(30.0, ge=0, le=3600)
    """After a restart of Redis: how long no work is handed out and no older batch changes, at most, until the recorder
    has put back what Redis lost and the ledger has."""
    max_backlog: int = Field(1_000_000, ge=1)
    """Pending jobs of one device, from which on submits are refused."""
    full_at: float = Field(0.8, gt=0, le=1)
    """Share of Redis' maxmemory from which on submits are refused."""
    quota_queued_jobs: int = Field(250_000, ge=0)
    """Pending jobs that a project may have; 0: no limit. Of this and the next two ``tweezer projects limit`` gives one
    project another limit."""
    quota_queued_mb: int = Field(256, ge=0)
    """Memory in Redis, in MiB, for the sequences and jobs of a project's batches that have not ended; 0: no limit. At
    most a quarter of what Redis may fill with work (``maxmemory`` times ``full_at``)."""
    quota_results_mb: int = Field(10_240, ge=0)
    """Size of all results that are kept of a project, in MiB, those in the results folder included; 0: no limit."""
    sessions_max: int = Field(100, ge=1)
    """Sessions that a user may have at once; a log-in beyond that ends the oldest."""

    database_url: str = Field("", repr=False)
    """The ledger's database: ``sqlite:///file`` or ``postgresql://user:password@host/database``. Empty: a SQLite file
    ``ledger.db`` in the data folder."""
    database_password: str = Field("", repr=False)
    """Password for the URL of a PostgreSQL database, if it has none."""
    database_connections: int = Field(8, ge=1, le=256)
    """Connections to the database that a process opens at most."""
    database_connections_per_project: int = Field(3, ge=1, le=256)
    """Those that requests of one user, or of one project without users, use at once in a process of the API."""
    database_timeout_s: float = Field(10.0, gt=0, le=300)
    """How long to wait for a connection to the database, and for another writer of a SQLite file."""
    statement_timeout_s: float = Field(60.0, gt=0, le=3600)
    """How long PostgreSQL may take for one statement."""
    retention_s: int = Field(0, ge=0)
    """How long the ledger keeps finished batches and their results, where a project says nothing else; 0: for ever."""
    dead_letters_max: int = Field(10_000, ge=1)
    """Entries and messages that could not be processed and are kept for operators; the oldest go first."""
    dead_letters_max_mb: int = Field(64, ge=1)
    """Their size all together, in MiB."""
    dead_letters_kept_s: int = Field(2_592_000, ge=60)
    """How long they are kept."""
    results_dir: Path | None = None
    """Folder for results that are too large for Redis; workers, API and recorder must all see it. Default: ``results``
    in the data folder."""
    result_inline_kb: int = Field(64, ge=1, le=512)
    """Size of a packed result, in KiB, above which it goes to the results folder."""

    api_host: str = Field("127.0.0.1", min_length=1)
    """Address that the HTTP API listens on."""
    api_port: int = Field(8000, ge=0, le=65_535)
    """Its port; 0 picks a free one."""
    trusted_proxies: str = ""
    """Addresses or networks of proxies before the API, with commas between, whose ``X-Forwarded-For`` and
    ``X-Forwarded-Proto`` are believed; ``*`` believes everybody."""
    connections_per_address: int = Field(1000, ge=1, le=65_536)
    """Connections from one address (of IPv6: from one /64 network) to a process of the API at once; proxies that are
    trusted have no limit. At most half of the files that the process may open."""
    public_url: Annotated[str, AfterValidator(_public_url)] = ""
    """URL by which clients reach the API, for links to results; empty: as the request came."""
    link_s: int = Field(3600, ge=10, le=LINK_MAX_S)
    """How long a link to results is valid; 30 days at most."""
    session_s: int = Field(86_400, ge=60)
    """How long a token is valid that was got with a user's name and password."""
    api_key: str = Field("", repr=False)
    """The key that ``tweezer up`` makes, if it is not to make one up."""
    project_id: str = Field("default", pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    """The project of ``tweezer up`` and of the commands that submit and read."""
    body_max_kb: int = Field(16_384, ge=1)
    """Size of a request's body as it is sent, in KiB."""
    unpacked_max_kb: int = Field(65_536, ge=1)
    """Size of a body that was sent compressed, unpacked, in KiB."""
    requests_per_s: float = Field(200.0, gt=0)
    """Requests a second of one key, over time; more get 429."""
    requests_burst: int = Field(400, ge=1)
    """Requests of one key that may come at once."""
    longpoll_s: float = Field(20.0, ge=0, le=20)
    """How long a status request waits for news; 0 answers at once. Pasqal's clients give up after 30 s."""

    webhook_allow: str = ""
    """Networks (``10.1.0.0/16``), addresses and names (``hooks.lab``, ``*.lab``), with commas between, to which
    webhooks may go although they are not public; there plain http and any port are fine too, for a URL with a name if
    the name is among them."""
    webhook_ports: str = "443,8443"
    """Ports to which webhooks may go elsewhere, with commas between."""
    webhook_timeout_s: float = Field(15.0, gt=0, le=120)
    """How long a receiver may take for one attempt, from the connection to the end of its answer."""
    webhook_answer_max_kb: int = Field(64, ge=1)
    """How much of a receiver's answer is read, in KiB."""
    webhook_schedule_s: Annotated[tuple[_Wait, ...], Field(min_length=1, max_length=50)] = _SCHEDULE_S
    """How long after the one before each attempt is made, in seconds; the first number is 0. As a variable: JSON."""
    courier_processes: int = Field(2, ge=1, le=64)
    """Processes of one ``tweezer courier``, which share the work."""
    webhook_connections: int = Field(256, ge=1, le=4096)
    """Attempts of one courier's process at once."""
    webhook_endpoint_connections: int = Field(16, ge=1, le=1024)
    """Those to one receiver."""
    webhook_disable_s: float = Field(432_000.0, gt=0)
    """An endpoint of which every attempt has failed for so long is disabled; its project is told."""
    webhook_kept_s: int = Field(2_592_000, ge=0)
    """How long deliveries that are over are kept, with every attempt; 0 is as long as their batch."""
    webhook_link_s: int = Field(604_800, ge=10, le=LINK_MAX_S)
    """How long the link to a result in a webhook is valid; longer than the schedule lasts, and 30 days at most."""
    secrets_key: str = Field("", repr=False)
    """With it the secrets of webhooks and links are encrypted in the ledger: 32 bytes in base64. Several with commas
    between: the first encrypts, all decrypt. Empty: a file ``secrets.key`` in the data folder, made when needed."""

    data_dir: Path = Field(default_factory=default_data_dir)
    """Folder for what ``tweezer up`` keeps; made when needed."""
    log_format: LogFormat = "auto"
    """``json``, ``console``, or ``auto``: console in a terminal."""
    log_level: LogLevel = "INFO"
    """``DEBUG``, ``INFO``, ``WARNING`` or ``ERROR``."""

    @model_validator(mode="after")
    def _heartbeat_fits_the_lease(self) -> Self:
        if self.heartbeat_s > self.lease_s / 2:
            raise ValueError(
                f"{PREFIX}HEARTBEAT_S ({self.heartbeat_s:g}) must be at most half of {PREFIX}LEASE_S ({self.lease_s:g})"
            )
        return self

    def binding(self, device: str) -> Binding:
        """What serves a device. Raises InvalidInput("device", …) when nothing does."""
        given = self.devices.get(device)
        if given is not None:
            return Binding(given.adapter, given.options, given.specs)
        usual = usual_binding(device)
        if usual is None:
            raise unknown_device(device, {**DEVICE_KINDS, **self.devices})
        return usual

    def machines(self) -> list[str]:
        """Those of the devices that are named here whose jobs run on, whatever becomes of a worker."""
        return [name for name, given in self.devices.items() if kind_of(given.adapter).reattaches]

    def devices_text(self) -> str:
        """The devices that are named here, as the variable ``TWEEZER_DEVICES`` holds them."""
        return json.dumps({name: given.model_dump(mode="json") for name, given in self.devices.items()})

    def connect(self) -> Connect:
        """How to reach Redis."""
        return Connect(
            url=_with_password(self.redis_url, self.redis_password),
            namespace=self.namespace,
            connect_s=self.connect_timeout_s,
            command_s=self.command_timeout_s,
            results_dir=self.results_folder(),
            result_inline_kb=self.result_inline_kb,
        )

    def database(self) -> OpenDatabase:
        """How to reach the ledger."""
        url = self.database_url or sqlite_url(self.data_dir.absolute() / "ledger.db")
        return OpenDatabase(
            url=url if sqlite_file(url) else _with_password(url, self.database_password),
            connections_max=self.database_connections,
            share=self.database_connections_per_project,
            patience_s=self.database_timeout_s,
            statement_s=self.statement_timeout_s,
        )

    def dead_letters(self) -> DeadLetterBounds:
        """How much is kept of what could not be processed."""
        return DeadLetterBounds(self.dead_letters_max, self.dead_letters_max_mb << 20, self.dead_letters_kept_s)

    def public_base(self) -> str:
        """The URL of the API for links that are made without a request, without a slash at its end."""
        if self.public_url:
            return self.public_url.rstrip("/")
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.api_host, self.api_host)  # noqa: S104  # not listened on
        return f"http://[{host}]:{self.api_port}" if ":" in host else f"http://{host}:{self.api_port}"

    def webhook_policy(self) -> WebhookPolicy:
        """Where webhooks may go. Raises InvalidInput."""
        return WebhookPolicy.parse(self.webhook_allow, self.webhook_ports)

    def results_folder(self) -> Path:
        """Where large results are kept."""
        return (self.results_dir or self.data_dir / "results").absolute()

    def store_config(self) -> StoreConfig:
        """What the scripts in Redis go by."""
        return StoreConfig(
            idempotency_s=self.idempotency_s,
            quantum_s=self.quantum_s,
            restore_wait_s=self.restore_wait_s,
            queued_jobs=self.quota_queued_jobs,
            queued_bytes=self.quota_queued_mb << 20,
            result_bytes=self.quota_results_mb << 20,
        )

    @field_validator("*", mode="before")
    @classmethod
    def _have_no_control_characters(cls, value: object) -> object:
        """No text among the settings may have any, wherever it stands in a table."""
        try:
            _check_characters("", value)
        except InvalidInput as error:
            raise ValueError(error.problem) from error if error.field else None
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources: code, the environment, files of secrets, the file of settings, a running `tweezer up`."""
        file = _TomlFile(settings_cls, toml_file=_config_path())
        return init_settings, env_settings, _SecretFiles(settings_cls), file, _RunningUp(settings_cls)


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


def load(given: Mapping[str, object] | None = None) -> Settings:
    """Read the settings; ``given`` (field name to value, as from the command line) goes before everything.

    Raises :class:`InvalidInput` whose ``field`` is the variable, or the key and file, that is wrong.
    """
    given = given or {}
    path = _config_path()
    if CONFIG_VARIABLE in os.environ and not path.is_file():
        raise InvalidInput(CONFIG_VARIABLE, f"there is no file {path}")
    try:
        return Settings(**given)  # type: ignore[arg-type]  # checked by pydantic, which is the point
    except UnicodeDecodeError as error:
        raise InvalidInput(str(path), f"is not a text in UTF-8: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput(str(path), f"is not valid TOML: {error}") from error
    except OSError as error:
        raise InvalidInput(str(path), f"cannot be read: {error.strerror}") from error
    except SettingsError as error:
        raise InvalidInput(f"{PREFIX}DEVICES", f"is not JSON: {error.__cause__ or error}") from error
    except ValidationError as error:
        raise _first_problem(error, given, path) from error


def _config_path() -> Path:
    return Path(os.environ.get(CONFIG_VARIABLE) or DEFAULT_CONFIG)


def _first_problem(error: ValidationError, given: Mapping[str, object], path: Path) -> InvalidInput:
    details = error.errors(include_url=False)[0]
    if not details["loc"]:
        return InvalidInput("settings", _sentence(details))
    name = str(details["loc"][0])
    within = "".join(f".{step}" for step in details["loc"][1:] if step != "[key]")
    ours = getattr(details.get("ctx", {}).get("error"), "__cause__", None)
    if isinstance(ours, InvalidInput):
        within = f"{within}.{ours.field}"
    variable = PREFIX + name.upper()
    if name in given:
        source = f"{name}{within}"
    elif os.environ.get(variable) is not None:
        source = f"{variable}{within}"
    else:
        source = f"{name}{within} in {path}"
    return InvalidInput(source, ours.problem if isinstance(ours, InvalidInput) else _sentence(details))


def _sentence(details: ErrorDetails) -> str:
    """Pydantic's words, with the value that was given, unless that may hold a password."""
    if details["type"] in _PLAIN:
        return _PLAIN[details["type"]]
    message = details["msg"].removeprefix("Value error, ").removeprefix("Input ")
    secret = bool(details["loc"]) and details["loc"][0] in _SECRET
    return message if secret or not details["loc"] else f"{message}, not {details['input']!r}"
