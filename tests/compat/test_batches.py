"""Batches and jobs through the client itself: the API understands its requests and returns what it needs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.compat.clients import Client, ClientError
from tests.compat.cloud import EMU_FREE, FOREIGN, NULL, PROJECT, SECOND, Cloud, recorded
from tests.support.waiting import wait_until

pytestmark = pytest.mark.compat

NOBODY = "00000000-0000-8000-8000-000000000000"


def statuses(batch: dict[str, Any]) -> list[str]:
    return [job["status"] for job in batch["jobs"]]


# ------------------------------------------------------------------------------------------------ submitting


def test_a_batch_is_submitted_waited_for_and_read(client: Client) -> None:
    jobs = [{"runs": 30}, {"runs": 50}]
    more: dict[str, Any] = {"tags": ["one"], "webhook": "https://hooks.invalid/tweezer"}
    batch = client.call("batches.create", jobs=jobs, device_type=EMU_FREE, wait=True, results=True, **more)
    assert (batch["status"], statuses(batch)) == ("DONE", ["DONE", "DONE"])
    assert [sum(job["result"].values()) for job in batch["jobs"]] == [30, 50]
    assert [len(bits) for job in batch["jobs"] for bits in job["result"]] == [4] * sum(
        len(j["result"]) for j in batch["jobs"]
    )
    assert all(job["full_result"]["serialised_results"] for job in batch["jobs"])
    assert (batch["open"], batch["complete"]) == (False, True)
    assert {name: batch[name] for name in more} == more
    assert (batch["project_id"], batch["device_type"], batch["jobs_count"]) == (PROJECT, EMU_FREE, 2)
    assert client.call("batches.read", batch_id=batch["id"]) == batch
    assert client.call("batches.status", batch_id=batch["id"]) == "DONE"


@pytest.mark.parametrize(("plain", "encoding"), [(False, "gzip"), (True, None)])
def test_bodies_may_be_compressed_with_gzip(client: Client, plain: bool, encoding: str | None) -> None:
    client.call("batches.create_null", through={"plain": plain}, jobs=[{"runs": 1}])
    (posted,) = [request for request in client.requests if request["method"] == "POST"]
    assert (posted["encoding"], posted["status"]) == (encoding, 200)


def test_a_batch_without_a_device_goes_to_the_one_that_its_sequence_names(client: Client) -> None:
    batch = client.call("backends.run_on_the_qpu", job_params=[{"runs": 10, "variables": {"omega": 3.0}}])
    assert batch["status"] == "DONE"


def test_jobs_may_have_their_own_sequences(client: Client) -> None:
    jobs = [{"runs": 10, "serialized_sequence": "rabi"}] * 2
    batch = client.call("batches.create", sequence=None, jobs=jobs, device_type=EMU_FREE, wait=True, results=True)
    assert (batch["status"], batch["sequence_builder"]) == ("DONE", None)
    assert all("rydberg_global" in job["sequence"] for job in batch["jobs"])
    assert [sum(job["result"].values()) for job in batch["jobs"]] == [10, 10]


def test_replaced_field_names_still_work(client: Client) -> None:
    batch = client.call("batches.create_the_older_way", jobs=[{"runs": 10}])
    assert (batch["status"], batch["open"], batch["device_type"]) == ("DONE", False, EMU_FREE)
    assert batch["keyed"] == [batch["jobs"][0]["id"]]
    assert batch["configuration"]["strict_validation"] is False


def test_an_open_batch_is_filled_and_closed(client: Client) -> None:
    opened, once, twice, repeated, closed = client.call("batches.fill_an_open_batch")
    assert [len(step["jobs"]) for step in (opened, once, twice, repeated, closed)] == [0, 1, 2, 3, 3]
    assert [step["open"] for step in (opened, once, twice, repeated, closed)] == [True] * 4 + [False]
    assert (closed["status"], statuses(closed)) == ("DONE", ["DONE"] * 3)
    assert [job["variables"]["omega"] for job in closed["jobs"]] == [1.0, 2.0, 1.0]
    assert [sum(job["result"].values()) for job in closed["jobs"]] == [5, 7, 5]


def test_a_batch_can_be_closed_in_every_way(client: Client) -> None:
    one, other = (client.call("batches.create_null", jobs=[], open=True)["id"] for _ in range(2))
    assert client.call("batches.close", batch_id=one)["open"] is False
    assert [answer["open"] for answer in client.call("batches.close_the_older_way", batch_id=other)] == [False, False]


def test_all_jobs_of_a_large_batch_are_listed_in_order(client: Client) -> None:
    runs = list(range(1, 251))
    batch = client.call("batches.create_null", jobs=[{"runs": each} for each in runs], wait=True)
    assert [job["runs"] for job in batch["jobs"]] == runs
    assert client.call("batches.jobs_of", batch_id=batch["id"]) == runs
    assert len(client.paths(ending="/api/v2/jobs")) == 3


# --------------------------------------------------------------------------------------------------- waiting


def test_a_wait_ends_with_the_batch_and_not_some_seconds_later(client_a: Client) -> None:
    jobs = [{"runs": 1, "variables": {"sleep_s": 2.5}}]
    batch = client_a.call("batches.create_null", jobs=jobs, wait=True)
    assert batch["status"] == "DONE"
    assert len(client_a.paths(ending="/status")) == 1
    assert client_a.took_s < 3.5  # polling at 0, 2 and 6 s would take 6 s


def test_a_job_is_waited_for_in_the_same_way(client_a: Client) -> None:
    batch = client_a.call("batches.create_null", jobs=[{"runs": 1, "variables": {"sleep_s": 2.5}}])
    job = client_a.call("batches.read_job", job_id=batch["jobs"][0]["id"], wait=True)
    assert (job["status"], job["result"]) == ("DONE", {"0": 1})
    assert len(client_a.paths(ending="/status")) == 1
    assert client_a.took_s < 3.5
    assert client_a.call("batches.job_status", job_id=job["id"]) == "DONE"


# ------------------------------------------------------------------------------------------------- cancelling


def test_batches_are_cancelled_one_by_one_and_together(client: Client) -> None:
    ids = [client.call("batches.create_null", jobs=[], open=True)["id"] for _ in range(4)]
    assert client.call("batches.cancel", batch_id=ids[0])["status"] == "CANCELED"
    assert client.call("batches.cancel_itself", batch_id=ids[1])["status"] == "CANCELED"
    answer = client.call("batches.cancel_many", batch_ids=[*ids[1:], NOBODY])
    assert sorted(answer["batches"]) == sorted(ids[2:])
    assert set(answer["errors"]) == {ids[1], NOBODY}
    assert all(answer["errors"].values())


def test_jobs_are_cancelled_one_by_one_and_by_filter(client: Client) -> None:
    sleeping = [{"runs": runs, "variables": {"sleep_s": 60}} for runs in (1, 2, 3, 4, 5)]
    batch = client.call("batches.create_null", jobs=sleeping, open=True)
    ids = [job["id"] for job in batch["jobs"]]
    client.call("batches.cancel_job", job_id=ids[0])
    client.call("batches.cancel_job_itself", job_id=ids[1])
    assert client.call("batches.cancel_jobs", batch_id=batch["id"], min_runs=3, max_runs=4) == {
        "jobs": ids[2:4],
        "errors": {},
    }
    client.call("batches.cancel_jobs", batch_id=batch["id"], id=ids[4])
    wait_until(lambda: client.call("batches.read", batch_id=batch["id"])["jobs_count_per_status"]["CANCELED"] == 5)
    again = client.call("batches.cancel_jobs", batch_id=batch["id"], id=ids[4])
    assert (again["jobs"], list(again["errors"])) == ([], [ids[4]])


# ------------------------------------------------------------------------------------------ repeats and tags


def test_the_jobs_of_a_batch_are_repeated_in_a_new_one(client: Client) -> None:
    failing = {"runs": 2, "variables": {"fail": "it broke"}}
    batch = client.call("batches.create_null", jobs=[{"runs": 1}, failing, {"runs": 3}], wait=True)
    assert statuses(batch) == ["DONE", "ERROR", "DONE"]
    assert "it broke" in batch["jobs"][1]["errors"][0]
    every, failed, long = (
        client.call("batches.rebatch", batch_id=batch["id"], **filters)
        for filters in ({}, {"status": ["ERROR"]}, {"min_runs": 3})
    )
    assert [[job["runs"] for job in new["jobs"]] for new in (every, failed, long)] == [[1, 2, 3], [2], [3]]
    assert {new["parent_id"] for new in (every, failed, long)} == {batch["id"]}
    assert failed["jobs"][0]["parent_id"] == batch["jobs"][1]["id"]
    assert failed["jobs"][0]["variables"] == failing["variables"]


def test_tags_are_replaced(client: Client, cloud: Cloud) -> None:
    batch = client.call("batches.create_null", jobs=[{"runs": 1}], tags=["old"])
    assert client.call("batches.tag", batch_id=batch["id"], tags=["new", "newer"])["tags"] == ["new", "newer"]
    assert client.call("batches.tag_itself", batch_id=batch["id"], tags=["newest"])["tags"] == ["newest"]
    recorded(cloud, [batch["id"]], tag="newest")
    assert client.call("batches.find_batches", id=batch["id"], tag="old")["total"] == 0


# -------------------------------------------------------------------------------------------------- searching


def test_batches_are_found_by_every_filter(client: Client, cloud: Cloud) -> None:
    batch = client.call("batches.create_null", jobs=[{"runs": 1}], tags=["mine"], wait=True)
    other = client.call("batches.create_null", jobs=[], open=True, tags=["mine"])
    both = sorted((batch["id"], other["id"]))
    recorded(cloud, [batch["id"]], status="DONE")
    recorded(cloud, both)
    now = datetime.now(UTC)
    for filters, found in (
        ({"project_id": PROJECT}, both),
        ({"project_id": SECOND}, []),
        ({"user_id": batch["user_id"]}, both),
        ({"user_id": "somebody"}, []),
        ({"device_type": NULL}, both),
        ({"device_type": [EMU_FREE]}, []),
        ({"status": ["DONE"]}, [batch["id"]]),
        ({"status": ["PENDING", "RUNNING"]}, [other["id"]]),
        ({"open": True}, [other["id"]]),
        ({"open": False}, [batch["id"]]),
        ({"tag": "mine"}, both),
        ({"tag": "yours"}, []),
        ({"queue_priority": ["MEDIUM"]}, both),
        ({"queue_priority": ["HIGH", "LOW"]}, []),
        ({"start_date": (now - timedelta(hours=1)).isoformat()}, [batch["id"]]),
        ({"start_date": (now + timedelta(hours=1)).isoformat()}, []),
        ({"end_date": (now + timedelta(hours=1)).replace(tzinfo=None).isoformat()}, [batch["id"]]),
    ):
        answer = client.call("batches.find_batches", id=both, **filters)
        assert (sorted(answer["ids"]), answer["total"]) == (sorted(found), len(found)), filters


def test_jobs_are_found_by_every_filter(client: Client, cloud: Cloud) -> None:
    failing = {"runs": 20, "variables": {"fail": "it broke"}}
    batch = client.call("batches.create_null", jobs=[{"runs": 10}, failing], wait=True)
    good, bad = (job["id"] for job in batch["jobs"])
    recorded(cloud, [batch["id"]], status="DONE")
    now = datetime.now(UTC)
    for filters, found in (
        ({"batch_id": batch["id"]}, [bad, good]),
        ({"id": [good, bad]}, [bad, good]),
        ({"id": good}, [good]),
        ({"status": ["ERROR"]}, [bad]),
        ({"status": ["DONE", "CANCELED"]}, [good]),
        ({"errors": True}, [bad]),
        ({"errors": False}, [good]),
        ({"min_runs": 11}, [bad]),
        ({"max_runs": 11}, [good]),
        ({"project_id": PROJECT, "user_id": batch["user_id"]}, [bad, good]),
        ({"project_id": FOREIGN}, []),
        ({"start_date": (now - timedelta(hours=1)).isoformat()}, [bad, good]),
        ({"end_date": (now - timedelta(hours=1)).isoformat()}, []),
    ):
        answer = client.call("batches.find_jobs", **({"id": [good, bad]} | filters))
        assert (answer["ids"], answer["total"]) == (found, len(found)), filters


def test_more_batches_than_a_page_holds_are_found_page_by_page(client: Client, cloud: Cloud) -> None:
    ids = client.call("batches.create_many", number=130)
    recorded(cloud, ids)
    newest = client.call("batches.find_batches", id=ids)
    assert (newest["total"], newest["ids"]) == (130, ids[:29:-1])
    rest = client.call("batches.find_batches", id=ids, page={"offset": 100, "limit": 100})
    assert (rest["total"], rest["offset"], rest["ids"]) == (130, 100, ids[29::-1])
    few = client.call("batches.find_batches", id=ids, page={"offset": 7, "limit": 3})
    assert few["ids"] == ids[::-1][7:10]


def test_more_jobs_than_a_page_holds_are_found_page_by_page(client: Client) -> None:
    batch = client.call("batches.create_null", jobs=[{"runs": 1}] * 130)
    first = client.call("batches.find_jobs", batch_id=batch["id"])
    rest = client.call("batches.find_jobs", batch_id=batch["id"], page={"offset": 100})
    assert (first["total"], rest["total"], len(first["ids"]), len(rest["ids"])) == (130, 130, 100, 30)
    assert sorted(first["ids"] + rest["ids"]) == sorted(job["id"] for job in batch["jobs"])


# ---------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("function", "arguments", "kind", "says"),
    [
        (
            "create",
            {"sequence": "sweep", "jobs": [{"runs": 1, "variables": {}}], "device_type": EMU_FREE},
            "BatchCreationError",
            "Batch creation failed: 400: jobs[0].variables.omega: is missing; the sequence declares this variable",
        ),
        (
            "create",
            {"sequence": "sweep", "jobs": [{"runs": 1, "variables": {"omega": "x"}}], "device_type": EMU_FREE},
            "BatchCreationError",
            "Batch creation failed: 400: jobs[0].variables.omega: expected",
        ),
        (
            "create",
            {"jobs": [{"runs": 0}], "device_type": EMU_FREE},
            "BatchCreationError",
            "Batch creation failed: 400: jobs[0].runs: expected a whole number from 1",
        ),
        (
            "create",
            {"jobs": [{"runs": 1}], "device_type": "EMU_NONE"},
            "BatchCreationError",
            "Batch creation failed: 400: device_type: there is no device 'EMU_NONE' (did you mean EMU_",
        ),
        ("close", {"batch_id": NOBODY}, "BatchClosingError", "Unable to close batch.: 404: there is no batch"),
        ("read", {"batch_id": NOBODY}, "BatchFetchingError", "Batch fetching failed: 404: there is no batch"),
        ("cancel", {"batch_id": NOBODY}, "BatchCancellingError", "Batch cancelling failed: 404: there is no batch"),
        ("rebatch", {"batch_id": NOBODY}, "RebatchError", "Batch retry failed: 404: there is no batch"),
        ("tag", {"batch_id": NOBODY, "tags": []}, "BatchSetTagsError", "Setting Batch tags failed: 404: there is"),
        ("read_job", {"job_id": NOBODY}, "JobFetchingError", "Job fetching failed: 404: there is no job"),
        ("cancel_job", {"job_id": NOBODY}, "JobCancellingError", "Job cancelling failed: 404: there is no job"),
        ("cancel_jobs", {"batch_id": NOBODY}, "JobCancellingError", "Job cancelling failed: 404: there is no batch"),
        ("add", {"batch_id": NOBODY, "jobs": [{"runs": 1}]}, "JobCreationError", "Job creation failed: 404: there is"),
        ("read", {"batch_id": "nonsense"}, "BatchFetchingError", "Batch fetching failed: 422: batch_id: "),
    ],
)
def test_an_error_is_a_sentence(client: Client, function: str, arguments: Any, kind: str, says: str) -> None:
    with pytest.raises(ClientError) as caught:
        client.call(f"batches.{function}", **arguments)
    assert caught.value.kind == kind
    assert caught.value.sentence.startswith(says)


def test_the_error_of_an_invalid_added_job_names_the_job_and_the_field(client: Client) -> None:
    batch = client.call("batches.create", sequence="sweep", jobs=[], open=True, device_type=EMU_FREE)
    with pytest.raises(ClientError) as caught:
        client.call("batches.add", batch_id=batch["id"], jobs=[{"runs": 1}])
    assert caught.value.sentence.startswith("Job creation failed: 400: jobs[0].variables.omega: is missing")
    client.call("batches.close", batch_id=batch["id"])
    with pytest.raises(ClientError) as caught:
        client.call("batches.add", batch_id=batch["id"], jobs=[{"runs": 1, "variables": {"omega": 1.0}}])
    assert caught.value.sentence.startswith("Job creation failed: 409: ")


def test_a_failed_job_has_a_reason(client: Client) -> None:
    batch = client.call("batches.create_null", jobs=[{"runs": 1, "variables": {"fail": "the laser is off"}}], wait=True)
    assert (batch["status"], statuses(batch)) == ("DONE", ["ERROR"])
    assert "the laser is off" in batch["jobs"][0]["errors"][0]
    read = client.call("batches.read", batch_id=batch["id"])
    assert (read["jobs"][0]["full_result"], read["jobs"][0]["result"]) == (None, None)


def test_batches_of_other_projects_are_not_found(client: Client, cloud: Cloud) -> None:
    batch = client.call("batches.create_null", jobs=[], open=True)
    stranger = {"key": cloud.foreign_key, "project": FOREIGN}
    for function in ("read", "close", "cancel", "rebatch"):
        with pytest.raises(ClientError) as caught:
            client.call(f"batches.{function}", through=stranger, batch_id=batch["id"])
        assert f"404: there is no batch {batch['id']}" in caught.value.sentence
    assert client.call("batches.find_batches", through=stranger, id=batch["id"])["total"] == 0
    with pytest.raises(ClientError, match="403: project_id: is not a project of this key"):
        client.call("batches.create_null", through={"key": cloud.foreign_key}, jobs=[{"runs": 1}])
