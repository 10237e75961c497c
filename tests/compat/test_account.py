"""Authentication by key or by name and password; projects and devices; workloads."""

from __future__ import annotations

from typing import Any

import pytest
from tests.compat.clients import Client, ClientError
from tests.compat.cloud import ADA, EMU_FREE, FOREIGN, NULL, PASSWORD, PROJECT, QPU, SECOND, Cloud
from tests.support.docs import documented_routes

pytestmark = pytest.mark.compat

COVERED = {
    *("add_jobs", "batches", "cancel_batch", "cancel_batches", "cancel_job", "cancel_jobs", "cancel_workload"),
    *("close_batch", "complete_batch", "create_batch", "create_workload", "get_all_projects", "get_batch"),
    *("get_batch_status", "get_batches", "get_device_specs_dict", "get_job", "get_job_status", "get_jobs"),
    *("get_workload", "project_id", "rebatch", "set_batch_tags", "switch_to_project", "user_token"),
    *("wait_for_workload",),
}
"""The methods that the scripts call; the last one waits for workloads, which do not exist."""

LOGIN = {"key": None, "username": ADA, "password": PASSWORD}
NOBODY = "00000000-0000-8000-8000-000000000000"


def test_every_public_method_of_the_client_is_called_by_some_test(client: Client) -> None:
    assert set(client.call("account.public_methods")) <= COVERED


def test_the_page_of_routes_marks_those_that_the_client_calls(client_a: Client, client_b: Client) -> None:
    marked = {path for _, path, _, also_in in documented_routes() if "pasqal-cloud" in also_in}
    assert {*client_a.call("account.paths"), *client_b.call("account.paths"), "/oauth/token"} == marked


def test_a_user_logs_in_with_name_and_password(client: Client) -> None:
    assert client.call("account.token", through=LOGIN).startswith("twz_")
    assert client.call("account.projects", through=LOGIN) == {PROJECT: "Ours", SECOND: "Second"}
    batch = client.call("batches.create_null", through=LOGIN, jobs=[{"runs": 1}], wait=True)
    assert (batch["status"], batch["project_id"]) == ("DONE", PROJECT)
    assert batch["user_id"]


def test_a_wrong_password_is_reported(client: Client) -> None:
    with pytest.raises(ClientError, match="the name or the password is wrong"):
        client.call("account.token", through=LOGIN | {"password": "wrong"})


def test_a_wrong_key_is_refused_in_a_sentence(client: Client, cloud: Cloud) -> None:
    with pytest.raises(ClientError, match=r"Batch creation failed: 401: \w+"):
        client.call("batches.create_null", through={"key": f"{cloud.key[:-4]}aaaa"}, jobs=[{"runs": 1}])


def test_a_user_switches_between_projects(client: Client) -> None:
    assert client.call("account.switch", through=LOGIN, project_id=SECOND) == SECOND
    with pytest.raises(ClientError) as caught:
        client.call("account.switch", through=LOGIN, project_id=FOREIGN)
    assert caught.value.kind == "ProjectNotFoundError"


def test_a_key_sees_its_project_only(client: Client) -> None:
    assert client.call("account.projects") == {PROJECT: "Ours"}


def test_the_endpoints_of_the_cloud_with_their_prefix_are_served(client: Client) -> None:
    batch = client.call("batches.create_null", through={"prefix": "/core-fast"}, jobs=[{"runs": 1}], wait=True)
    assert batch["status"] == "DONE"
    assert all(path.startswith("/core-fast/") for path in client.paths())


@pytest.mark.parametrize("through", [{}, {"key": None}])
def test_pulser_can_read_the_specs_of_every_device(client: Client, through: dict[str, None]) -> None:
    found = client.call("account.devices", through=through)
    assert found.keys() >= {EMU_FREE, NULL, QPU}
    assert len(set(found.values())) == len(found)
    assert found[QPU] == "AnalogDevice"
    assert [request["authorized"] for request in client.requests] == [not through]


def test_workloads_are_reported_as_missing(client: Client) -> None:
    for function, says in (
        ("create_workload", "Job creation failed: 501: "),  # a text of the client
        ("get_workload", "Workload fetching failed: 501: "),
        ("cancel_workload", "Workload cancelling failed: 501: "),
    ):
        arguments: dict[str, Any] = {} if function == "create_workload" else {"workload_id": NOBODY}
        with pytest.raises(ClientError) as caught:
            client.call(f"account.{function}", **arguments)
        assert caught.value.sentence.startswith(says)
        assert len(client.requests) == 1  # it does not retry
