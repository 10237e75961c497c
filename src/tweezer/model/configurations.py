"""Emulator configurations as far as they can be read without an emulator: their shots, and the older options."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from tweezer.model.errors import InvalidInput

DEFAULT_SHOTS = 1000
"""Shots of a configuration that sets no number: Pulser's ``EmulationConfig.default_num_shots``."""


class TensorOptions(msgspec.Struct, frozen=True):
    """The options of EMU_TN in pasqal-cloud."""

    dt: Annotated[float, Meta(gt=0, le=1e9)] | None = None
    max_bond_dim: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    precision: Literal["low", "normal", "high"] | Annotated[float, Meta(gt=0, le=1)] | None = None


_SHOTS_MAX = 10**9


OLDER_OPTIONS: Mapping[str, type[msgspec.Struct]] = {"emu-mps": TensorOptions}
"""The options of the older ``configuration`` that an adapter supports, by adapter; other adapters support none."""

_IGNORED = frozenset({"strict_validation", "result_types"})


def check_older_options(configuration: Mapping[str, Any], adapter: str) -> None:
    """Check that the adapter supports the options. Raises InvalidInput("configuration.…", …).

    Options that are null or false are ignored, such as ``with_noise: false``.
    """
    options = OLDER_OPTIONS.get(adapter)
    for name, value in configuration.items():
        field = f"configuration.{name[:50]}"
        if options is not None and name in options.__struct_fields__:
            try:
                msgspec.convert({name: value}, options)
            except msgspec.ValidationError as error:
                problem = str(error).partition(" - at ")[0].replace("`", "")
                raise InvalidInput(field, f"has an invalid value: {problem[:1].lower()}{problem[1:]}") from error
        elif name not in _IGNORED and value not in (None, False):
            raise InvalidInput(
                field, "is not supported; use backend_configuration instead (for noise: its noise_model)"
            )


def configured_shots(backend_configuration: str) -> int:
    """Return the shots of the first ``bitstrings`` observable in a configuration, else the default."""
    try:
        options = json.loads(backend_configuration)
    except (ValueError, RecursionError):
        return DEFAULT_SHOTS
    if not isinstance(options, dict):
        return DEFAULT_SHOTS
    observables = options.get("observables")
    for observable in observables if isinstance(observables, list) else []:
        if isinstance(observable, dict) and observable.get("observable") == "bitstrings":
            if shots := _count(observable.get("num_shots")):
                return shots
            break
    return _count(options.get("default_num_shots")) or DEFAULT_SHOTS


def _count(value: object) -> int:
    return value if isinstance(value, int) and 0 < value <= _SHOTS_MAX else 0
