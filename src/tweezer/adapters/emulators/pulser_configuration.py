"""Reads a client's ``backend_configuration``: Pulser's ``EmulationConfig`` as a JSON string.

Only known keys are allowed, because some are dangerous: with ``log_file`` and ``autosave_*`` a client could make an
emulator write any file. Keys that only other emulators or machines use are ignored.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta
from pulser.backend import BitStrings, EmulationConfig

from tweezer.adapters.emulators.pulser_sequences import describe_error, find_infinite_number
from tweezer.adapters.lane.backend import Refusal
from tweezer.model.messages import Fault

FIELD = "backend_configuration"

_COMMON_KEYS = frozenset(
    {
        "observables",
        "default_evaluation_times",
        "initial_state",
        "with_modulation",
        "interaction_matrix",
        "prefer_device_noise_model",
        "noise_model",
        "n_trajectories",
        "default_num_shots",
    }
)
_IGNORED_KEYS = frozenset({"print_progress", "progress_bar", "num_gpus_to_use", "gpu", "log_level"})
_OPERATOR_KEYS = frozenset({"callbacks", "log_file", "autosave_prefix", "autosave_dt"})
_UNUSED_VALUES: tuple[Any, ...] = ([], None, float("inf"))
_DEFAULT_VALUES: Mapping[str, Any] = {"autosave_prefix": "emu_mps_save_"}  # emu-mps always writes it
_OLDER_IGNORED = frozenset({"strict_validation", "result_types"})

_Fine = Annotated[float, Meta(gt=0, le=1)]
_Dimension = Annotated[int, Meta(ge=1, le=1_000_000)]
_StepNs = Annotated[float, Meta(gt=0, le=1e9)]
_Cutoff = Annotated[float, Meta(ge=0, le=1e9)]


class QutipKeys(msgspec.Struct, frozen=True):
    """Keys of ``pulser_simulation.QutipConfig``, which checks the sampling rate itself."""

    sampling_rate: Any = None
    solver: Literal["default", "MasterEquation", "MonteCarlo"] | None = None


class StateVectorKeys(msgspec.Struct, frozen=True):
    """Keys of ``emu_sv.SVConfig``, which checks none of them."""

    dt: _StepNs | None = None
    max_krylov_dim: _Dimension | None = None
    krylov_tolerance: _Fine | None = None
    interaction_cutoff: _Cutoff | None = None
    solver: Literal["default", "montecarlo", "lindblad"] | None = None


class TensorKeys(msgspec.Struct, frozen=True):
    """Keys of ``emu_mps.MPSConfig``, which checks few of them."""

    dt: _StepNs | None = None
    precision: _Fine | None = None
    max_bond_dim: _Dimension | None = None
    max_krylov_dim: _Dimension | None = None
    extra_krylov_tolerance: _Fine | None = None
    optimize_qubit_ordering: bool | None = None
    interaction_cutoff: _Cutoff | None = None
    solver: Literal["tdvp", "dmrg"] | None = None


_DIALECTS: tuple[type[msgspec.Struct], ...] = (QutipKeys, StateVectorKeys, TensorKeys)
_KEYS_OF_ANY = frozenset().union(*(keys.__struct_fields__ for keys in _DIALECTS))


class Dialect(msgspec.Struct, frozen=True):
    """How one emulator is configured.

    Attributes:
        config_type: The library's class of configurations.
        keys: The keys that it uses beside the common ones, with their types.
        forced: Values that the operator decides; they override the client's.
        full_times: Whether it accepts ``"Full"`` as evaluation times.
        older: Its keys that are allowed in the older dictionary ``configuration``, with the values of their words.
        unsupported: Common keys that it cannot use and must not ignore, because they change the physics, with the
            error's text.
    """

    config_type: type[EmulationConfig[Any]]
    keys: type[msgspec.Struct]
    forced: Mapping[str, Any] = {}
    full_times: bool = True
    older: Mapping[str, Mapping[str, Any]] = {}
    unsupported: Mapping[str, str] = {}


class Configuration:
    """The configuration of the jobs of a batch; made by :func:`read_configuration`.

    digest: Equal for equal configurations.
    """

    def __init__(self, config: EmulationConfig[Any]) -> None:
        self.config = config
        self.digest: str = config.to_abstract_repr(skip_validation=True)

    def with_runs(self, runs: int | None) -> EmulationConfig[Any]:
        """Return the configuration of one job. ``runs``, if given, overrides every number of shots in it."""
        if runs is None:
            return self.config
        changed: EmulationConfig[Any] = self.config.with_changes(
            observables=tuple(set_shots(observable, runs) for observable in self.config.observables),
            default_num_shots=runs,
        )
        return changed


def read_configuration(dialect: Dialect, text: str | None, older: dict[str, Any] | None) -> Configuration:
    """Return the configuration of a batch. The default samples the final bitstrings.

    older: The older dictionary of emulator options, ``configuration``. Raises ``Refusal`` naming the key.
    """
    options = dict(_read_older(dialect, older or {}))
    options |= _build_default() if text is None else _read_text(dialect, text)
    try:
        config: Any = dialect.config_type.from_abstract_repr(json.dumps({**options, **dialect.forced}))
    except Exception as error:  # any error is caused by the client's text
        message = f"is not a valid configuration of this emulator: {describe_error(error)}"
        raise Refusal(Fault("user", message, FIELD)) from error
    if isinstance(config.default_evaluation_times, str) and not dialect.full_times:
        message = f"must be a list of times from 0 to 1 for this emulator (got {config.default_evaluation_times!r})"
        raise Refusal(Fault("user", message, f"{FIELD}.default_evaluation_times"))
    return Configuration(config)


def _build_default() -> dict[str, Any]:
    """Sample the final bitstrings. The observable's random id is fixed, so that equal jobs have equal results."""
    plain: EmulationConfig[Any] = EmulationConfig(observables=[BitStrings(evaluation_times=[1.0])])
    options = json.loads(plain.to_abstract_repr())
    options["observables"][0]["uuid"] = "00000000-0000-0000-0000-000000000000"
    return {name: value for name, value in options.items() if name in _COMMON_KEYS}


def _read_text(dialect: Dialect, text: str) -> dict[str, Any]:
    try:
        options = json.loads(text)  # Python's json accepts the bare Infinity that it may contain
    except (ValueError, RecursionError) as error:
        raise Refusal(Fault("invalid", f"is not valid JSON: {describe_error(error)}", FIELD)) from error
    if not isinstance(options, dict):
        raise Refusal(Fault("invalid", "must be a JSON object", FIELD))
    for name, value in options.items():
        if found := find_infinite_number({name: value}, infinity=True):
            raise Refusal(Fault("invalid", f"must not contain NaN: {found}", f"{FIELD}.{name[:50]}"))
    return dict(_select_options(dialect, options))


def _select_options(dialect: Dialect, options: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in options.items():
        field = f"{FIELD}.{name[:50]}"
        if name in dialect.unsupported and value is not None:
            raise Refusal(Fault("invalid", dialect.unsupported[name], field))
        if name in _COMMON_KEYS:
            yield name, value
        elif name in dialect.keys.__struct_fields__:
            if value is not None and not _is_for_another(dialect.keys, name, value):
                yield name, _check_type(dialect.keys, name, value, field)
        elif name in _OPERATOR_KEYS:
            if value not in _UNUSED_VALUES and (name not in _DEFAULT_VALUES or value != _DEFAULT_VALUES[name]):
                message = "is not allowed, because it makes the emulator write files or call code; remove it"
                raise Refusal(Fault("invalid", message, field))
        elif name not in _IGNORED_KEYS and name not in _KEYS_OF_ANY:
            message = f"is not an option of this emulator; use one of {_list_keys(dialect)}"
            raise Refusal(Fault("invalid", message, field))


def _list_keys(dialect: Dialect) -> str:
    return ", ".join(sorted((_COMMON_KEYS | set(dialect.keys.__struct_fields__)) - set(dialect.unsupported)))


def _is_for_another(keys: type[msgspec.Struct], name: str, value: Any) -> bool:
    """Return whether only other emulators know this word, as QuTiP's ``default`` for ``solver``."""
    others = [other for other in _DIALECTS if other is not keys and name in other.__struct_fields__]
    return isinstance(value, str) and not _fits(keys, name, value) and any(_fits(one, name, value) for one in others)


def _fits(keys: type[msgspec.Struct], name: str, value: Any) -> bool:
    try:
        msgspec.convert({name: value}, keys)
    except msgspec.ValidationError:
        return False
    return True


def _check_type(keys: type[msgspec.Struct], name: str, value: Any, field: str) -> Any:
    try:
        msgspec.convert({name: value}, keys)
    except msgspec.ValidationError as error:
        if words := _list_words(keys, name):
            problem = f"must be one of {', '.join(words)} (got {describe_error(ValueError(repr(value)))})"
        else:
            text = str(error).partition(" - at ")[0].replace("`", "")
            problem = f"is not valid: {text[:1].lower()}{text[1:]}"
        raise Refusal(Fault("invalid", problem, field)) from error
    return value


def _list_words(keys: type[msgspec.Struct], name: str) -> list[str]:
    """Return the words that a key accepts; empty if it does not take words."""
    choices = [choice for choice in get_args(get_type_hints(keys)[name]) if get_origin(choice) is Literal]
    return [repr(word) for choice in choices for word in get_args(choice)]


def _read_older(dialect: Dialect, older: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the options of the older dictionary that this emulator supports."""
    for name, value in older.items():
        if name in dialect.older:
            words = dialect.older[name]
            number = words.get(value, value) if isinstance(value, str) else value
            yield name, _check_type(dialect.keys, name, number, f"configuration.{name}")
        elif name not in _OLDER_IGNORED and value not in (None, False):
            raise Refusal(
                Fault(
                    "invalid",
                    "is not supported; use backend_configuration instead (for noise, its noise_model)",
                    f"configuration.{name[:50]}",
                )
            )


def set_shots(observable: Any, runs: int) -> Any:
    """Return the observable with this number of shots; unchanged if it does not take shots."""
    if not isinstance(observable, BitStrings):
        return observable
    changed = copy.copy(observable)
    changed.num_shots = runs
    return changed
