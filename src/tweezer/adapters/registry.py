"""Which adapter serves which device. Data: a kind of adapter is a line here, and a device that is there unasked."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from tweezer.adapters.lane.lane import ChildLane, LaneOptions
from tweezer.adapters.lane.process import GPU_VARIABLE
from tweezer.adapters.null import NullAdapter
from tweezer.adapters.protocol import Adapter, Capabilities
from tweezer.adapters.remote.options import ForwardOptions, QpuOptions, RemoteOptions
from tweezer.adapters.specs import analog_specs, load_specs, read_specs_file, virtual_specs
from tweezer.model.errors import InvalidInput
from tweezer.model.specs import DeviceSpecs

_Positive = Annotated[int, Meta(ge=1)]
_Seconds = Annotated[float, Meta(gt=0)]
_TORCH_START_S = 120.0

_BACKEND = "tweezer.adapters.emulators.{}_backend:open_backend"

QUTIP_BACKEND = _BACKEND.format("qutip")
"""The backend of EMU_FREE: pulser-simulation, which solves with QuTiP."""


class EmulatorAdapter:
    """Runs Pulser sequences on an emulator; any number of batches share its lanes.

    arguments: of the backend's factory. gpus: as CUDA names them; each lane gets that which fewest lanes have.
    """

    def __init__(
        self, backend: str, options: LaneOptions, arguments: tuple[str, ...] = (), gpus: Sequence[str] = ()
    ) -> None:
        self.capabilities = Capabilities()
        self._backend = backend
        self._options = options
        self._arguments = arguments
        self._gpus = gpus
        self._lanes: list[ChildLane] = []

    async def open_lane(self) -> ChildLane:
        """Return a new process, warm. Raises ``ExecutionError`` when it cannot start."""
        self._lanes = [lane for lane in self._lanes if not lane.closed]
        taken = [lane.gpu for lane in self._lanes]
        gpu = min(self._gpus, key=taken.count, default=None)
        lane = ChildLane(self._backend, self._options, self._arguments, gpu)
        self._lanes.append(lane)
        await lane.warm()
        return lane


def list_gpus(count: int) -> list[str]:
    """Return CUDA's names of so many of this process' GPUs. Raises InvalidInput naming ``options.gpus``."""
    allowed = os.environ.get(GPU_VARIABLE)
    if allowed is None:
        return [str(number) for number in range(count)]
    names = [name.strip() for name in allowed.split(",") if name.strip()]
    if len(names) < count:
        raise InvalidInput("options.gpus", f"asks for {count}, but {GPU_VARIABLE} of this process names {len(names)}")
    return names[:count]


class NullOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """checks_sequence: batches must carry sequences, and are checked like those of an emulator."""

    checks_sequence: bool = False


class EmulatorOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What may differ from one emulated device to another; see :class:`LaneOptions`. None: as for all devices."""

    memory_limit_mb: _Positive | None = None
    threads: _Positive | None = None
    memo_mb: Annotated[int, Meta(ge=0)] | None = None
    start_timeout_s: _Seconds | None = None
    prepare_timeout_s: _Seconds | None = None
    soft_cancel_s: Annotated[float, Meta(ge=0)] | None = None

    def over(self, lanes: LaneOptions) -> LaneOptions:
        given = {name: value for name in _OF_LANES if (value := getattr(self, name)) is not None}
        return msgspec.structs.replace(lanes, **given)


_OF_LANES = EmulatorOptions.__struct_fields__


class TorchOptions(EmulatorOptions, frozen=True):
    """gpus: how many of the host's the lanes share, one each; 0: they run on the CPU."""

    gpus: Annotated[int, Meta(ge=0)] = 0


def _emulator(name: str) -> Callable[..., Adapter]:
    """Return what makes adapters of this emulator. The import of torch takes up to 20 s on a cold disk."""

    def make(lanes: LaneOptions, options: EmulatorOptions, specs: Path | None = None) -> Adapter:
        gpus: list[str] = []
        if isinstance(options, TorchOptions):
            lanes = msgspec.structs.replace(lanes, start_timeout_s=max(lanes.start_timeout_s, _TORCH_START_S))
            gpus = list_gpus(options.gpus)
        arguments = () if specs is None else (read_specs_file(specs, field="specs"),)
        return EmulatorAdapter(_BACKEND.format(name), options.over(lanes), arguments, gpus)

    return make


def _qpu(lanes: LaneOptions, options: QpuOptions) -> Adapter:
    from tweezer.adapters.remote.qpu.adapter import QpuAdapter  # it needs an HTTP library, which the base install lacks

    return QpuAdapter(options, lanes)


def _forward(lanes: LaneOptions, options: ForwardOptions) -> Adapter:
    from tweezer.adapters.remote.forward.adapter import ForwardAdapter  # it needs an HTTP library, too

    return ForwardAdapter(options, lanes)


def _null(lanes: LaneOptions, options: NullOptions) -> Adapter:
    return NullAdapter(checks_sequence=options.checks_sequence)


class AdapterKind(msgspec.Struct, frozen=True):
    """A kind of adapter.

    make: makes one of the options of lanes and those of its own, and of the file of specs, or None, if it needs_specs.
    options: the type of its own. specs: what clients are told, by the device's name, without a file; None: the machine
    is asked. reattaches: its jobs run on, whatever becomes of a worker (see ``Capabilities``).
    """

    make: Callable[..., Adapter]
    options: type[msgspec.Struct]
    needs_specs: bool = False
    reattaches: bool = False
    specs: Callable[[str], DeviceSpecs] | None = virtual_specs


ADAPTERS: Mapping[str, AdapterKind] = {
    "qutip": AdapterKind(_emulator("qutip"), EmulatorOptions),
    "emu-sv": AdapterKind(_emulator("emu_sv"), TorchOptions),
    "emu-mps": AdapterKind(_emulator("emu_mps"), TorchOptions),
    "machine": AdapterKind(_emulator("machine"), EmulatorOptions, needs_specs=True, specs=analog_specs),
    "qpu": AdapterKind(_qpu, QpuOptions, specs=None, reattaches=True),
    "forward": AdapterKind(_forward, ForwardOptions, specs=None, reattaches=True),
    "null": AdapterKind(_null, NullOptions),
}
"""Kind of adapter → how it is made."""

DEVICE_KINDS: Mapping[str, str] = {
    "EMU_FREE": "qutip",
    "EMU_SV": "emu-sv",
    "EMU_MPS": "emu-mps",
    "EMU_TN": "emu-mps",
    "EMU_FRESNEL": "machine",
    "NULL": "null",
}
"""Device → the kind of adapter that serves it unless the operator says otherwise."""


class Binding(msgspec.Struct, frozen=True):
    """What serves a device: a kind of adapter, with its options, and a file of specs (None: the adapter's own)."""

    adapter: str
    options: Mapping[str, Any] = {}
    specs: Path | None = None


def default_binding(device: str) -> Binding | None:
    """Return the adapter of a device that nobody configured, if it has one."""
    kind = DEVICE_KINDS.get(device)
    return None if kind is None else Binding(kind)


def unknown_device(device: str, known: Iterable[str]) -> InvalidInput:
    """Return the error for a device that nobody configured."""
    return InvalidInput(
        "device",
        f"no adapter serves {device}; known devices are {', '.join(known)}, and others are to be named in "
        f"tweezer.toml, under [devices.{device}]",
    )


def make_adapter(binding: Binding, lanes: LaneOptions | None = None) -> Adapter:
    """Return the adapter of a device. Raises InvalidInput naming ``adapter`` or ``options.…``."""
    options = check_binding(binding.adapter, binding.options)
    kind = ADAPTERS[binding.adapter]
    of_specs = (binding.specs,) if kind.needs_specs else ()
    return kind.make(lanes or LaneOptions(), options, *of_specs)


def get_kind(adapter: str) -> AdapterKind:
    """Return the kind of adapter of this name. Raises InvalidInput naming ``adapter``."""
    kind = ADAPTERS.get(adapter)
    if kind is None:
        raise InvalidInput("adapter", f"there is no adapter {adapter}; known ones are {', '.join(ADAPTERS)}")
    return kind


def check_binding(adapter: str, options: Mapping[str, Any]) -> msgspec.Struct:
    """Return the options of this kind of adapter, typed. Raises InvalidInput naming ``adapter`` or ``options.…``."""
    kind = get_kind(adapter)
    known = kind.options.__struct_fields__
    for name in options:
        if name not in known:
            has = f"has {', '.join(known)}" if known else "has none"
            raise InvalidInput(f"options.{name}", f"is no option of the adapter {adapter}, which {has}")
    for field in msgspec.structs.fields(kind.options):
        if field.name not in options:
            if field.required:
                raise InvalidInput(f"options.{field.name}", f"is missing, and the adapter {adapter} needs it")
            continue
        try:
            msgspec.convert(options[field.name], field.type)
        except msgspec.ValidationError as error:
            problem = str(error).partition(" - at ")[0].replace("`", "")
            raise InvalidInput(f"options.{field.name}", problem[:1].lower() + problem[1:]) from error
    typed = msgspec.convert(dict(options), kind.options)
    if isinstance(typed, RemoteOptions):
        try:
            typed.check()
        except InvalidInput as error:
            raise InvalidInput(f"options.{error.field}", error.problem) from error
    return typed


def get_specs(device: str, binding: Binding) -> DeviceSpecs | None:
    """Return the specs that clients get of the device; None: its machine has to be asked.

    Blocks for seconds where a file has to be checked with Pulser. Raises InvalidInput naming
    ``devices.<device>.specs``, and TweezerError where Pulser is not installed.
    """
    if binding.specs is None:
        specs = ADAPTERS[binding.adapter].specs
        return None if specs is None else specs(device)
    return load_specs(binding.specs, field=f"devices.{device}.specs")
