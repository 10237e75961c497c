"""The client's calls apart from batches and jobs: projects, devices, workloads, and its own methods."""

from __future__ import annotations

from typing import Any

from door import Door
from pulser.json.abstract_repr.deserializer import deserialize_device


def public_methods(door: Door) -> list[str]:
    """Return the names of the client's public methods."""
    client = door.client()
    return sorted(name for name in dir(type(client)) if not name.startswith("_"))


def token(door: Door) -> Any:
    return door.client().user_token()


def projects(door: Door) -> dict[str, str]:
    """Return the names of the projects by id."""
    return {project.id: project.name for project in door.client().get_all_projects()}


def switch(door: Door, project_id: str) -> str:
    """Switch to another project, submit there, and return the project of the batch."""
    client = door.client()
    assert client.switch_to_project(project_id) == project_id
    return str(client.create_batch("{}", [{"runs": 1}], device_type="NULL").project_id)


def devices(door: Door) -> dict[str, str]:
    """Return the names in the specs of all devices, after Pulser has read them."""
    return {name: deserialize_device(specs).name for name, specs in door.client().get_device_specs_dict().items()}


def create_workload(door: Door) -> Any:
    return door.client().create_workload("pulser", "EMU_FREE", {"a": 1}).id


def get_workload(door: Door, workload_id: str) -> Any:
    return door.client().get_workload(workload_id).id


def cancel_workload(door: Door, workload_id: str) -> Any:
    return door.client().cancel_workload(workload_id).id
