"""Which adapter serves which device. Data: a device is added by a line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tweezer.adapters.child import LaneOptions
from tweezer.adapters.emulator import QUTIP_BACKEND, EmulatorAdapter
from tweezer.adapters.null import NullAdapter
from tweezer.adapters.protocol import Adapter
from tweezer.model.errors import InvalidInput

AdapterFactory = Callable[[LaneOptions], Adapter]


def _qutip(options: LaneOptions) -> Adapter:
    return EmulatorAdapter(QUTIP_BACKEND, options)


def _null(options: LaneOptions) -> Adapter:
    return NullAdapter()


ADAPTERS: Mapping[str, AdapterFactory] = {"qutip": _qutip, "null": _null}
"""Kind of adapter → what makes one."""

DEVICE_KINDS: Mapping[str, str] = {"EMU_FREE": "qutip", "NULL": "null"}
"""Device → the kind of adapter that serves it unless the operator says otherwise."""


def adapter_for(device: str, options: LaneOptions | None = None, *, kind: str | None = None) -> Adapter:
    """The adapter of a device, of its usual kind or of the given one.

    Raises ``InvalidInput`` naming ``device`` or ``adapter`` when it is not known.
    """
    chosen = kind or DEVICE_KINDS.get(device)
    if chosen is None:
        raise InvalidInput("device", f"no adapter serves {device}; known devices are {', '.join(DEVICE_KINDS)}")
    factory = ADAPTERS.get(chosen)
    if factory is None:
        raise InvalidInput("adapter", f"there is no adapter {chosen}; known ones are {', '.join(ADAPTERS)}")
    return factory(options or LaneOptions())
