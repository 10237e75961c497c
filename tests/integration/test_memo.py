"""The memory of a lane is bounded, with evolutions and the results of their observables; texts are parsed once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pulser import Pulse, Register, Sequence
from pulser.backend import BitStrings, CorrelationMatrix, EmulationConfig
from pulser.devices import MockDevice
from pulser_simulation import QutipConfig

from tweezer.adapters.emulators import pulser_backend, pulser_configuration
from tweezer.adapters.emulators.pulser_backend import PulserBackend
from tweezer.adapters.emulators.pulser_sampling import estimate_bytes
from tweezer.adapters.emulators.qutip_backend import Qutip
from tweezer.adapters.lane.backend import Watch
from tweezer.model.ids import job_id, new_batch_id
from tweezer.model.messages import BatchDoc, BatchWork, JobSpec, JobWork

pytestmark = [pytest.mark.emulator, pytest.mark.filterwarnings("ignore")]


def test_nested_lists_arrays_and_shared_parts_are_counted_once() -> None:
    matrix = [[float(row * 100 + column) for column in range(30)] for row in range(30)]
    assert 30 * 30 * (8 + 24) <= estimate_bytes(matrix) <= 30 * 30 * 48
    array = np.zeros((100, 100))
    assert estimate_bytes(array) == array.nbytes
    assert array.nbytes <= estimate_bytes([array, array]) < 2 * array.nbytes


def test_evolutions_with_large_observables_leave_the_memo_when_it_is_full() -> None:
    atoms, kept = 6, 200_000
    sequence: Sequence[Any] = Sequence(Register.rectangle(1, atoms, spacing=8, prefix="q"), MockDevice)
    sequence.declare_channel("channel", "rydberg_global")
    amplitude = sequence.declare_variable("amplitude")
    sequence.add(Pulse.ConstantPulse(100, amplitude, 0, 0), "channel")
    times = [each / 20 for each in range(1, 21)]
    config: EmulationConfig[Any] = QutipConfig(observables=[BitStrings(), CorrelationMatrix(evaluation_times=times)])
    backend = PulserBackend(Qutip(), Watch(lambda *_: None, 1.0), memo_bytes=kept)
    doc = BatchDoc(
        device="EMU_FREE", sequence=sequence.to_abstract_repr(), backend_configuration=config.to_abstract_repr()
    )
    backend.prepare(BatchWork(new_batch_id(), doc))
    for value in range(1, 12):
        spec = JobSpec(runs=1, variables={"amplitude": float(value)})
        backend.run(JobWork(job_id(new_batch_id(), 0), 0, spec, seed=1))
    held = estimate_bytes(list(backend._evolutions._entries.values()))
    assert held <= 1.5 * kept


def test_the_configuration_of_equally_configured_batches_is_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read, parsed = pulser_configuration.read_configuration, []

    def counted(dialect: Any, text: str | None, older: dict[str, Any] | None) -> Any:
        parsed.append((text, older))
        return read(dialect, text, older)

    monkeypatch.setattr(pulser_backend, "read_configuration", counted)
    backend = PulserBackend(Qutip(), Watch(lambda *_: None, 1.0), memo_bytes=0)

    def prepare(text: str | None, older: dict[str, Any] | None = None) -> None:
        doc = BatchDoc("EMU_FREE", backend_configuration=text, configuration=older)
        backend.prepare(BatchWork(new_batch_id(), doc))

    texts = [QutipConfig(default_num_shots=shots).to_abstract_repr() for shots in range(1, 40)]
    wanted: list[tuple[str | None, dict[str, Any] | None]] = [
        (None, None),
        (texts[0], None),
        (texts[0], {"strict_validation": True}),
        (texts[1], None),
    ]
    for each in (*wanted, *wanted):
        prepare(*each)
    assert parsed == wanted
    for text in texts:
        prepare(text)
    assert len(backend._configurations) < len(texts)
