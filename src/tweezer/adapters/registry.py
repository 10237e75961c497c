"""Which adapter serves which device. Data: a kind of adapter is a line here, and a device that is there unasked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from tweezer.adapters.child import LaneOptions
from tweezer.adapters.emulator import QUTIP_BACKEND, EmulatorAdapter
from tweezer.adapters.null import NullAdapter
from tweezer.adapters.protocol import Adapter
from tweezer.adapters.specs import specs_of_file, virtual_specs
from tweezer.model.errors import InvalidInput
from tweezer.model.specs import DeviceSpecs

AdapterFactory = Callable[[LaneOptions], Adapter]

_Positive = Annotated[int, Meta(ge=1)]
_Seconds = Annotated[float, Meta(gt=0)]


class NoOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of an adapter that has none."""


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
        given = {name: value for name, value in msgspec.structs.asdict(self).items() if value is not None}
        return msgspec.structs.replace(lanes, **given)


def _qutip(lanes: LaneOptions, options: EmulatorOptions) -> Adapter:
    return EmulatorAdapter(QUTIP_BACKEND, options.over(lanes))


def _null(lanes: LaneOptions, options: NullOptions) -> Adapter:
    return NullAdapter(checks_sequence=options.checks_sequence)


class AdapterKind(msgspec.Struct, frozen=True):
    """A kind of adapter: what makes one, and the type of its options."""

    make: Callable[[LaneOptions, Any], Adapter]
    options: type[msgspec.Struct]

    @classmethod
    def plain(cls, make: AdapterFactory) -> AdapterKind:
        """One without options."""
        return cls(lambda lanes, options: make(lanes), NoOptions)


ADAPTERS: Mapping[str, AdapterKind] = {
    "qutip": AdapterKind(_qutip, EmulatorOptions),
    "null": AdapterKind(_null, NullOptions),
}
"""Kind of adapter → how it is made."""

DEVICE_KINDS: Mapping[str, str] = {"EMU_FREE": "qutip", "NULL": "null"}
"""Device → the kind of adapter that serves it unless the operator says otherwise."""


class Binding(msgspec.Struct, frozen=True):
    """What serves a device: a kind of adapter, with its options, and a file of specs (None: the adapter's own)."""

    adapter: str
    options: Mapping[str, Any] = {}
    specs: Path | None = None


def usual_binding(device: str) -> Binding | None:
    """What serves a device that nobody configured; None when nothing does."""
    kind = DEVICE_KINDS.get(device)
    return None if kind is None else Binding(kind)


def adapter_for(device: str, lanes: LaneOptions | None = None) -> Adapter:
    """The usual adapter of a device. Raises InvalidInput naming ``device``."""
    binding = usual_binding(device)
    if binding is None:
        raise unknown_device(device, DEVICE_KINDS)
    return adapter_of(binding, lanes)


def unknown_device(device: str, known: Iterable[str]) -> InvalidInput:
    """The error for a device that nobody configured."""
    return InvalidInput(
        "device",
        f"no adapter serves {device}; known devices are {', '.join(known)}, and others are to be named in "
        f"tweezer.toml, under [devices.{device}]",
    )


def adapter_of(binding: Binding, lanes: LaneOptions | None = None) -> Adapter:
    """The adapter of a device. Raises InvalidInput naming ``adapter`` or ``options.…``."""
    options = check_binding(binding.adapter, binding.options)
    return ADAPTERS[binding.adapter].make(lanes or LaneOptions(), options)


def check_binding(adapter: str, options: Mapping[str, Any]) -> msgspec.Struct:
    """The options of this kind of adapter, typed. Raises InvalidInput naming ``adapter`` or ``options.…``."""
    kind = ADAPTERS.get(adapter)
    if kind is None:
        raise InvalidInput("adapter", f"there is no adapter {adapter}; known ones are {', '.join(ADAPTERS)}")
    known = kind.options.__struct_fields__
    for name in options:
        if name not in known:
            has = f"has {', '.join(known)}" if known else "has none"
            raise InvalidInput(f"options.{name}", f"is no option of the adapter {adapter}, which {has}")
    for name, value in options.items():
        try:
            msgspec.convert({name: value}, kind.options)
        except msgspec.ValidationError as error:
            problem = str(error).partition(" - at ")[0].replace("`", "")
            raise InvalidInput(f"options.{name}", problem[:1].lower() + problem[1:]) from error
    return msgspec.convert(dict(options), kind.options)


def specs_of(device: str, binding: Binding) -> DeviceSpecs:
    """What clients are told that the device is like. Blocks for seconds where a file has to be checked with Pulser.

    Raises InvalidInput naming ``devices.<device>.specs``, and TweezerError where Pulser is not installed.
    """
    if binding.specs is None:
        return virtual_specs(device)
    return specs_of_file(binding.specs, field=f"devices.{device}.specs")
