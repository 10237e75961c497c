"""Pulser's backends on a connection to the server, used as in the tutorials of both stacks."""

from __future__ import annotations

from typing import Any

import sequences
from door import NEW, Door
from pulser import QPUBackend
from pulser.backend import BitStrings, CorrelationMatrix, EmulationConfig, Energy, Occupation

if NEW:
    from pasqal_cloud import RemoteEmuFreeBackend
    from pasqal_cloud import RemoteMPSBackend as MPSBackend
    from pasqal_cloud import RemoteSVBackend as SVBackend
else:
    from pulser.backend.config import EmulatorConfig
    from pulser_pasqal import EmuFreeBackend, EmuTNBackend
    from pulser_pasqal import EmuFreeBackendV2 as RemoteEmuFreeBackend
    from pulser_pasqal import EmuMPSBackend as MPSBackend
    from pulser_pasqal import EmuSVBackend as SVBackend

Told = dict[str, Any]


def emulate(door: Door, *, shots: int, wait: bool = True) -> Told:
    """Emulate with a configuration that asks for shots and an observable."""
    config: EmulationConfig[Any] = EmulationConfig(
        observables=[
            BitStrings(num_shots=shots, evaluation_times=[1.0]),
            Occupation(evaluation_times=[0.5, 1.0]),
        ]
    )
    backend = RemoteEmuFreeBackend(sequences.rabi(measured=False), door.connection(), config=config)
    results = backend.run(wait=wait)
    (result,) = results.results
    return {
        "batch": results.batch_id,
        "status": results.get_batch_status().name,
        "counts": dict(result.final_bitstrings),
        "occupation": [[float(value) for value in row] for row in result.occupation],
        "atoms": list(result.atom_order),
    }


def emulate_with_tensors(door: Door, *, kind: str, shots: int, **options: Any) -> Told:
    """Emulate on emu-sv or emu-mps with these options, or with the backend's own configuration without options."""
    backend_type: Any = {"EMU_SV": SVBackend, "EMU_MPS": MPSBackend}[kind]
    config: EmulationConfig[Any] = EmulationConfig(
        observables=[
            BitStrings(num_shots=shots, evaluation_times=[1.0]),
            Occupation(evaluation_times=[0.5, 1.0]),
            CorrelationMatrix(evaluation_times=[1.0]),
            Energy(evaluation_times=[1.0]),
        ],
        **options,
    )
    results = backend_type(sequences.rabi(qubits=3), door.connection(), config=config).run(wait=True)
    (result,) = results.results
    (plain,) = backend_type(sequences.rabi(qubits=2), door.connection()).run(wait=True).results
    return {
        "status": results.get_batch_status().name,
        "counts": dict(result.final_bitstrings),
        "by_default": dict(plain.final_bitstrings),
        "tags": sorted(result.get_result_tags()),
        "occupation": [[float(value) for value in row] for row in result.occupation],
        "atoms": list(result.atom_order),
    }


def emulate_by_default(door: Door, job_params: list[Any] | None = None, *, name: str = "rabi") -> list[dict[str, int]]:
    """Emulate with the configuration of the backend itself, and return the counters."""
    sequence = {"rabi": sequences.rabi, "sweep": sequences.sweep, "mappable": sequences.mappable}[name]()
    results = RemoteEmuFreeBackend(sequence, door.connection()).run(job_params, wait=True)
    return [dict(result.final_bitstrings) for result in results.results]


def emulate_the_older_way(door: Door, **options: Any) -> list[dict[str, int]]:
    """Emulate with the old backend from before configurations: stack B only."""
    config = EmulatorConfig(evaluation_times="Final", sampling_rate=0.25, backend_options=options)
    backend = EmuFreeBackend(sequences.sweep(), door.connection(), config=config)
    job_params = [{"runs": 20, "variables": {"omega": 0.0}}, {"runs": 30, "variables": {"omega": 5.0}}]
    return [dict(result.bitstring_counts) for result in backend.run(job_params, wait=True).results]


def emulate_by_tensor_networks(door: Door, **options: Any) -> list[dict[str, int]]:
    """Emulate with the old name of emu-mps: stack B only."""
    config = EmulatorConfig(evaluation_times="Final", sampling_rate=0.02, backend_options=options)
    backend = EmuTNBackend(sequences.sweep(qubits=3), door.connection(), config=config)
    results = backend.run([{"runs": 20, "variables": {"omega": 0.0}}], wait=True)
    return [dict(result.bitstring_counts) for result in results.results]


def emulate_elsewhere(door: Door) -> None:
    """Emulate on a missing device."""
    SVBackend(sequences.rabi(), door.connection()).run(wait=True)


def emulate_in_an_open_batch(door: Door) -> Told:
    """Run twice in an open batch, and read the results after it was closed."""
    connection = door.connection()
    backend = RemoteEmuFreeBackend(sequences.sweep(), connection)
    with backend.open_batch():
        runs = [backend.run([{"runs": 10, "variables": {"omega": omega}}]) for omega in (1.0, 2.0)]
        await_end(connection, runs[-1].batch_id)
    jobs = [run.job_ids for run in runs]
    return {"jobs": jobs, "batches": sorted({run.batch_id for run in runs}), "found": [len(r.results) for r in runs]}


def add_over_a_new_way(door: Door, base: str) -> Told:
    """Open a batch, run in it through another base, and return its number of jobs."""
    backend = RemoteEmuFreeBackend(sequences.rabi(), door.connection())
    with backend.open_batch():
        backend._connection = door.moved(base).connection()
        results = backend.run()
    return {"jobs": len(door.connection()._get_job_ids(results.batch_id))}


def partial_results(door: Door) -> Told:
    """Read the results of a batch with a job that cannot run and one that can."""
    connection = door.connection()
    config: EmulationConfig[Any] = EmulationConfig(observables=[BitStrings(num_shots=10)])
    backend = RemoteEmuFreeBackend(sequences.sweep(), connection, config=config)
    results = backend.run([{"variables": {"omega": 1.0}}, {"variables": {"omega": 1.0}}], wait=True)
    first, second = results.job_ids
    later = connection.get_results(results.batch_id, [second])
    return {
        "all": sorted(results.get_available_results()) == sorted([first, second]),
        "one": list(later.get_available_results()) == [second],
        "counts": [sum(result.final_bitstrings.values()) for result in later.results],
    }


def results_of(door: Door, batch_id: str) -> Told:
    """Return the available results of a batch, and the client's error when it reads all results."""
    results = door.connection().get_results(batch_id)
    available = results.get_available_results()
    counts = [dict(result.final_bitstrings) for result in available.values()]
    told = {"available": list(available), "counts": counts}
    try:
        return {**told, "complete": len(results.results)}
    except Exception as error:  # Pulser's RemoteResultsError
        return {**told, "error": type(error).__name__, "because": str(error.__cause__)}


def devices(door: Door) -> dict[str, str]:
    """Return the name of each device that the connection fetches, and that of its specs."""
    return {name: device.name for name, device in door.connection().fetch_available_devices().items()}


def run_on_the_qpu(door: Door, job_params: list[Any]) -> Told:
    """Run with QPUBackend, which takes the device from the sequence."""
    connection = door.connection()
    results = QPUBackend(sequences.for_the_analog_device(), connection).run(job_params, wait=True)
    return {
        "status": results.get_batch_status().name,
        "counts": [dict(result.final_bitstrings) for result in results.results],
        "devices": sorted(connection.fetch_available_devices()),
    }


def run_on_the_qpu_in_an_open_batch(door: Door) -> Told:
    connection = door.connection()
    backend = QPUBackend(sequences.for_the_analog_device(), connection)
    with backend.open_batch():
        runs = [backend.run([{"runs": 10, "variables": {"omega": omega}}]) for omega in (1.0, 2.0)]
        await_end(connection, runs[-1].batch_id)
    return {"batches": len({run.batch_id for run in runs}), "found": [len(run.results) for run in runs]}


def run_by_a_third_party(door: Door) -> list[dict[str, int]]:
    """Run on the paths of a cloud that resells the service."""
    backend = RemoteEmuFreeBackend(sequences.rabi(), door.third_party())
    return [dict(result.final_bitstrings) for result in backend.run(wait=True).results]


def await_end(connection: Any, batch_id: str) -> None:
    """Wait with the client until no job of a batch is pending or running."""
    if NEW:
        connection.cloud_client._wait_for_batch_terminal(batch_id)
        return
    for job_id in connection._get_job_ids(batch_id):
        connection._sdk_connection.get_job(job_id, wait=True)
