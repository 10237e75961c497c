"""Reading a client's ``backend_configuration``: Pulser's ``EmulationConfig`` as a JSON string.

Its keys are allowed one by one, because some are dangerous: ``log_file`` and ``autosave_*`` make an
emulator write files where a client says. Keys that only other emulators or machines heed are dropped.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

from pulser.backend import BitStrings, EmulationConfig
from pulser_simulation import QutipConfig

from tweezer.adapters.lane_backend import Refusal
from tweezer.adapters.pulser_sequences import brief
from tweezer.model.messages import Fault

FIELD = "backend_configuration"

_HEEDED = frozenset(
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
        "sampling_rate",
        "solver",
    }
)
_DROPPED = frozenset(
    {
        "print_progress",
        "progress_bar",
        "num_gpus_to_use",
        "gpu",
        "log_level",
        "optimize_qubit_ordering",
        "dt",
        "precision",
        "max_bond_dim",
        "max_krylov_dim",
        "krylov_tolerance",
        "extra_krylov_tolerance",
        "interaction_cutoff",
    }
)
_UNLESS_USED = frozenset({"callbacks", "log_file", "autosave_prefix", "autosave_dt"})
_NO_SUCH_WISH: tuple[Any, ...] = ([], None, float("inf"))
_OLDER_DROPPED = frozenset({"strict_validation", "result_types"})


class Configuration:
    """How the jobs of a batch are emulated; made by :func:`read_configuration`.

    digest: equal for configurations that were written alike.
    """

    def __init__(self, config: QutipConfig) -> None:
        self.config = config
        self.digest: str = config.to_abstract_repr(skip_validation=True)

    def with_runs(self, runs: int | None) -> QutipConfig:
        """The configuration of one job: ``runs``, where given, overrides every number of shots in it."""
        if runs is None:
            return self.config
        changed: QutipConfig = self.config.with_changes(
            observables=tuple(_with_shots(observable, runs) for observable in self.config.observables),
            default_num_shots=runs,
        )
        return changed


def read_configuration(text: str | None, older: dict[str, Any] | None) -> Configuration:
    """The configuration of a batch; without one, the final bitstrings are sampled.

    ``older`` is the dictionary of emulator options that came before it. Raises ``Refusal`` naming the key.
    """
    _check_older(older or {})
    try:
        config: Any = QutipConfig.from_abstract_repr(_default() if text is None else _allowed(text))
        return Configuration(config)
    except Refusal:
        raise
    except Exception as error:  # whatever it is, its cause is the text that we were sent
        raise Refusal(Fault("user", f"is not a configuration of this emulator: {brief(error)}", FIELD)) from error


def _default() -> str:
    """Bitstrings at the end. Their observable's random id is fixed, so that equal jobs have equal results."""
    plain: EmulationConfig[Any] = EmulationConfig(observables=[BitStrings(evaluation_times=[1.0])])
    options = json.loads(plain.to_abstract_repr())
    options["observables"][0]["uuid"] = "00000000-0000-0000-0000-000000000000"
    return json.dumps({name: value for name, value in options.items() if name in _HEEDED})


def _allowed(text: str) -> str:
    try:
        options = json.loads(text)  # Python's own: it may hold a bare Infinity
    except (ValueError, RecursionError) as error:
        raise Refusal(Fault("invalid", f"is not JSON: {brief(error)}", FIELD)) from error
    if not isinstance(options, dict):
        raise Refusal(Fault("invalid", "is not a JSON object", FIELD))
    return json.dumps(dict(_heeded(options)))


def _heeded(options: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in options.items():
        if name in _HEEDED:
            yield name, value
        elif name in _UNLESS_USED:
            if value not in _NO_SUCH_WISH:
                raise Refusal(Fault("invalid", "is not allowed here", f"{FIELD}.{name}"))
        elif name not in _DROPPED:
            raise Refusal(Fault("invalid", "is not an option of this emulator", f"{FIELD}.{name[:50]}"))


def _check_older(older: dict[str, Any]) -> None:
    for name, value in older.items():
        if name not in _OLDER_DROPPED and value not in (None, False):
            raise Refusal(
                Fault(
                    "invalid",
                    "is not served; say how to emulate in backend_configuration (noise: its noise_model)",
                    f"configuration.{name[:50]}",
                )
            )


def _with_shots(observable: Any, runs: int) -> Any:
    if not isinstance(observable, BitStrings):
        return observable
    changed = copy.copy(observable)
    changed.num_shots = runs
    return changed
