"""The table of adapters, and the adapters of the devices that exist without configuration."""

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
from tweezer.adapters.specs import load_specs, make_analog_specs, make_virtual_specs, read_specs_file
from tweezer.model.errors import InvalidInput
from tweezer.model.specs import DeviceSpecs

_Positive = Annotated[int, Meta(ge=1)]
_Seconds = Annotated[float, Meta(gt=0)]
_TORCH_START_S = 120.0

_BACKEND = "tweezer.adapters.emulators.{}_backend:open_backend"

QUTIP_BACKEND = _BACKEND.format("qutip")
"""The backend of EMU_FREE: pulser-simulation, which solves with QuTiP."""


class EmulatorAdapter:
    """Runs Pulser sequences on an emulator. Any number of batches share its lanes.

    Args:
        backend: The backend's factory, ``module:factory``; see :mod:`tweezer.adapters.lane.backend`.
        options: Options of the lanes.
        arguments: Further arguments of the factory.
        gpus: CUDA's names of the GPUs. Each new lane gets the GPU that the fewest lanes use.
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
        """Return a lane with a process that has imported its backend. Raises ``ExecutionError`` if it cannot start."""
        self._lanes = [lane for lane in self._lanes if not lane.closed]
        taken = [lane.gpu for lane in self._lanes]
        gpu = min(self._gpus, key=taken.count, default=None)
        lane = ChildLane(self._backend, self._options, self._arguments, gpu)
        self._lanes.append(lane)
        await lane.warm()
        return lane


def list_gpus(count: int) -> list[str]:
    """Return CUDA's names of the first ``count`` GPUs of this process. Raises InvalidInput naming ``options.gpus``."""
    allowed = os.environ.get(GPU_VARIABLE)
    if allowed is None:
        return [str(number) for number in range(count)]
    names = [name.strip() for name in allowed.split(",") if name.strip()]
    if len(names) < count:
        problem = f"must be at most {len(names)}, the number of GPUs in {GPU_VARIABLE} of this process (got {count})"
        raise InvalidInput("options.gpus", problem)
    return names[:count]


class NullOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of the null adapter.

    checks_sequence: Batches must carry sequences, which are checked as for an emulator.
    """

    checks_sequence: bool = False


class EmulatorOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Options of one emulated device, which override the worker's :class:`LaneOptions`. None: not overridden."""

    memory_limit_mb: _Positive | None = None
    threads: _Positive | None = None
    memo_mb: Annotated[int, Meta(ge=0)] | None = None
    start_timeout_s: _Seconds | None = None
    prepare_timeout_s: _Seconds | None = None
    soft_cancel_s: Annotated[float, Meta(ge=0)] | None = None

    def override(self, lanes: LaneOptions) -> LaneOptions:
        given = {name: value for name in _LANE_FIELDS if (value := getattr(self, name)) is not None}
        return msgspec.structs.replace(lanes, **given)


_LANE_FIELDS = EmulatorOptions.__struct_fields__


class TorchOptions(EmulatorOptions, frozen=True):
    """Options of an emulator on torch.

    gpus: How many GPUs the lanes share; each lane uses one. 0: the lanes run on the CPU.
    """

    gpus: Annotated[int, Meta(ge=0)] = 0


def _make_factory(name: str) -> Callable[..., Adapter]:
    """Return the factory of an emulator's adapters. Importing torch takes up to 20 s from a cold disk."""

    def make(lanes: LaneOptions, options: EmulatorOptions, specs: Path | None = None) -> Adapter:
        gpus: list[str] = []
        if isinstance(options, TorchOptions):
            lanes = msgspec.structs.replace(lanes, start_timeout_s=max(lanes.start_timeout_s, _TORCH_START_S))
            gpus = list_gpus(options.gpus)
        arguments = () if specs is None else (read_specs_file(specs, field="specs"),)
        return EmulatorAdapter(_BACKEND.format(name), options.override(lanes), arguments, gpus)

    return make


def _make_qpu(lanes: LaneOptions, options: QpuOptions) -> Adapter:
    from tweezer.adapters.remote.qpu.adapter import QpuAdapter  # needs an HTTP library, which the base install lacks

    return QpuAdapter(options, lanes)


def _make_forward(lanes: LaneOptions, options: ForwardOptions) -> Adapter:
    from tweezer.adapters.remote.forward.adapter import ForwardAdapter  # needs an HTTP library, too

    return ForwardAdapter(options, lanes)


def _make_null(lanes: LaneOptions, options: NullOptions) -> Adapter:
    return NullAdapter(checks_sequence=options.checks_sequence)


class AdapterKind(msgspec.Struct, frozen=True):
    """A kind of adapter.

    Attributes:
        make: Factory. Its arguments are the :class:`LaneOptions` and this kind's options; if ``needs_specs``, also the
            path of the file of specs, or None.
        options: The type of this kind's options.
        needs_specs: The adapter itself reads the device's specs.
        reattaches: Jobs continue when their worker stops; see :class:`~tweezer.adapters.protocol.Capabilities`.
        specs: Returns the specs of a device, by its name, if the operator gave no file. None: the machine returns its
            own specs.
    """

    make: Callable[..., Adapter]
    options: type[msgspec.Struct]
    needs_specs: bool = False
    reattaches: bool = False
    specs: Callable[[str], DeviceSpecs] | None = make_virtual_specs


ADAPTERS: Mapping[str, AdapterKind] = {
    "qutip": AdapterKind(_make_factory("qutip"), EmulatorOptions),
    "emu-sv": AdapterKind(_make_factory("emu_sv"), TorchOptions),
    "emu-mps": AdapterKind(_make_factory("emu_mps"), TorchOptions),
    "machine": AdapterKind(_make_factory("machine"), EmulatorOptions, needs_specs=True, specs=make_analog_specs),
    "qpu": AdapterKind(_make_qpu, QpuOptions, specs=None, reattaches=True),
    "forward": AdapterKind(_make_forward, ForwardOptions, specs=None, reattaches=True),
    "null": AdapterKind(_make_null, NullOptions),
}
"""The kinds of adapters, by name."""

DEVICE_KINDS: Mapping[str, str] = {
    "EMU_FREE": "qutip",
    "EMU_SV": "emu-sv",
    "EMU_MPS": "emu-mps",
    "EMU_TN": "emu-mps",
    "EMU_FRESNEL": "machine",
    "NULL": "null",
}
"""The devices that exist without configuration → their kind of adapter."""


class Binding(msgspec.Struct, frozen=True):
    """The configuration of a device: a kind of adapter, its options, and a file of specs (None: the adapter's own)."""

    adapter: str
    options: Mapping[str, Any] = {}
    specs: Path | None = None


def default_binding(device: str) -> Binding | None:
    """Return the binding of a device that exists without configuration; None if there is no such device."""
    kind = DEVICE_KINDS.get(device)
    return None if kind is None else Binding(kind)


def unknown_device(device: str, known: Iterable[str]) -> InvalidInput:
    """Return the error for a device that no adapter serves."""
    return InvalidInput(
        "device",
        f"no adapter serves {device}; use one of {', '.join(known)}, or configure {device} in tweezer.toml under "
        f"[devices.{device}]",
    )


def make_adapter(binding: Binding, lanes: LaneOptions | None = None) -> Adapter:
    """Make the adapter of a device. Raises InvalidInput naming ``adapter`` or ``options.…``."""
    options = check_binding(binding.adapter, binding.options)
    kind = ADAPTERS[binding.adapter]
    specs = (binding.specs,) if kind.needs_specs else ()
    return kind.make(lanes or LaneOptions(), options, *specs)


def get_kind(adapter: str) -> AdapterKind:
    """Return the kind of adapter of this name. Raises InvalidInput naming ``adapter``."""
    kind = ADAPTERS.get(adapter)
    if kind is None:
        raise InvalidInput("adapter", f"{adapter!r} is not an adapter; use one of {', '.join(ADAPTERS)}")
    return kind


def check_binding(adapter: str, options: Mapping[str, Any]) -> msgspec.Struct:
    """Convert the options of a kind of adapter to its type. Raises InvalidInput naming ``adapter`` or ``options.…``."""
    kind = get_kind(adapter)
    known = kind.options.__struct_fields__
    for name in options:
        if name not in known:
            hint = f"use {', '.join(known)}" if known else "it has no options"
            raise InvalidInput(f"options.{name}", f"is not an option of the adapter {adapter}; {hint}")
    for field in msgspec.structs.fields(kind.options):
        if field.name not in options:
            if field.required:
                raise InvalidInput(f"options.{field.name}", f"is required by the adapter {adapter}")
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
    """Return the specs of a device as clients receive them; None if its machine must be asked.

    Blocks for seconds while a file is checked with Pulser. Raises InvalidInput naming ``devices.<device>.specs``, or
    TweezerError if Pulser is not installed.
    """
    if binding.specs is None:
        specs = ADAPTERS[binding.adapter].specs
        return None if specs is None else specs(device)
    return load_specs(binding.specs, field=f"devices.{device}.specs")
