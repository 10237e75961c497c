"""Pulser's backends on a connection to the server, used as in the tutorials of both stacks."""

from __future__ import annotations

from typing import Any

import sequences
from access import NEW, Access
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

Data = dict[str, Any]


def emulate(access: Access, *, shots: int, wait: bool = True) -> Data:
    """Emulate with a configuration that asks for shots and an observable."""
    config: EmulationConfig[Any] = EmulationConfig(
        observables=[
            BitStrings(num_shots=shots, evaluation_times=[1.0]),
            Occupation(evaluation_times=[0.5, 1.0]),
        ]
    )
    backend = RemoteEmuFreeBackend(sequences.rabi(measured=False), access.connection(), config=config)
    results = backend.run(wait=wait)
    (result,) = results.results
    return {
        "batch": results.batch_id,
        "status": results.get_batch_status().name,
        "counts": dict(result.final_bitstrings),
        "occupation": [[float(value) for value in row] for row in result.occupation],
        "atoms": list(result.atom_order),
    }


def emulate_with_tensors(access: Access, *, kind: str, shots: int, **options: Any) -> Data:
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
    results = backend_type(sequences.rabi(qubits=3), access.connection(), config=config).run(wait=True)
    (result,) = results.results
    (plain,) = backend_type(sequences.rabi(qubits=2), access.connection()).run(wait=True).results
    return {
        "status": results.get_batch_status().name,
        "counts": dict(result.final_bitstrings),
        "by_default": dict(plain.final_bitstrings),
        "tags": sorted(result.get_result_tags()),
        "occupation": [[float(value) for value in row] for row in result.occupation],
        "atoms": list(result.atom_order),
    }


def emulate_by_default(
    access: Access, job_params: list[Any] | None = None, *, name: str = "rabi"
) -> list[dict[str, int]]:
    """Emulate with the configuration of the backend itself, and return the counters."""
    sequence = {"rabi": sequences.rabi, "sweep": sequences.sweep, "mappable": sequences.mappable}[name]()
    results = RemoteEmuFreeBackend(sequence, access.connection()).run(job_params, wait=True)
    return [dict(result.final_bitstrings) for result in results.results]


def emulate_the_older_way(access: Access, **options: Any) -> list[dict[str, int]]:
    """Emulate with the old backend from before configurations: stack B only."""
    config = EmulatorConfig(evaluation_times="Final", sampling_rate=0.25, backend_options=options)
    backend = EmuFreeBackend(sequences.sweep(), access.connection(), config=config)
    job_params = [{"runs": 20, "variables": {"omega": 0.0}}, {"runs": 30, "variables": {"omega": 5.0}}]
    return [dict(result.bitstring_counts) for result in backend.run(job_params, wait=True).results]


def emulate_by_tensor_networks(access: Access, **options: Any) -> list[dict[str, int]]:
    """Emulate with the old name of emu-mps: stack B only."""
    config = EmulatorConfig(evaluation_times="Final", sampling_rate=0.02, backend_options=options)
    backend = EmuTNBackend(sequences.sweep(qubits=3), access.connection(), config=config)
    results = backend.run([{"runs": 20, "variables": {"omega": 0.0}}], wait=True)
    return [dict(result.bitstring_counts) for result in results.results]


def emulate_on_a_missing_device(access: Access) -> None:
    """Emulate on a missing device."""
    SVBackend(sequences.rabi(), access.connection()).run(wait=True)


def emulate_in_an_open_batch(access: Access) -> Data:
    """Run twice in an open batch, and read the results after it was closed."""
    connection = access.connection()
    backend = RemoteEmuFreeBackend(sequences.sweep(), connection)
    with backend.open_batch():
        runs = [backend.run([{"runs": 10, "variables": {"omega": omega}}]) for omega in (1.0, 2.0)]
        await_end(connection, runs[-1].batch_id)
    jobs = [run.job_ids for run in runs]
    return {"jobs": jobs, "batches": sorted({run.batch_id for run in runs}), "found": [len(r.results) for r in runs]}


def add_over_another_base(access: Access, base: str) -> Data:
    """Open a batch, run in it through another base, and return its number of jobs."""
    backend = RemoteEmuFreeBackend(sequences.rabi(), access.connection())
    with backend.open_batch():
        backend._connection = access.moved(base).connection()
        results = backend.run()
    return {"jobs": len(access.connection()._get_job_ids(results.batch_id))}


def partial_results(access: Access) -> Data:
    """Read the results of a batch with a job that cannot run and one that can."""
    connection = access.connection()
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


def results_of(access: Access, batch_id: str) -> Data:
    """Return the available results of a batch, and the client's error when it reads all results."""
    results = access.connection().get_results(batch_id)
    available = results.get_available_results()
    counts = [dict(result.final_bitstrings) for result in available.values()]
    found = {"available": list(available), "counts": counts}
    try:
        return {**found, "complete": len(results.results)}
    except Exception as error:  # Pulser's RemoteResultsError
        return {**found, "error": type(error).__name__, "because": str(error.__cause__)}


def devices(access: Access) -> dict[str, str]:
    """Return the name of each device that the connection fetches, and that of its specs."""
    return {name: device.name for name, device in access.connection().fetch_available_devices().items()}


def run_on_the_qpu(access: Access, job_params: list[Any]) -> Data:
    """Run with QPUBackend, which takes the device from the sequence."""
    connection = access.connection()
    results = QPUBackend(sequences.for_the_analog_device(), connection).run(job_params, wait=True)
    return {
        "status": results.get_batch_status().name,
        "counts": [dict(result.final_bitstrings) for result in results.results],
        "devices": sorted(connection.fetch_available_devices()),
    }


def run_on_the_qpu_in_an_open_batch(access: Access) -> Data:
    connection = access.connection()
    backend = QPUBackend(sequences.for_the_analog_device(), connection)
    with backend.open_batch():
        runs = [backend.run([{"runs": 10, "variables": {"omega": omega}}]) for omega in (1.0, 2.0)]
        await_end(connection, runs[-1].batch_id)
    return {"batches": len({run.batch_id for run in runs}), "found": [len(run.results) for run in runs]}


def run_by_a_third_party(access: Access) -> list[dict[str, int]]:
    """Run on the paths of a cloud that resells the service."""
    backend = RemoteEmuFreeBackend(sequences.rabi(), access.third_party())
    return [dict(result.final_bitstrings) for result in backend.run(wait=True).results]


def await_end(connection: Any, batch_id: str) -> None:
    """Wait with the client until no job of a batch is pending or running."""
    if NEW:
        connection.cloud_client._wait_for_batch_terminal(batch_id)
        return
    for job_id in connection._get_job_ids(batch_id):
        connection._sdk_connection.get_job(job_id, wait=True)
