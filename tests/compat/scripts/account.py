"""The client's calls apart from batches and jobs: projects, devices, workloads, and its own methods."""

from __future__ import annotations

from typing import Any

from access import NEW, Access
from pulser.json.abstract_repr.deserializer import deserialize_device


def public_methods(access: Access) -> list[str]:
    """Return the names of the client's public methods."""
    client = access.client()
    return sorted(name for name in dir(type(client)) if not name.startswith("_"))


def paths(access: Access) -> list[str]:
    """Return the paths that the client and its variant for OVH can call, without the log-in."""
    third_party = access.third_party()
    clients = (access.client(), third_party.cloud_client if NEW else third_party._sdk_connection)
    urls = [url for client in clients for url in client._client._get_api_urls().values()]
    return sorted({url.removeprefix(access.base) for url in urls})


def token(access: Access) -> Any:
    return access.client().user_token()


def projects(access: Access) -> dict[str, str]:
    """Return the names of the projects by id."""
    return {project.id: project.name for project in access.client().get_all_projects()}


def switch(access: Access, project_id: str) -> str:
    """Switch to another project, submit there, and return the project of the batch."""
    client = access.client()
    assert client.switch_to_project(project_id) == project_id
    return str(client.create_batch("{}", [{"runs": 1}], device_type="NULL").project_id)


def devices(access: Access) -> dict[str, str]:
    """Return the names in the specs of all devices, after Pulser has read them."""
    return {name: deserialize_device(specs).name for name, specs in access.client().get_device_specs_dict().items()}


def create_workload(access: Access) -> Any:
    return access.client().create_workload("pulser", "EMU_FREE", {"a": 1}).id


def get_workload(access: Access, workload_id: str) -> Any:
    return access.client().get_workload(workload_id).id


def cancel_workload(access: Access, workload_id: str) -> Any:
    return access.client().cancel_workload(workload_id).id
