"""Endpoints of webhooks in the ledger, and the log of deliveries."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest
from sqlalchemy import update

from tweezer.ledger.access.projects import create_project, find_project
from tweezer.ledger.database import Database
from tweezer.ledger.schema import deliveries, endpoints, now_ms
from tweezer.model.addresses import WebhookPolicy
from tweezer.model.errors import Conflict, InvalidInput, NotFound
from tweezer.model.webhooks import USUAL_TYPES
from tweezer.webhooks.deliveries import (
    DELIVERED,
    EXHAUSTED,
    PENDING,
    Attempt,
    AttemptOutcome,
    Deliveries,
    NewDelivery,
    delete_old_deliveries,
    write_log,
)
from tweezer.webhooks.deliveries import delivery_id as id_of
from tweezer.webhooks.delivery_log import (
    DeliveryFilter,
    DeliveryStatus,
    find_delivery,
    list_deliveries,
    ping,
    resend,
    resend_since,
)
from tweezer.webhooks.endpoints import (
    ENDPOINTS_MAX,
    URL_MAX,
    Endpoint,
    EndpointKind,
    change_endpoint,
    count_endpoints,
    create_endpoint,
    delete_endpoint,
    disable_endpoint,
    enable_endpoint,
    ensure_batch_endpoints,
    find_endpoint,
    list_endpoints,
    list_registered,
    note_failure,
    note_success,
)

PUBLIC = WebhookPolicy()
URL = "https://hooks.example.org/tweezer?key=1"
EARLIER = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _projects(database: Database) -> None:
    with database.write() as connection:
        create_project(connection, "Ours", "ours")
        create_project(connection, "Theirs", "theirs")


def new(database: Database, project: str = "ours", **given: Any) -> Endpoint:
    with database.write() as connection:
        return create_endpoint(connection, PUBLIC, **{"project_id": project, "url": URL, **given})


def call(database: Database, function: Any, *arguments: Any, **options: Any) -> Any:
    with database.write() as connection:
        return function(connection, *arguments, **options)


def deliver(database: Database, endpoint: Endpoint, *events: str, type_: str = "job.done", **given: Any) -> list[UUID]:
    """Write due deliveries, as a courier does."""
    rows = [
        NewDelivery(
            id=id_of(endpoint.id, event),
            endpoint=endpoint.id,
            project=endpoint.project_no,
            batch=given.get("batch"),
            sequence=given.get("sequence"),
            event=event,
            type=type_,
            body=f'{{"event":"{event}"}}',
            due_ms=now_ms(),
        )
        for event in events
    ]
    Deliveries(database, "test").write(rows, None)
    return [row.id for row in rows]


def end(database: Database, identity: UUID, status: str, code: int = 204) -> None:
    attempt = Attempt(1, now_ms(), code, 12, None, "", None)
    Deliveries(database, "test").record([AttemptOutcome(identity, status, 1, write_log([attempt]), None)])


# --- endpoints


def test_an_endpoint_is_made_found_and_listed(database: Database) -> None:
    made = new(database, types=["job.done", "batch.done", "job.done"], description="the lab's")
    assert (made.kind, made.project, made.url, made.description) == ("project", "ours", URL, "the lab's")
    assert made.types == ("batch.done", "job.done")
    assert made.subscribed == {"batch.done", "job.done"}
    assert (made.failing, made.disabled, made.disabled_why) == (None, None, None)
    other = new(database, "theirs")
    assert other.subscribed == USUAL_TYPES
    assert call(database, find_endpoint, made.id) == made
    assert call(database, list_endpoints, {"ours"}) == [made]
    assert {it.id for it in call(database, list_endpoints)} == {made.id, other.id}
    assert call(database, list_endpoints, limit=1, offset=1)[0] in (made, other)
    assert call(database, count_endpoints) == 2
    assert call(database, list_endpoints, set()) == []


def test_an_endpoint_of_another_project_is_not_found(database: Database) -> None:
    made = new(database)
    with pytest.raises(NotFound, match=f"no endpoint {made.id}"):
        call(database, find_endpoint, made.id, {"theirs"})
    for function in (find_endpoint, delete_endpoint, enable_endpoint):
        with pytest.raises(NotFound, match="no endpoint"):
            call(database, function, uuid4())
    with pytest.raises(NotFound):
        call(database, disable_endpoint, uuid4(), "why")


@pytest.mark.parametrize(
    ("field", "given"),
    [
        ("url", {"url": "http://hooks.example.org"}),
        ("url", {"url": "https://10.0.0.1/"}),
        ("url", {"url": ""}),
        ("url", {"url": "https://hooks.example.org/" + "a" * URL_MAX}),
        ("types", {"types": ["job.finished"]}),
        ("types", {"types": ["ping"]}),
        ("description", {"description": "a" * 201}),
        ("description", {"description": "\0"}),
    ],
)
def test_the_error_of_an_invalid_endpoint_names_its_field(
    database: Database, field: str, given: dict[str, Any]
) -> None:
    with pytest.raises(InvalidInput) as refused:
        new(database, **given)
    assert refused.value.field == field
    made = new(database)
    with pytest.raises(InvalidInput) as refused:
        call(database, change_endpoint, PUBLIC, made.id, **given)
    assert refused.value.field == field
    assert call(database, list_endpoints) == [made]


def test_a_policy_allows_endpoints_in_an_operators_network(database: Database) -> None:
    policy = WebhookPolicy.parse("10.0.0.0/8", "443")
    with database.write() as connection:
        made = create_endpoint(connection, policy, project_id="ours", url="http://10.0.0.1:99/")
    assert made.url == "http://10.0.0.1:99/"


def test_the_number_of_endpoints_of_a_project_is_limited(database: Database) -> None:
    for _ in range(ENDPOINTS_MAX):
        new(database)
    with pytest.raises(Conflict, match="delete one first"):
        new(database)
    new(database, "theirs")
    ours = find_project_no(database, "ours")
    call(database, ensure_batch_endpoints, [(ours, URL)])  # not counted


def find_project_no(database: Database, project: str) -> int:
    with database.read() as connection:
        return find_project(connection, project).no


def test_only_the_given_fields_are_changed(database: Database) -> None:
    made = new(database, types=["job.done"], description="x")
    changed = call(database, change_endpoint, PUBLIC, made.id, url="https://example.com/")
    assert changed == msgspec.structs.replace(made, url="https://example.com/")
    assert call(database, change_endpoint, PUBLIC, made.id, types=[]).types == ()
    assert call(database, change_endpoint, PUBLIC, made.id, description="").description == ""
    assert call(database, change_endpoint, PUBLIC, made.id).url == "https://example.com/"


def test_disabling_counts_once_and_enabling_forgets_the_failures(database: Database) -> None:
    made = new(database)
    call(database, note_failure, made.id, now_ms())
    disabled = call(database, disable_endpoint, made.id, "the receiver responded with 410 Gone" + "." * 300)
    assert disabled.disabled is not None
    assert disabled.disabled_why.startswith("the receiver responded with 410 Gone")
    assert call(database, disable_endpoint, made.id, "another reason") is None
    assert call(database, find_endpoint, made.id) == disabled
    assert call(database, enable_endpoint, made.id) == made
    assert call(database, enable_endpoint, made.id) == made


def test_pending_deliveries_are_held_when_their_endpoint_is_disabled(database: Database) -> None:
    made, other = new(database), new(database)
    waiting, delivered = deliver(database, made, "e1", "e2")
    end(database, delivered, DELIVERED)
    (elsewhere,) = deliver(database, other, "e1")
    call(database, disable_endpoint, made.id, "by hand")
    stands = {it.id: (it.status, it.due is None) for it in call(database, list_deliveries).rows}
    assert stands == {waiting: ("held", True), delivered: ("delivered", True), elsewhere: ("pending", False)}


def test_an_endpoint_is_removed_with_its_deliveries(database: Database) -> None:
    made = new(database)
    deliver(database, made, "e1")
    call(database, delete_endpoint, made.id)
    assert call(database, list_endpoints) == []
    assert call(database, list_deliveries).rows == []


def test_failures_are_noted_from_the_first_until_a_success(database: Database) -> None:
    made, other = new(database), new(database)
    assert call(database, note_failure, made.id, 1_000) == 1_000
    assert call(database, note_failure, made.id, 2_000) == 1_000
    assert call(database, note_failure, uuid4(), 3_000) == 3_000  # it was removed meanwhile
    assert call(database, find_endpoint, made.id).failing == datetime.fromtimestamp(1, UTC)
    call(database, note_success, [made.id, other.id])
    assert call(database, find_endpoint, made.id).failing is None


def test_the_webhooks_of_batches_are_separate_endpoints(database: Database) -> None:
    ours, theirs = find_project_no(database, "ours"), find_project_no(database, "theirs")
    registered = new(database)
    first = call(database, ensure_batch_endpoints, [(ours, URL), (theirs, URL)])
    again = call(database, ensure_batch_endpoints, [(ours, URL), (ours, "http://not.checked/"), (999, URL)])
    assert set(first) == {(ours, URL), (theirs, URL)}
    assert set(again) == {(ours, URL), (ours, "http://not.checked/")}
    assert again[ours, URL] == first[ours, URL]
    assert (again[ours, URL].kind, again[ours, URL].subscribed) == (EndpointKind.BATCH, USUAL_TYPES)
    assert call(database, list_registered) == [registered]
    assert [it.kind for it in call(database, list_endpoints, {"ours"})] == ["project", "batch", "batch"]
    with pytest.raises(Conflict, match="cannot be changed"):
        call(database, change_endpoint, PUBLIC, again[ours, URL].id, url="https://example.com/")


def test_very_many_webhooks_of_batches_are_found_quickly(database: Database) -> None:
    ours = find_project_no(database, "ours")
    wanted = [(ours, f"{URL}&batch={number}") for number in range(1_200)]
    assert set(call(database, ensure_batch_endpoints, wanted)) == set(wanted)
    assert set(call(database, ensure_batch_endpoints, wanted)) == set(wanted)


# --- what couriers note, and what is forgotten


def test_a_late_report_of_a_failure_does_not_undo_a_delivery(database: Database) -> None:
    (identity,) = deliver(database, new(database), "e:1")
    end(database, identity, DELIVERED)
    late = write_log([Attempt(1, now_ms(), None, 15_000, "no response within 15 s", "", now_ms())])
    Deliveries(database, "test").record([AttemptOutcome(identity, PENDING, 1, late, now_ms())])
    found = call(database, find_delivery, identity)
    assert (found.status, found.due) == (DeliveryStatus.DELIVERED, None)
    assert [attempt.status for attempt in found.log] == [204]


def test_a_delivery_that_is_sent_again_may_fail(database: Database) -> None:
    (identity,) = deliver(database, new(database), "e:1")
    end(database, identity, DELIVERED)
    call(database, resend, identity)
    end(database, identity, EXHAUSTED, code=500)
    assert call(database, find_delivery, identity).status is DeliveryStatus.EXHAUSTED


def age(database: Database, days: int) -> None:
    """Make all endpoints and deliveries older by this much."""
    with database.write() as connection:
        for table in (endpoints, deliveries):
            connection.execute(update(table).values(created_ms=table.c.created_ms - days * 86_400_000))


def test_only_finished_deliveries_are_forgotten_after_a_time(database: Database) -> None:
    pending, delivered, exhausted = deliver(database, new(database), "e:1", "e:2", "e:3")
    end(database, delivered, DELIVERED)
    end(database, exhausted, EXHAUSTED)
    age(database, days=2)
    assert delete_old_deliveries(database, kept_s=3 * 86_400) == 0
    assert delete_old_deliveries(database, kept_s=0) == 0
    assert delete_old_deliveries(database, kept_s=86_400) == 2
    assert [it.id for it in call(database, list_deliveries).rows] == [pending]


@pytest.mark.parametrize("kept_s", [0, 3600, 86_400])
def test_the_webhooks_of_batches_are_forgotten_with_their_last_delivery(database: Database, kept_s: int) -> None:
    ours = find_project_no(database, "ours")
    registered = new(database)
    used, unused, disabled = (f"{URL}&{what}" for what in ("used", "unused", "disabled"))
    made = call(database, ensure_batch_endpoints, [(ours, used), (ours, unused), (ours, disabled)])
    deliver(database, made[ours, used], "e:1")
    call(database, disable_endpoint, made[ours, disabled].id, "by hand")
    delete_old_deliveries(database, kept_s=kept_s)
    assert len(call(database, list_endpoints)) == 4  # a courier may be about to write the first delivery of a new one
    age(database, days=2)
    delete_old_deliveries(database, kept_s=kept_s)
    assert {it.url for it in call(database, list_endpoints)} == {registered.url, used, disabled}


# --- the log


def test_deliveries_are_listed_newest_first_in_pages(database: Database) -> None:
    made = new(database)
    ids = deliver(database, made, *(f"e{number}" for number in range(7)))
    found, after = [], None
    for expected in (3, 3, 1):
        page = call(database, list_deliveries, {"ours"}, limit=3, after=after)
        assert len(page.rows) == expected
        found += [it.id for it in page.rows]
        assert {it.body for it in page.rows} == {None}
        after = page.after
    assert after is None
    assert sorted(found) == sorted(ids)
    times = [it.created for it in call(database, list_deliveries).rows]
    assert times == sorted(times, reverse=True)
    with pytest.raises(InvalidInput) as refused:
        call(database, list_deliveries, after="nonsense")
    assert refused.value.field == "after"


def test_deliveries_are_found_by_what_they_are(database: Database) -> None:
    made, other, batch = new(database), new(database, "theirs"), uuid4()
    a, b = (
        deliver(database, made, "e1", batch=batch, sequence=4)[0],
        deliver(database, made, "e2", type_="job.error")[0],
    )
    c = deliver(database, other, "e1")[0]
    end(database, b, EXHAUSTED, 500)

    def found(projects: set[str] | None = None, **given: Any) -> set[UUID]:
        return {it.id for it in call(database, list_deliveries, projects, DeliveryFilter(**given)).rows}

    assert found() == {a, b, c}
    assert found({"ours"}) == found(endpoint=made.id) == {a, b}
    assert found({"theirs"}, endpoint=made.id) == set()
    assert found(batch=batch) == {a}
    assert found(status=DeliveryStatus.EXHAUSTED) == found(type="job.error") == {b}
    assert found(since=datetime.now(UTC) - timedelta(hours=1)) == {a, b, c}
    assert found(since=datetime.now(UTC) + timedelta(hours=1)) == set()


def test_a_delivery_is_shown_with_its_body_and_every_attempt(database: Database) -> None:
    made, batch = new(database), uuid4()
    (identity,) = deliver(database, made, "e1", batch=batch, sequence=9)
    end(database, identity, EXHAUSTED, 500)
    found = call(database, find_delivery, identity, {"ours"})
    assert found.body == '{"event":"e1"}'
    assert (found.event, found.batch, found.sequence, found.project) == ("e1", batch, 9, "ours")
    assert (found.status, found.due) == ("exhausted", None)
    assert [(it.number, it.status, it.ms) for it in found.log] == [(1, 500, 12)]
    for identity_, projects in ((identity, {"theirs"}), (uuid4(), None)):
        with pytest.raises(NotFound, match="no delivery"):
            call(database, find_delivery, identity_, projects)


def test_a_delivery_that_is_sent_again_keeps_its_log(database: Database) -> None:
    made = new(database)
    (identity,) = deliver(database, made, "e1")
    end(database, identity, DELIVERED)
    again = call(database, resend, identity)
    assert (again.status, again.attempts, len(again.log)) == ("pending", 0, 1)
    assert again.due <= datetime.now(UTC)
    claimed = Deliveries(database, "test").claim(made.id, most=10, until_ms=now_ms() + 1000)
    assert [it.id for it in claimed] == [identity]
    with pytest.raises(NotFound):
        call(database, resend, uuid4())


def test_undelivered_or_all_deliveries_since_a_time_are_sent_again(database: Database) -> None:
    made, other = new(database), new(database)
    delivered, exhausted, waiting = deliver(database, made, "e1", "e2", "e3")
    end(database, delivered, DELIVERED)
    end(database, exhausted, EXHAUSTED)
    pinged = call(database, ping, made)
    end(database, pinged, EXHAUSTED)
    (elsewhere,) = deliver(database, other, "e1")
    end(database, elsewhere, EXHAUSTED)
    assert call(database, resend_since, made.id, datetime.now(UTC) + timedelta(hours=1)) == 0
    assert call(database, resend_since, made.id, EARLIER) == 2
    stands = {it.id: it.status for it in call(database, list_deliveries).rows}
    assert (stands[exhausted], stands[waiting], stands[delivered]) == ("pending", "pending", "delivered")
    assert (stands[pinged], stands[elsewhere]) == ("exhausted", "exhausted")
    assert call(database, resend_since, made.id, EARLIER, all=True) == 3


def test_held_deliveries_can_be_sent_again_once_their_endpoint_is_enabled(database: Database) -> None:
    made = new(database)
    (identity,) = deliver(database, made, "e1")
    call(database, disable_endpoint, made.id, "by hand")
    for refused in ((resend, identity), (resend_since, made.id, EARLIER), (ping, made)):
        with pytest.raises(Conflict, match=r"is disabled \(by hand\); enable it first"):
            call(database, *refused)
    call(database, enable_endpoint, made.id)
    assert call(database, find_delivery, identity).status is DeliveryStatus.HELD
    assert call(database, resend_since, made.id, EARLIER) == 1
    assert call(database, find_delivery, identity).status is DeliveryStatus.PENDING


def test_a_ping_is_a_delivery_that_is_due_at_once(database: Database) -> None:
    made = new(database, types=["job.done"])
    identity = call(database, ping, made)
    found = call(database, find_delivery, identity)
    body = msgspec.json.decode(found.body)
    assert (found.type, body["type"], body["data"]) == ("ping", "ping", {"endpoint_id": str(made.id)})
    assert "." not in found.event  # the separator in the signed text
    assert call(database, ping, made) != identity
    claimed = Deliveries(database, "test").claim(made.id, most=10, until_ms=now_ms() + 1000)
    assert {it.type for it in claimed} == {"ping"}
    gone = msgspec.structs.replace(made, id=uuid4())
    with pytest.raises(NotFound):
        call(database, ping, gone)
