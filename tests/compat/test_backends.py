"""Pulser's backends on a connection to Tweezer: emulators, an emulator with a QPU's specs, open batches."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from tests.compat.clients import Client, ClientError
from tests.compat.cloud import EMU_FREE, EMU_FRESNEL, EMU_MPS, EMU_SV, EMU_TN, NULL, QPU, Cloud

pytestmark = pytest.mark.compat


def test_an_emulation_gives_shots_and_observables(client: Client) -> None:
    result = client.call("backends.emulate", shots=70)
    assert (result["status"], result["atoms"]) == ("DONE", ["q0", "q1", "q2", "q3"])
    assert sum(result["counts"].values()) == 70
    assert [len(row) for row in result["occupation"]] == [4, 4]


def test_the_single_run_of_the_old_connection_is_a_placeholder(client: Client) -> None:
    (counts,) = client.call("backends.emulate_by_default")
    assert sum(counts.values()) == 1000  # the default of the configuration; stack B sends runs: 1, which has no meaning


def test_runs_that_a_user_gives_are_used(client_a: Client) -> None:
    job_params = [{"runs": runs, "variables": {"omega": 3.0}} for runs in (15, 25)]
    counts = client_a.call("backends.emulate_by_default", name="sweep", job_params=job_params)
    assert [sum(each.values()) for each in counts] == [15, 25]


def test_qubits_are_placed_by_each_job(client: Client) -> None:
    job_params = [{"variables": {"qubits": {"q0": 1, "q1": 4}}}]
    (counts,) = client.call("backends.emulate_by_default", name="mappable", job_params=job_params)
    assert {len(bits) for bits in counts} == {2}


def test_the_old_backend_without_configurations_still_runs(client_b: Client) -> None:
    counts = client_b.call("backends.emulate_the_older_way")
    assert counts[0] == {"0000": 20}
    assert sum(counts[1].values()) == 30


def test_an_unsupported_option_of_the_old_backend_is_refused(client_b: Client) -> None:
    with pytest.raises(ClientError) as caught:
        client_b.call("backends.emulate_the_older_way", with_noise=True)
    assert caught.value.kind == "BatchCreationError"  # refused at the submit


def test_a_missing_emulator_is_reported(client: Client) -> None:
    with pytest.raises(ClientError, match="400: device_type: there is no device 'EMU_SV'; the devices are EMU_FREE"):
        client.call("backends.emulate_on_a_missing_device")


@pytest.fixture(scope="module")
def emulators(cloud: Cloud) -> Iterator[None]:
    """Run the other emulators for the tests that need them."""
    pytest.importorskip("emu_mps", reason="the extra torch is not installed")
    with contextlib.ExitStack() as serving:
        for device in (EMU_SV, EMU_MPS, EMU_TN, EMU_FRESNEL):
            serving.enter_context(cloud.serving(device))
        yield


@pytest.mark.emulator
@pytest.mark.usefixtures("emulators")
@pytest.mark.parametrize("kind", [EMU_SV, EMU_MPS])
def test_state_vectors_and_tensor_networks_give_shots_and_observables(client: Client, kind: str) -> None:
    result = client.call("backends.emulate_with_tensors", kind=kind, shots=70, dt=50, log_level=20)
    assert (result["status"], result["atoms"]) == ("DONE", ["q0", "q1", "q2"])
    assert (sum(result["counts"].values()), sum(result["by_default"].values())) == (70, 1000)
    assert result["tags"] == ["bitstrings", "correlation_matrix", "energy", "occupation"]
    assert [len(row) for row in result["occupation"]] == [3, 3]


@pytest.mark.emulator
@pytest.mark.usefixtures("emulators")
def test_the_old_name_of_tensor_networks_still_works(client_b: Client) -> None:
    assert client_b.call("backends.emulate_by_tensor_networks", precision="low", max_bond_dim=8) == [{"000": 20}]


@pytest.mark.emulator
@pytest.mark.usefixtures("emulators")
def test_a_machine_is_emulated_within_its_limits(client: Client) -> None:
    jobs = [{"runs": 30, "variables": {"omega": 0.0}}]
    batch = client.call(
        "batches.create", sequence="analog", jobs=jobs, device_type=EMU_FRESNEL, results=True, wait=True
    )
    assert (batch["status"], batch["jobs"][0]["result"]) == ("DONE", {"00": 30})
    with pytest.raises(ClientError, match="runs"):
        client.call("batches.create", sequence="analog", jobs=[{**jobs[0], "runs": 5000}], device_type=EMU_FRESNEL)


def test_an_open_batch_takes_run_after_run(client: Client) -> None:
    result = client.call("backends.emulate_in_an_open_batch")
    assert [len(jobs) for jobs in result["jobs"]] == [1, 1]
    assert result["jobs"][0] != result["jobs"][1]
    assert (len(result["batches"]), result["found"]) == (1, [1, 1])


def test_results_are_read_for_some_jobs_of_a_batch(client: Client) -> None:
    assert client.call("backends.partial_results") == {"all": True, "one": True, "counts": [10]}


def test_missing_results_are_left_out_of_the_available_ones(client: Client) -> None:
    jobs = [{"runs": 10}, {"runs": 1, "variables": {"sleep_s": 60}}, {"runs": 1, "variables": {"fail": "it broke"}}]
    batch = client.call("batches.create", sequence="single", jobs=jobs, device_type=NULL)
    done, _, failed = (job["id"] for job in batch["jobs"])
    for job_id in (done, failed):
        client.call("batches.read_job", job_id=job_id, wait=True)
    result = client.call("backends.results_of", batch_id=batch["id"])
    assert (result["available"], result["counts"]) == (
        [done],
        [{"0": 10}],
    )  # from the counter: there are no serialised results
    assert (result["error"], result["because"][:34]) == ("RemoteResultsError", "The results are not yet available,")
    client.call("batches.cancel", batch_id=batch["id"])


def test_the_connection_fetches_the_devices(client: Client) -> None:
    devices = client.call("backends.devices")
    assert devices.keys() >= {EMU_FREE, NULL, QPU}
    assert devices[QPU] == "AnalogDevice"


def test_a_qpu_is_found_by_the_device_of_the_sequence(client: Client) -> None:
    job_params = [{"runs": 10, "variables": {"omega": omega}} for omega in (0.0, 4.0)]
    result = client.call("backends.run_on_the_qpu", job_params=job_params)
    assert result["status"] == "DONE"
    assert result["counts"][0] == {"00": 10}
    assert sum(result["counts"][1].values()) == 10


def test_a_qpu_takes_an_open_batch(client: Client) -> None:
    assert client.call("backends.run_on_the_qpu_in_an_open_batch") == {"batches": 1, "found": [1, 1]}


def test_more_runs_than_the_device_allows_are_refused(client: Client) -> None:
    with pytest.raises(ClientError, match="runs"):
        client.call("backends.run_on_the_qpu", job_params=[{"runs": 10**6, "variables": {"omega": 1.0}}])


def test_a_third_partys_connection_is_served_on_its_paths(client: Client) -> None:
    (counts,) = client.call("backends.run_by_a_third_party")
    assert sum(counts.values()) == 1000
    assert all("/third-party-access/ovh/" in path for path in client.paths() if not path.endswith("/results"))
