"""The calls of a user with batches and jobs. Each function returns what the client returned."""

from __future__ import annotations

from typing import Any

import sequences
from access import NEW, Access
from pasqal_cloud.batch import Batch
from pasqal_cloud.device import EmulatorType
from pasqal_cloud.device.configuration import BaseConfig, EmuFreeConfig
from pasqal_cloud.job import Job
from pasqal_cloud.utils.constants import BatchStatus, JobStatus, QueuePriority
from pasqal_cloud.utils.filters import BatchFilters, CancelJobFilters, JobFilters, PaginationParams, RebatchFilters

Data = dict[str, Any]
_WORDS = {"BatchFilters": BatchStatus, "JobFilters": JobStatus, "RebatchFilters": JobStatus}


def create(
    access: Access, jobs: list[Any], *, sequence: str | None = "rabi", results: bool = False, **options: Any
) -> Data:
    """Create a batch with one of our sequences; return it, with the results of its jobs if requested."""
    text = None if sequence is None else sequences.text(sequence)
    return _batch(
        access.client(webhook=options.pop("webhook", None)).create_batch(text, _own(jobs), **options), results
    )


def create_null(access: Access, jobs: list[Any], **options: Any) -> Data:
    """Create a batch for the null device, whose jobs do what their variables specify."""
    return _batch(access.client().create_batch("{}", jobs, device_type="NULL", **options))


def create_many(access: Access, number: int) -> list[str]:
    """Create this many closed batches for the null device, and return their ids."""
    client = access.client()
    return [client.create_batch("{}", [{"runs": 1}], device_type="NULL").id for _ in range(number)]


def create_the_older_way(access: Access, jobs: list[Any]) -> Data:
    """Create a batch with the old names of fields."""
    batch = access.client().create_batch(
        sequences.text("rabi"),
        jobs,
        complete=True,
        emulator=EmulatorType.EMU_FREE,
        configuration=EmuFreeConfig(),
        fetch_results=True,
    )
    return _batch(batch, results=True) | {"keyed": sorted(batch.jobs)}


def fill_an_open_batch(access: Access) -> list[Data]:
    """Open a batch without jobs, add some in both ways, repeat one, and close it; return its state after each step."""
    client = access.client()
    batch = client.create_batch(sequences.text("sweep"), [], open=True, device_type="EMU_FREE")
    steps = [_batch(batch)]
    waits = {"wait": True} if NEW else {}
    steps.append(_batch(client.add_jobs(batch.id, [{"runs": 5, "variables": {"omega": 1.0}}], **waits)))
    batch.add_jobs([{"runs": 7, "variables": {"omega": 2.0}}], **waits)
    steps.append(_batch(batch))
    batch.retry(batch.ordered_jobs[0], wait=True)
    steps.append(_batch(batch))
    batch.close(wait=True)
    steps.append(_batch(batch, results=True))
    return steps


def close(access: Access, batch_id: str) -> Data:
    return _batch(access.client().close_batch(batch_id))


def close_the_older_way(access: Access, batch_id: str) -> list[Data]:
    client = access.client()
    batch = client.get_batch(batch_id)
    batch.declare_complete()
    return [_batch(batch), _batch(client.complete_batch(batch_id))]


def read(access: Access, batch_id: str) -> Data:
    """Read a batch in every possible way."""
    client = access.client()
    batch = client.get_batch(batch_id)
    fields = _batch(batch, results=True)
    batch.refresh()
    assert _batch(batch, results=True) == fields
    return fields


def status(access: Access, batch_id: str) -> str:
    client = access.client()
    return str(client.get_batch_status(batch_id).value if NEW else client.get_batch(batch_id).status)


def job_status(access: Access, job_id: str) -> str:
    client = access.client()
    return str(client.get_job_status(job_id).value if NEW else client.get_job(job_id).status)


def read_job(access: Access, job_id: str, *, wait: bool = False) -> Data:
    return _job(access.client().get_job(job_id, wait=wait), results=True)


def jobs_of(access: Access, batch_id: str) -> list[int]:
    """Return the runs of all jobs of a batch, in the client's order."""
    return [job.runs for job in access.client().get_batch(batch_id).ordered_jobs]


def find_batches(access: Access, page: dict[str, int] | None = None, **filters: Any) -> Data:
    found = access.client().get_batches(_filters(BatchFilters, filters), PaginationParams(**(page or {})))
    return {"total": found.total, "offset": found.offset, "ids": [batch.id for batch in found.results]}


def find_jobs(access: Access, page: dict[str, int] | None = None, **filters: Any) -> Data:
    found = access.client().get_jobs(_filters(JobFilters, filters), PaginationParams(**(page or {})))
    return {"total": found.total, "offset": found.offset, "ids": [job.id for job in found.results]}


def cancel(access: Access, batch_id: str) -> Data:
    return _batch(access.client().cancel_batch(batch_id))


def cancel_itself(access: Access, batch_id: str) -> Data:
    batch = access.client().get_batch(batch_id)
    batch.cancel()
    return _batch(batch)


def cancel_many(access: Access, batch_ids: list[str]) -> Data:
    answer = access.client().cancel_batches(batch_ids)
    return {"batches": [batch.id for batch in answer.batches], "errors": _keyed(answer.errors)}


def cancel_job(access: Access, job_id: str) -> Data:
    return _job(access.client().cancel_job(job_id))


def cancel_job_itself(access: Access, job_id: str) -> Data:
    job = access.client().get_job(job_id)
    job.cancel()
    return _job(job)


def cancel_jobs(access: Access, batch_id: str, **filters: Any) -> Data:
    answer = access.client().cancel_jobs(batch_id, _filters(CancelJobFilters, filters))
    return {"jobs": [job.id for job in answer.jobs], "errors": _keyed(answer.errors)}


def rebatch(access: Access, batch_id: str, **filters: Any) -> Data:
    return _batch(access.client().rebatch(batch_id, _filters(RebatchFilters, filters)))


def add(access: Access, batch_id: str, jobs: list[Any]) -> Data:
    return _batch(access.client().add_jobs(batch_id, jobs))


def tag(access: Access, batch_id: str, tags: list[str]) -> Data:
    return _batch(access.client().set_batch_tags(batch_id, tags))


def tag_itself(access: Access, batch_id: str, tags: list[str]) -> Data:
    batch = access.client().get_batch(batch_id)
    batch.set_tags(tags)
    return _batch(batch)


def _own(jobs: list[Any]) -> list[Any]:
    """Return the jobs; the name of a sequence in a job becomes the sequence itself."""
    return [
        job | {"serialized_sequence": sequences.text(job["serialized_sequence"])}
        if "serialized_sequence" in job
        else job
        for job in jobs
    ]


def _filters(kind: Any, given: dict[str, Any]) -> Any:
    words = {"status": _WORDS.get(kind.__name__), "queue_priority": QueuePriority}
    return kind(
        **{name: [words[name](each) for each in value] if words.get(name) else value for name, value in given.items()}
    )


def _keyed(errors: dict[Any, str]) -> dict[str, str]:
    return {str(identity): why for identity, why in errors.items()}


def _batch(batch: Batch, results: bool = False) -> Data:
    """Return all fields of a batch in the client."""
    fields = {name: getattr(batch, name) for name in Batch.model_fields}
    if isinstance(batch.configuration, BaseConfig):
        fields["configuration"] = batch.configuration.to_dict()
    jobs = [_job(job, results) for job in batch.ordered_jobs]
    return {**fields, "sequence_builder": batch.sequence_builder, "jobs": jobs}


def _job(job: Job, results: bool = False) -> Data:
    fields = {name: getattr(job, name) for name in Job.model_fields}
    if not results:
        return fields
    assert job.full_result is None or job.result == job.full_result["counter"]
    return {**fields, "sequence": job.sequence, "result": job.result, "full_result": job.full_result}
