"""Repeated calls: by the client after a cut connection, which count once, or by its user, which count each time."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from uuid import uuid4

import pytest
from tests.compat.clients import Client
from tests.compat.cloud import EMU_FREE, NULL, Cloud
from tests.compat.proxy import Fault, Proxy
from tests.support.waiting import wait_until

pytestmark = pytest.mark.compat

FAULTS = pytest.mark.parametrize("fault", list(Fault))


@pytest.fixture
def proxy(cloud: Cloud) -> Iterator[Proxy]:
    with Proxy(cloud.base) as proxy:
        yield proxy


class Since:
    """Return the batches submitted since then, in order of arrival."""

    def __init__(self, cloud: Cloud, client: Client) -> None:
        self._cloud = cloud
        self._client = client
        self._began = datetime.now(UTC)

    def batches(self, device: str) -> int:
        """Return the number of batches of a device, after a marker that is recorded after all others."""
        marker = self._client.call("batches.create_null", jobs=[], open=True, tags=[str(uuid4())])["id"]
        wait_until(lambda: bool(self._cloud.get("/api/v2/batches", id=marker)))
        found = self._cloud.get("/api/v2/batches", min_created_at=self._began.isoformat(), device_type=device)
        return len([batch for batch in found if batch["id"] != marker])


@pytest.fixture
def since(cloud: Cloud, client: Client) -> Since:
    return Since(cloud, client)


@FAULTS
def test_a_submit_that_is_cut_makes_one_batch(client: Client, proxy: Proxy, since: Since, fault: Fault) -> None:
    proxy.faults.append(fault)
    (counts,) = client.call("backends.emulate_by_default", through={"base": proxy.base})
    assert sum(counts.values()) == 1000
    assert proxy.posts == 2
    assert since.batches(EMU_FREE) == 1


def test_a_submit_that_is_cut_again_and_again_makes_one_batch(client: Client, proxy: Proxy, since: Since) -> None:
    proxy.faults += [Fault.BEFORE_THE_ANSWER, Fault.AT_THE_GATEWAY, Fault.BEFORE_THE_ANSWER]
    client.call("backends.emulate_by_default", through={"base": proxy.base})
    assert proxy.posts == 4
    assert since.batches(EMU_FREE) == 1


@FAULTS
def test_jobs_that_are_added_over_a_cut_connection_are_there_once(client: Client, proxy: Proxy, fault: Fault) -> None:
    proxy.faults += [fault]
    found = client.call("backends.add_over_another_base", base=proxy.base)
    assert proxy.posts == 2
    assert found == {"jobs": 1}


def test_two_equal_calls_make_two_batches(client: Client, proxy: Proxy, since: Since) -> None:
    assert len(set(client.call("batches.create_many", through={"base": proxy.base}, number=2))) == 2
    assert since.batches(NULL) == 2


def test_an_equal_call_after_one_that_was_repeated_makes_another_batch(
    client: Client, proxy: Proxy, since: Since
) -> None:
    proxy.faults.append(Fault.BEFORE_THE_ANSWER)
    for _ in range(2):
        client.call("backends.emulate_by_default", through={"base": proxy.base})
    assert proxy.posts == 3
    assert since.batches(EMU_FREE) == 2


def test_equal_jobs_may_be_added_twice(client: Client) -> None:
    batch = client.call("batches.create_null", jobs=[], open=True)
    added = [client.call("batches.add", batch_id=batch["id"], jobs=[{"runs": 1}])["jobs_count"] for _ in range(2)]
    assert added == [1, 2]
    client.call("batches.close", batch_id=batch["id"])


def test_equal_calls_of_short_scripts_make_a_batch_each(client: Client) -> None:
    ids: list[str] = []
    for number in (1, 30) * 5:  # on one connection each, which is closed after the last response
        ids += client.call("batches.create_many", number=number)
    assert len(set(ids)) == len(ids)
