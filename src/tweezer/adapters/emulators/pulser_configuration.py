"""Reading a client's ``backend_configuration``: Pulser's ``EmulationConfig`` as a JSON string.

Its keys are allowed one by one, because some are dangerous: ``log_file`` and ``autosave_*`` make an
emulator write files where a client says. Keys that only other emulators or machines heed are dropped.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta
from pulser.backend import BitStrings, EmulationConfig

from tweezer.adapters.emulators.pulser_sequences import brief, infinite_number
from tweezer.adapters.lane.backend import Refusal
from tweezer.model.messages import Fault

FIELD = "backend_configuration"

_OF_ALL = frozenset(
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
_DROPPED = frozenset({"print_progress", "progress_bar", "num_gpus_to_use", "gpu", "log_level"})
_UNLESS_USED = frozenset({"callbacks", "log_file", "autosave_prefix", "autosave_dt"})
_NO_SUCH_WISH: tuple[Any, ...] = ([], None, float("inf"))
_USUAL: Mapping[str, Any] = {"autosave_prefix": "emu_mps_save_"}  # what emu-mps writes when nobody asked for it
_OLDER_DROPPED = frozenset({"strict_validation", "result_types"})

_Fine = Annotated[float, Meta(gt=0, le=1)]
_Dimension = Annotated[int, Meta(ge=1, le=1_000_000)]
_StepNs = Annotated[float, Meta(gt=0, le=1e9)]
_Cutoff = Annotated[float, Meta(ge=0, le=1e9)]


class QutipKeys(msgspec.Struct, frozen=True):
    """Of ``pulser_simulation.QutipConfig``, which checks the rate itself."""

    sampling_rate: Any = None
    solver: Literal["default", "MasterEquation", "MonteCarlo"] | None = None


class StateVectorKeys(msgspec.Struct, frozen=True):
    """Of ``emu_sv.SVConfig``, which checks nothing."""

    dt: _StepNs | None = None
    max_krylov_dim: _Dimension | None = None
    krylov_tolerance: _Fine | None = None
    interaction_cutoff: _Cutoff | None = None
    solver: Literal["default", "montecarlo", "lindblad"] | None = None


class TensorKeys(msgspec.Struct, frozen=True):
    """Of ``emu_mps.MPSConfig``, which checks next to nothing."""

    dt: _StepNs | None = None
    precision: _Fine | None = None
    max_bond_dim: _Dimension | None = None
    max_krylov_dim: _Dimension | None = None
    extra_krylov_tolerance: _Fine | None = None
    optimize_qubit_ordering: bool | None = None
    interaction_cutoff: _Cutoff | None = None
    solver: Literal["tdvp", "dmrg"] | None = None


_DIALECTS: tuple[type[msgspec.Struct], ...] = (QutipKeys, StateVectorKeys, TensorKeys)
_ELSEWHERE = frozenset().union(*(keys.__struct_fields__ for keys in _DIALECTS))


class Dialect(msgspec.Struct, frozen=True):
    """How one emulator is configured.

    config_type: its class of configurations. keys: what it heeds beyond what all do, with their types.
    ours: what the operator decides, whatever clients say. full_times: whether it can look at every step.
    older: which of its keys the dictionary that came before may have, and what their words mean. lacks: keys of all
    emulators that this one cannot heed and must not drop, because they change the physics, with what to do.
    """

    config_type: type[EmulationConfig[Any]]
    keys: type[msgspec.Struct]
    ours: Mapping[str, Any] = {}
    full_times: bool = True
    older: Mapping[str, Mapping[str, Any]] = {}
    lacks: Mapping[str, str] = {}


class Configuration:
    """How the jobs of a batch are emulated; made by :func:`read_configuration`.

    digest: equal for configurations that were written alike.
    """

    def __init__(self, config: EmulationConfig[Any]) -> None:
        self.config = config
        self.digest: str = config.to_abstract_repr(skip_validation=True)

    def with_runs(self, runs: int | None) -> EmulationConfig[Any]:
        """Return the configuration of one job: ``runs``, where given, overrides every number of shots in it."""
        if runs is None:
            return self.config
        changed: EmulationConfig[Any] = self.config.with_changes(
            observables=tuple(with_shots(observable, runs) for observable in self.config.observables),
            default_num_shots=runs,
        )
        return changed


def read_configuration(dialect: Dialect, text: str | None, older: dict[str, Any] | None) -> Configuration:
    """Return the configuration of a batch; without one, the final bitstrings are sampled.

    ``older`` is the dictionary of emulator options that came before it. Raises ``Refusal`` naming the key.
    """
    options = dict(_older(dialect, older or {})) | (_default() if text is None else _allowed(dialect, text))
    try:
        config: Any = dialect.config_type.from_abstract_repr(json.dumps({**options, **dialect.ours}))
    except Exception as error:  # whatever it is, its cause is the text that we were sent
        raise Refusal(Fault("user", f"is not a configuration of this emulator: {brief(error)}", FIELD)) from error
    if isinstance(config.default_evaluation_times, str) and not dialect.full_times:
        message = f"must list times between 0 and 1: this emulator has no {config.default_evaluation_times!r}"
        raise Refusal(Fault("user", message, f"{FIELD}.default_evaluation_times"))
    return Configuration(config)


def _default() -> dict[str, Any]:
    """Bitstrings at the end. Their observable's random id is fixed, so that equal jobs have equal results."""
    plain: EmulationConfig[Any] = EmulationConfig(observables=[BitStrings(evaluation_times=[1.0])])
    options = json.loads(plain.to_abstract_repr())
    options["observables"][0]["uuid"] = "00000000-0000-0000-0000-000000000000"
    return {name: value for name, value in options.items() if name in _OF_ALL}


def _allowed(dialect: Dialect, text: str) -> dict[str, Any]:
    try:
        options = json.loads(text)  # Python's own: it may hold a bare Infinity
    except (ValueError, RecursionError) as error:
        raise Refusal(Fault("invalid", f"is not JSON: {brief(error)}", FIELD)) from error
    if not isinstance(options, dict):
        raise Refusal(Fault("invalid", "is not a JSON object", FIELD))
    for name, value in options.items():
        if found := infinite_number({name: value}, infinity=True):
            raise Refusal(Fault("invalid", f"has a number that is not one: {found}", f"{FIELD}.{name[:50]}"))
    return dict(_heeded(dialect, options))


def _heeded(dialect: Dialect, options: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in options.items():
        field = f"{FIELD}.{name[:50]}"
        if name in dialect.lacks and value is not None:
            raise Refusal(Fault("invalid", dialect.lacks[name], field))
        if name in _OF_ALL:
            yield name, value
        elif name in dialect.keys.__struct_fields__:
            if value is not None and not _is_of_another(dialect.keys, name, value):
                yield name, _typed(dialect.keys, name, value, field)
        elif name in _UNLESS_USED:
            if value not in _NO_SUCH_WISH and (name not in _USUAL or value != _USUAL[name]):
                raise Refusal(Fault("invalid", "is not allowed here: it is the operator's", field))
        elif name not in _DROPPED and name not in _ELSEWHERE:
            raise Refusal(Fault("invalid", "is not an option of this emulator", field))


def _is_of_another(keys: type[msgspec.Struct], name: str, value: Any) -> bool:
    """Return whether the value is a word of other emulators only, such as QuTiP's ``default`` for ``solver``."""
    others = [other for other in _DIALECTS if other is not keys and name in other.__struct_fields__]
    return isinstance(value, str) and not _fits(keys, name, value) and any(_fits(one, name, value) for one in others)


def _fits(keys: type[msgspec.Struct], name: str, value: Any) -> bool:
    try:
        msgspec.convert({name: value}, keys)
    except msgspec.ValidationError:
        return False
    return True


def _typed(keys: type[msgspec.Struct], name: str, value: Any, field: str) -> Any:
    try:
        msgspec.convert({name: value}, keys)
    except msgspec.ValidationError as error:
        if words := _words(keys, name):
            problem = f"must be one of {', '.join(words)}, not {brief(ValueError(repr(value)))}"
        else:
            said = str(error).partition(" - at ")[0].replace("`", "")
            problem = f"is not valid: {said[:1].lower()}{said[1:]}"
        raise Refusal(Fault("invalid", problem, field)) from error
    return value


def _words(keys: type[msgspec.Struct], name: str) -> list[str]:
    """Return the words that a key may have, if it has words."""
    choices = [choice for choice in get_args(get_type_hints(keys)[name]) if get_origin(choice) is Literal]
    return [repr(word) for choice in choices for word in get_args(choice)]


def _older(dialect: Dialect, older: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """What of the older dictionary this emulator can do."""
    for name, value in older.items():
        if name in dialect.older:
            words = dialect.older[name]
            meant = words.get(value, value) if isinstance(value, str) else value
            yield name, _typed(dialect.keys, name, meant, f"configuration.{name}")
        elif name not in _OLDER_DROPPED and value not in (None, False):
            raise Refusal(
                Fault(
                    "invalid",
                    "is not served; say how to emulate in backend_configuration (noise: its noise_model)",
                    f"configuration.{name[:50]}",
                )
            )


def with_shots(observable: Any, runs: int) -> Any:
    """Return the observable, with so many shots if it takes any."""
    if not isinstance(observable, BitStrings):
        return observable
    changed = copy.copy(observable)
    changed.num_shots = runs
    return changed
