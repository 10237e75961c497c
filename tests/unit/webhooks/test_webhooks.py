"""The content of webhooks and the feed: types, samples, schemas, and the page that shows them."""

from __future__ import annotations

import hmac
import time
from types import ModuleType
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

import jsonschema
import msgspec
import pytest
from tests.support.docs import DOCS, load_generator

from tweezer.ledger.access.links import SKEW_S, Signer
from tweezer.ledger.config import LINK_MAX_S
from tweezer.model.events import Notice, read_events
from tweezer.model.ids import job_id
from tweezer.model.lifecycle import BATCH_BY_LETTER, JOB_BY_LETTER
from tweezer.model.messages import Fault
from tweezer.model.webhooks import (
    BODY_MAX_BYTES,
    DATA,
    USUAL_TYPES,
    VERSION,
    BatchData,
    Data,
    EventType,
    JobData,
    body,
    describe_event,
    describe_notice,
    envelope,
    fit,
    schema,
    schemas,
    timestamp,
)
from tweezer.settings import ApiSettings, Settings
from tweezer.webhooks.samples import sample

BATCH = UUID("0199f6bd-2f7e-8b1d-9f04-a1b2c3000000")
INTERNAL = {"job.pending", "batch.pending"}

every_type = pytest.mark.parametrize("type_", EventType)


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    return load_generator("draw_webhooks")


def validate(whole: dict[str, Any], text: bytes | str) -> None:
    validator = jsonschema.Draft202012Validator(whole, format_checker=jsonschema.FormatChecker())
    validator.validate(msgspec.json.decode(text))


# -- samples and schemas ---------------------------------------------------------------------------------


def test_the_page_shows_the_samples(generator: ModuleType) -> None:
    page = (DOCS / "reference/webhooks.md").read_text()
    assert generator.drawn(page) == page, "run `python docs/draw_webhooks.py`"


def test_a_page_without_a_place_for_a_sample_is_an_error(generator: ModuleType) -> None:
    page = (DOCS / "reference/webhooks.md").read_text()
    with pytest.raises(ValueError, match="one for each type"):
        generator.drawn(page.replace("<!-- sample: ping -->", ""))


def test_the_schemas_that_are_kept_are_those_of_the_code(generator: ModuleType) -> None:
    kept = DOCS / "reference" / f"webhooks.schema.v{VERSION}.json"
    assert kept.read_text() == generator.document(), "run `python docs/draw_webhooks.py`"


def test_the_schemas_are_schemas() -> None:
    jsonschema.Draft202012Validator.check_schema(schemas())
    assert schemas()["$id"] == f"urn:tweezer:webhooks:v{VERSION}"


def data_type(type_: str) -> type[Data]:
    return DATA[type_.partition(".")[0]]


@every_type
def test_each_sample_matches_its_schema_and_no_other(type_: EventType) -> None:
    it = sample(type_)
    text = envelope(it.type, it.timestamp, it.data)
    validate(schema(type_), text)
    validate(schemas(), text)
    assert isinstance(msgspec.convert(it.data, data_type(type_)), data_type(type_))
    for other in set(EventType) - {type_}:
        with pytest.raises(jsonschema.ValidationError):
            validate(schema(other), text)


@every_type
def test_a_sample_has_all_fields_that_its_schema_knows(type_: EventType) -> None:
    struct = data_type(type_)
    assert set(sample(type_).data) == {field.encode_name for field in msgspec.structs.fields(struct)}


@every_type
def test_fields_of_later_versions_are_not_a_fault(type_: EventType) -> None:
    it = sample(type_)
    validate(
        schema(type_), msgspec.json.encode({"type": type_, "timestamp": it.timestamp, "data": {**it.data, "x": 1}})
    )


def test_only_existing_types_have_a_sample_and_a_schema() -> None:
    for make in (sample, schema):
        with pytest.raises(ValueError, match=r"job\.pending"):
            make("job.pending")


def test_every_transition_has_a_type_or_is_internal() -> None:
    words = [f"0{before}{after}" for before in JOB_BY_LETTER for after in JOB_BY_LETTER]
    words += [f"{before}{after}" for before in BATCH_BY_LETTER for after in BATCH_BY_LETTER]
    types = {event.type for event in read_events(BATCH, 1, 0, " ".join([*words, "NP:1", "RI", "PL"]))}
    assert types - INTERNAL <= set(EventType)
    assert {it for it in EventType if it.startswith(("job.", "batch."))} <= types


def test_the_default_types_are_batches_ends_of_jobs_and_failing_endpoints() -> None:
    assert set(EventType) - USUAL_TYPES == {"job.running", "device.up", "device.down", "device.paused", "ping"}


# -- the feed --------------------------------------------------------------------------------------------


def test_an_event_of_a_job_has_all_its_fields() -> None:
    (event,) = read_events(BATCH, 7, 1_760_780_467_000_001, "3RD")
    it = describe_event(event, "p")
    assert (it.id, it.type, it.timestamp) == (event.id, "job.done", "2025-10-18T09:41:07.000001Z")
    assert it.data == {
        "project_id": "p",
        "batch_id": str(BATCH),
        "job_id": str(job_id(BATCH, 3)),
        "index": 3,
        "status": "DONE",
        "previous_status": "RUNNING",
        "sequence": 7,
    }


def test_the_event_of_a_new_batch_has_its_number_of_jobs() -> None:
    (event,) = read_events(BATCH, 1, 0, "NP:20")
    it = describe_event(event, "p")
    assert it.data == {
        "project_id": "p",
        "batch_id": str(BATCH),
        "status": "PENDING",
        "previous_status": None,
        "sequence": 1,
        "jobs": {"PENDING": 20, "RUNNING": 0, "DONE": 0, "ERROR": 0, "CANCELED": 0},
    }


def test_the_feed_and_the_webhook_of_an_event_agree() -> None:
    for type_, words in (("job.done", "3RD"), ("batch.created", "NP:2")):
        (event,) = read_events(BATCH, 1, 0, words)
        known = {field.name: field.type for field in msgspec.structs.fields(data_type(type_))}
        for name, value in describe_event(event, "p").data.items():
            msgspec.convert(value, known[name])


def test_a_notice_is_sent_unchanged() -> None:
    notice = Notice("n1", "device.down", None, 1, '{"device":"FRESNEL","status":"DOWN","reason":null,"until":null}')
    it = describe_notice(notice)
    assert (it.id, it.type, it.timestamp) == ("n1", "device.down", "1970-01-01T00:00:00.000001Z")
    assert it.data == {"device": "FRESNEL", "status": "DOWN", "reason": None, "until": None}


@pytest.mark.parametrize(
    ("time_us", "text"),
    [
        (0, "1970-01-01T00:00:00.000000Z"),
        (1_760_780_467_999_999, "2025-10-18T09:41:07.999999Z"),
        (4_102_444_800_000_001, "2100-01-01T00:00:00.000001Z"),
    ],
)
def test_times_have_microseconds(time_us: int, text: str) -> None:
    assert timestamp(time_us) == text


# -- bodies ----------------------------------------------------------------------------------------------


def job(**changes: Any) -> JobData:
    return msgspec.convert({**sample("job.error").data, **changes}, JobData)


def batch(**changes: Any) -> BatchData:
    return msgspec.convert({**sample("batch.error").data, **changes}, BatchData)


def test_a_body_names_the_previous_event() -> None:
    it = job()
    whole = msgspec.json.decode(body("job.error", timestamp(0), it, 4))
    assert whole["data"] == msgspec.json.decode(msgspec.json.encode(it)) | {"previous_sequence": 4}


def test_a_body_that_fits_is_unchanged() -> None:
    it = job(errors=[Fault("user", "x" * 15_000)])
    assert fit(it) is it


@pytest.mark.parametrize(("length", "left"), [(30_000, 2000), (2000, 2000), (300, 300)])
def test_messages_are_shortened_before_tags_are_dropped(length: int, left: int) -> None:
    tags = tuple("t" * 100 for _ in range(130))
    it = fit(job(errors=[Fault("user", "x" * length)] * 2, tags=tags))
    assert {len(error.message) for error in it.errors} == {left}
    assert it.tags == tags
    assert all(error.message.endswith("…") == (length > left) for error in it.errors)


def test_as_many_tags_are_kept_as_fit() -> None:
    tags = tuple(f"{number:01000}" for number in range(1000))
    it = fit(batch(tags=tags, name="n" * 100_000))
    assert it.tags == tags[: len(it.tags)]
    assert it.name == "n" * 254 + "…"
    text = body("batch.timed_out", timestamp(0), it, 2**63)
    assert BODY_MAX_BYTES - 1400 < len(text) < BODY_MAX_BYTES


def test_of_very_many_errors_the_first_is_kept() -> None:
    it = fit(batch(errors=[Fault("c" * 5000, "\U0001f52d" * 5000, "f" * 5000)] * 100, tags=()))
    assert len(it.errors) >= 1
    assert len(body("batch.error", timestamp(0), it, None).encode()) < BODY_MAX_BYTES


# -- links -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "base"),
    [
        ({}, "http://127.0.0.1:8000"),
        ({"public_url": "https://t.example.org/q/", "port": 1}, "https://t.example.org/q"),
        ({"host": "0.0.0.0", "port": 80}, "http://127.0.0.1:80"),  # noqa: S104  # nothing listens
        ({"host": "::"}, "http://[::1]:8000"),
        ({"host": "fd00::1"}, "http://[fd00::1]:8000"),
        ({"host": "lab"}, "http://lab:8000"),
    ],
)
def test_links_without_a_request_lead_to_the_public_url_or_to_the_api_itself(given: dict[str, Any], base: str) -> None:
    assert Settings(api=ApiSettings(**given)).public_base() == base


def parts(link: str) -> tuple[str, str, str]:
    issued, expires, signature = parse_qs(urlsplit(link).query).values()
    return issued[0], expires[0], signature[0]


def test_a_link_is_valid_for_its_job_and_its_time_only() -> None:
    signer, batch = Signer([b"secret"], 100), str(BATCH)
    link = signer.link("http://h", batch)
    issued, expires, signature = parts(link.url)
    assert link.url.startswith(f"http://h/api/v1/jobs/{BATCH}/results?")
    assert int(expires) - int(issued) == 100
    assert signer.is_valid(batch, issued, expires, signature)
    assert not signer.is_valid(str(job_id(BATCH, 1)), issued, expires, signature)
    assert not signer.is_valid(batch, issued, str(int(expires) + 1), signature)
    assert not signer.is_valid(batch, str(int(issued) + 1), expires, signature)
    assert not signer.is_valid(batch, "", expires, signature)
    assert not signer.is_valid(batch, issued, expires, f"{signature}é\ud800")
    assert not Signer([b"other"], 100).is_valid(batch, issued, expires, signature)
    assert Signer([b"other", b"secret"], 100).is_valid(batch, issued, expires, signature)
    assert not signer.is_valid(batch, *parts(Signer([b"secret"], -100).link("http://h", batch).url))


@pytest.mark.parametrize(
    ("since_s", "link_s", "valid"),
    [
        (0, LINK_MAX_S, True),
        (0, LINK_MAX_S + 1, False),
        (0, 30 * 365 * 86_400, False),
        (-LINK_MAX_S, LINK_MAX_S + 60, False),
        (SKEW_S - 60, 100, True),
        (SKEW_S + 60, 100, False),
        (30 * 365 * 86_400, 100, False),
    ],
)
def test_even_with_the_key_no_link_is_valid_for_years(since_s: int, link_s: int, valid: bool) -> None:
    forged = Signer([b"secret"], link_s).link("http://h", str(BATCH), int(time.time()) + since_s)
    assert Signer([b"secret"], 100).is_valid(str(BATCH), *parts(forged.url)) == valid


@pytest.mark.parametrize(("link_s", "valid"), [(100, True), (LINK_MAX_S + 60, False)])
def test_a_link_of_an_older_version_is_valid_and_not_for_years(link_s: int, valid: bool) -> None:
    expires = str(int(time.time()) + link_s)
    signature = hmac.digest(b"secret", f"results {BATCH} {expires}".encode(), "sha256").hex()
    assert Signer([b"new", b"secret"], 100).is_valid(str(BATCH), "", expires, signature) == valid


@pytest.mark.parametrize(("issued", "expires"), [("0", "x"), ("x", "99"), ("1", "9" * 5000), ("1e9", "2e9")])
def test_a_signed_link_with_an_invalid_time_is_refused(issued: str, expires: str) -> None:
    signature = hmac.digest(b"secret", f"results {BATCH} {issued} {expires}".encode(), "sha256").hex()
    assert not Signer([b"secret"], 100).is_valid(str(BATCH), issued, expires, signature)
