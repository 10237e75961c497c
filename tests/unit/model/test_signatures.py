"""Signatures of webhooks: ours are verified by the public library, and the other way round."""

from __future__ import annotations

import base64
import builtins
import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import standardwebhooks
from hypothesis import given
from hypothesis import strategies as st

import tweezer
from tweezer.model.errors import InvalidInput
from tweezer.model.signatures import (
    Algorithm,
    SigningSecret,
    WebhookInvalid,
    check_secret,
    new_private_key,
    new_secret,
    public_key,
    sign,
    signed_headers,
    verify_webhook,
)

NOW = datetime.now(UTC).replace(microsecond=0)
SECONDS = int(NOW.timestamp())


@pytest.fixture(autouse=True)
def _it_is_now() -> None:
    """Other tests may have run for half an hour since the import of this file."""
    global NOW, SECONDS  # noqa: PLW0603
    NOW = datetime.now(UTC).replace(microsecond=0)
    SECONDS = int(NOW.timestamp())


SECRET, FORMER, FOREIGN = new_secret(), new_secret(), new_secret()
BODY = b'{"type":"job.done","timestamp":"2026-05-01T10:00:00.000Z","data":{"job_id":"x","\xc3\xa4":1}}'


def headers_of(*secrets: str, seconds: int | None = None, body: bytes = BODY) -> dict[str, str]:
    seconds = SECONDS if seconds is None else seconds
    given = [
        SigningSecret(it, Algorithm.ED25519 if it.startswith("whsk_") else Algorithm.HMAC_SHA256) for it in secrets
    ]
    return signed_headers(given, "evt_1", seconds, body)


def code_of(call: Callable[[], object]) -> str:
    with pytest.raises(WebhookInvalid) as caught:
        call()
    assert isinstance(caught.value, tweezer.TweezerError)
    return caught.value.code


def test_a_webhook_is_verified_and_read() -> None:
    webhook = tweezer.verify_webhook(BODY, headers_of(SECRET), SECRET)
    assert webhook.id == "evt_1"
    assert webhook.type == "job.done"
    assert webhook.timestamp == datetime(2026, 5, 1, 10, tzinfo=UTC)
    assert webhook.data == {"job_id": "x", "ä": 1}
    assert verify_webhook(BODY.decode(), headers_of(SECRET), [SECRET]) == webhook


def test_the_public_library_verifies_our_webhooks() -> None:
    assert standardwebhooks.Webhook(SECRET).verify(BODY, headers_of(SECRET)) == json.loads(BODY)


def test_the_public_library_accepts_one_of_several_signatures() -> None:
    headers = headers_of(new_private_key(), FOREIGN, SECRET, FORMER)
    assert headers["webhook-signature"].count(" ") == 3
    for secret in (SECRET, FORMER):
        assert standardwebhooks.Webhook(secret).verify(BODY, headers) == json.loads(BODY)


@given(
    st.binary(min_size=24, max_size=64),
    st.text("abcdefghijklmnopqrstuvwxyz0123456789_-.", min_size=1),
    st.dictionaries(st.text(max_size=5), st.text(max_size=5)),
)
def test_we_verify_what_the_public_library_signs(key: bytes, identity: str, data: dict[str, str]) -> None:
    secret = "whsec_" + base64.b64encode(key).decode()
    body = json.dumps({"type": "ping", "timestamp": "2026-05-01T10:00:00+02:00", "data": data})
    theirs = standardwebhooks.Webhook(secret).sign(identity, NOW, body)
    assert theirs == sign(secret, identity, SECONDS, body.encode())
    headers = {"Webhook-Id": identity, "WEBHOOK-TIMESTAMP": str(SECONDS), "webhook-Signature": f"v1a,AAAA {theirs}"}
    webhook = verify_webhook(body, headers, secret, now=NOW)
    assert (webhook.id, webhook.data) == (identity, data)


@given(st.data())
def test_one_changed_byte_anywhere_is_noticed(data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(BODY) - 1))
    other = data.draw(st.integers(0, 255).filter(lambda byte: byte != BODY[position]))
    changed = BODY[:position] + bytes([other]) + BODY[position + 1 :]
    assert code_of(lambda: verify_webhook(changed, headers_of(SECRET), SECRET)) == "wrong_signature"


@pytest.mark.parametrize(("name", "value"), [("webhook-id", "evt_2"), ("webhook-timestamp", None)])
def test_a_changed_header_is_noticed(name: str, value: str | None) -> None:
    value = str(SECONDS + 1) if value is None else value
    headers = headers_of(SECRET) | {name: value}
    assert code_of(lambda: verify_webhook(BODY, headers, SECRET)) == "wrong_signature"


def test_a_receiver_with_two_secrets_is_served_through_a_rotation() -> None:
    for signing in ((FORMER,), (SECRET, FORMER), (SECRET,)):
        assert verify_webhook(BODY, headers_of(*signing), (it for it in (SECRET, FORMER))).id == "evt_1"


@pytest.mark.parametrize("name", ["webhook-id", "webhook-timestamp", "webhook-signature"])
@pytest.mark.parametrize("empty", [True, False])
def test_a_missing_header_is_named(name: str, empty: bool) -> None:
    headers = {key: value for key, value in headers_of(SECRET).items() if key != name} | ({name: ""} if empty else {})
    with pytest.raises(WebhookInvalid, match=name) as caught:
        verify_webhook(BODY, headers, SECRET)
    assert caught.value.code == "missing_header"


@pytest.mark.parametrize("text", ["soon", "1.5", "-1", "１", "1e9", "9" * 400, " 1"])
def test_an_invalid_timestamp_is_refused(text: str) -> None:
    headers = headers_of(SECRET) | {"webhook-timestamp": text}
    assert code_of(lambda: verify_webhook(BODY, headers, SECRET)) == "bad_timestamp"


@pytest.mark.parametrize(("off", "code"), [(-301, "too_old"), (301, "too_new")])
def test_a_webhook_expires_after_some_minutes(off: int, code: str) -> None:
    late = headers_of(SECRET, seconds=SECONDS + off)
    assert code_of(lambda: verify_webhook(BODY, late, SECRET, now=NOW)) == code
    assert verify_webhook(BODY, late, SECRET, now=NOW, tolerance_s=301).id
    near = headers_of(SECRET, seconds=SECONDS + off // 2)
    assert verify_webhook(BODY, near, SECRET, now=NOW).id


@pytest.mark.parametrize(
    ("signature", "code"),
    [
        ("v2,AAAA", "unknown_signature"),
        ("v1a,AAAA", "unknown_signature"),
        ("nonsense", "unknown_signature"),
        ("v1", "wrong_signature"),
        ("v1,", "wrong_signature"),
        ("v1,!!!", "wrong_signature"),
        ("v1,ä", "wrong_signature"),
        ("v1,AAAA", "wrong_signature"),
    ],
)
def test_a_malformed_signature_is_refused(signature: str, code: str) -> None:
    headers = headers_of(SECRET) | {"webhook-signature": signature}
    assert code_of(lambda: verify_webhook(BODY, headers, SECRET)) == code


def test_the_signature_of_another_secret_is_refused() -> None:
    assert code_of(lambda: verify_webhook(BODY, headers_of(FOREIGN), [SECRET, FORMER])) == "wrong_signature"


@pytest.mark.parametrize(
    "body", [b"", b"no json", b"[]", b'{"type":"x"}', b'{"type":1,"timestamp":1,"data":{}}', b"\xff"]
)
def test_a_signed_body_that_is_not_a_webhook_has_its_own_error(body: bytes) -> None:
    assert code_of(lambda: verify_webhook(body, headers_of(SECRET, body=body), SECRET)) == "bad_body"


BAD_SECRETS = {
    "empty": "",
    "a word": "secret",
    "no prefix": SECRET.removeprefix("whsec_"),
    "short": SECRET[:20],
    "not base64": "whsec_!",
    "long": SECRET + "A" * 60,
    "a private key": new_private_key(),
}


@pytest.mark.parametrize("secret", BAD_SECRETS.values(), ids=BAD_SECRETS)
def test_a_malformed_secret_is_reported_and_not_quoted(secret: str) -> None:
    with pytest.raises(InvalidInput) as invalid:
        check_secret(secret)
    assert invalid.value.field == "secret"
    with pytest.raises(WebhookInvalid) as caught:
        verify_webhook(BODY, headers_of(SECRET), [SECRET, secret])
    assert caught.value.code == "bad_secret"
    assert not secret or secret not in caught.value.message.replace("the secret", "")


def test_an_empty_list_of_secrets_verifies_nothing() -> None:
    assert code_of(lambda: verify_webhook(BODY, headers_of(SECRET), [])) == "bad_secret"


def test_a_secret_may_lack_its_padding() -> None:
    assert sign(SECRET.rstrip("="), "x", 1, b"") == sign(SECRET, "x", 1, b"")


def test_a_public_key_verifies_what_its_private_key_signed() -> None:
    private = new_private_key()
    headers = headers_of(SECRET, private)
    assert verify_webhook(BODY, headers, public_key(private)).id == "evt_1"
    assert verify_webhook(BODY, headers, [public_key(new_private_key()), FOREIGN, public_key(private)]).id
    foreign = public_key(new_private_key())
    assert code_of(lambda: verify_webhook(BODY, headers, foreign)) == "wrong_signature"
    assert code_of(lambda: verify_webhook(BODY + b" ", headers, public_key(private))) == "wrong_signature"
    assert code_of(lambda: verify_webhook(BODY, headers_of(SECRET), public_key(private))) == "unknown_signature"


def test_without_cryptography_a_public_key_raises_an_error_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    private = new_private_key()
    headers, public, original = headers_of(private), public_key(private), builtins.__import__

    def without(name: str, *arguments: Any, **rest: Any) -> Any:
        if name.startswith("cryptography"):
            raise ImportError(name)
        return original(name, *arguments, **rest)

    for name in [it for it in sys.modules if it.startswith("cryptography")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(WebhookInvalid, match="pip install cryptography") as caught:
        verify_webhook(BODY, headers, public)
    assert caught.value.code == "missing_library"


def test_an_expired_secret_signs_no_more() -> None:
    until = SigningSecret(FORMER, expires=NOW)
    after = SigningSecret(FOREIGN, expires=NOW + timedelta(seconds=1))
    headers = signed_headers([SigningSecret(SECRET), after, until], "evt_1", SECONDS, BODY)
    assert headers["webhook-signature"].split() == [sign(it, "evt_1", SECONDS, BODY) for it in (SECRET, FOREIGN)]


def test_a_secret_is_not_shown() -> None:
    secret = SigningSecret(SECRET, expires=NOW)
    for shown in (repr(secret), str(secret), f"{[secret]}", str(secret.__rich_repr__())):
        assert SECRET not in shown
        assert SECRET.removeprefix("whsec_") not in shown


def test_new_secrets_differ_and_are_valid() -> None:
    made = {new_secret() for _ in range(10)}
    assert len(made) == 10
    for secret in made:
        check_secret(secret)
