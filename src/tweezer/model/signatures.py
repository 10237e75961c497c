"""Signs and verifies webhooks according to Standard Webhooks 1.0.

The signed content is ``id.timestamp.body``. Version ``v1`` is HMAC-SHA256 with a shared secret (``whsec_…``). Version
``v1a`` is ed25519 with a private key (``whsk_…``); receivers have the public key (``whpk_…``). The header
``webhook-signature`` contains one signature for each valid secret, separated by spaces.
https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import hmac
import secrets as randomness
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import msgspec

from tweezer.model.errors import InvalidInput, TweezerError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

ID_HEADER, TIMESTAMP_HEADER, SIGNATURE_HEADER = "webhook-id", "webhook-timestamp", "webhook-signature"

SECRET_PREFIX, PRIVATE_PREFIX, PUBLIC_PREFIX = "whsec_", "whsk_", "whpk_"

_SECRET_BYTES, _SECRET_LEAST, _SECRET_MOST = 32, 24, 64
_ED25519_BYTES = 32
_TIMESTAMP_DIGITS = 12


class Algorithm(StrEnum):
    """The algorithm of a secret; the value is the version in its signatures."""

    HMAC_SHA256 = "v1"
    ED25519 = "v1a"


class SigningSecret(msgspec.Struct, frozen=True):
    """A secret in use. text: ``whsec_…`` or ``whsk_…``. expires: of a rotated secret, until when it still signs."""

    text: str
    algorithm: Algorithm = Algorithm.HMAC_SHA256
    expires: datetime | None = None

    def __repr__(self) -> str:
        return f"SigningSecret(***, algorithm={self.algorithm.value!r}, expires={self.expires!r})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("text", "***"), ("algorithm", self.algorithm.value), ("expires", self.expires)]


class Webhook(msgspec.Struct, frozen=True):
    """A verified webhook.

    Attributes:
        id: Id of the event, the same in every delivery attempt; use it to ignore duplicates.
        type: The type of the event, such as ``job.done``.
        timestamp: When the event happened (not when it was sent).
        data: The fields of the event.
    """

    id: str
    type: str
    timestamp: datetime
    data: dict[str, Any]


class WebhookInvalid(TweezerError):
    """A request is not an authentic webhook, or the given secret cannot verify it.

    Attributes:
        code: The check that failed: ``missing_header``, ``bad_timestamp``, ``too_old``, ``too_new``,
            ``unknown_signature`` (no signature is of a version that the given secrets can check), ``wrong_signature``
            or ``bad_body``. ``bad_secret`` and ``missing_library`` are problems of the receiver's configuration.
    """

    code = "wrong_signature"


class _Envelope(msgspec.Struct):
    type: str
    timestamp: datetime
    data: dict[str, Any]


_envelope = msgspec.json.Decoder(_Envelope)


def new_secret() -> str:
    """Generate a random secret for ``v1``."""
    return SECRET_PREFIX + base64.b64encode(randomness.token_bytes(_SECRET_BYTES)).decode()


def new_private_key() -> str:
    """Generate a random private key for ``v1a``."""
    return PRIVATE_PREFIX + base64.b64encode(randomness.token_bytes(_ED25519_BYTES)).decode()


def public_key(private_key: str) -> str:
    """Return the public key (``whpk_…``) of a private key, for receivers. Raises InvalidInput("secret", …)."""
    raw = _private_key(private_key).public_key().public_bytes_raw()
    return PUBLIC_PREFIX + base64.b64encode(raw).decode()


def check_secret(text: str) -> None:
    """Raise InvalidInput("secret", …), which does not quote the text, unless it is a secret for ``v1``."""
    _hmac_key(text)


def sign(secret: str, id: str, timestamp: int, body: bytes) -> str:
    """Sign a webhook: returns ``v1,…`` for a ``whsec_…``, ``v1a,…`` for a ``whsk_…``.

    timestamp: Unix time of the attempt in seconds, as in the header. Raises InvalidInput("secret", …).
    """
    content = b"%s.%d.%s" % (id.encode(), timestamp, body)
    if secret.startswith(PRIVATE_PREFIX):
        return _written(Algorithm.ED25519, _private_key(secret).sign(content))
    return _written(Algorithm.HMAC_SHA256, _hmac(secret).digest(content))


def signed_headers(secrets: Sequence[SigningSecret], id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """Return the headers of a webhook, signed with each secret that is valid at ``timestamp`` (Unix time in seconds).

    While a secret is being rotated, a receiver with either secret finds a signature that it can verify.
    """
    moment: datetime | None = None
    signatures: list[str] = []
    for secret in secrets:
        if secret.expires is not None:
            moment = moment or datetime.fromtimestamp(timestamp, UTC)
            if secret.expires <= moment:
                continue
        signatures.append(sign(secret.text, id, timestamp, body))
    return {ID_HEADER: id, TIMESTAMP_HEADER: str(timestamp), SIGNATURE_HEADER: " ".join(signatures)}


def verify_webhook(
    body: bytes | str,
    headers: Mapping[str, str],
    secret: str | Iterable[str],
    *,
    tolerance_s: float = 300,
    now: datetime | None = None,
) -> Webhook:
    """Verify that a request is a recent, authentic webhook, and return its content.

    A recorded request could be replayed for ``tolerance_s``: remember the ids that you have processed.

    Args:
        body: The body of the request exactly as it was received, not parsed and serialised again.
        headers: The headers of the request; their names are case-insensitive.
        secret: The endpoint's secret (``whsec_…``), or its public key (``whpk_…``) for ed25519 signatures, which
            needs the package ``cryptography``. Give several while secrets are being rotated.
        tolerance_s: The largest difference between the request's timestamp and ``now``, in seconds.
        now: The current time; by default that of this machine.

    Returns:
        The id, type, timestamp and data of the event.

    Raises:
        WebhookInvalid: The request is not authentic or not recent, or the secret is not valid; see its ``code``.
    """
    content = body.encode(errors="replace") if isinstance(body, str) else bytes(body)
    found = {str(name).lower(): value for name, value in headers.items()}
    identity, sent, signatures = (_header(found, it) for it in (ID_HEADER, TIMESTAMP_HEADER, SIGNATURE_HEADER))
    given = _given([secret] if isinstance(secret, str) else list(secret))
    _check_timestamp(sent, tolerance_s, now)
    _check_signatures(signatures, given, b"%s.%s.%s" % (identity.encode(errors="replace"), sent.encode(), content))
    try:
        read = _envelope.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise WebhookInvalid(
            f"the signature is valid, but the body is not JSON with type, timestamp and data: {error}; "
            "contact the sender",
            code="bad_body",
        ) from error
    return Webhook(identity, read.type, read.timestamp, read.data)


def _header(headers: Mapping[str, str], name: str) -> str:
    value = headers.get(name, "")
    if not value:
        raise WebhookInvalid(
            f"the header {name} is missing: this is not a webhook, or a proxy removed the header",
            code="missing_header",
        )
    return value


def _given(secrets: list[str]) -> dict[Algorithm, list[str]]:
    """Group the secrets by algorithm. Raises WebhookInvalid for a malformed one."""
    given: dict[Algorithm, list[str]] = {}
    for text in secrets:
        public = text.startswith(PUBLIC_PREFIX)
        try:
            if public:
                _decoded(text, PUBLIC_PREFIX, (_ED25519_BYTES, _ED25519_BYTES))
            else:
                check_secret(text)
        except InvalidInput as error:
            raise WebhookInvalid(f"the secret {error.problem}", code="bad_secret") from error
        given.setdefault(Algorithm.ED25519 if public else Algorithm.HMAC_SHA256, []).append(text)
    if not given:
        raise WebhookInvalid("no secret was given; pass the endpoint's secret, whsec_…", code="bad_secret")
    return given


def _check_timestamp(text: str, tolerance_s: float, now: datetime | None) -> None:
    if not (text.isascii() and text.isdigit() and len(text) <= _TIMESTAMP_DIGITS):
        raise WebhookInvalid(f"the header {TIMESTAMP_HEADER} is not a Unix time in seconds", code="bad_timestamp")
    age_s = (now or datetime.now(UTC)).timestamp() - int(text)
    if abs(age_s) <= tolerance_s:
        return
    old = age_s > 0
    raise WebhookInvalid(
        f"the webhook's timestamp is {abs(age_s):.0f} s in the {'past' if old else 'future'} ({tolerance_s:g} s are "
        f"allowed): {'it may be a replay, or ' if old else ''}a clock is wrong; set this machine's clock with NTP",
        code="too_old" if old else "too_new",
    )


def _check_signatures(header: str, given: dict[Algorithm, list[str]], content: bytes) -> None:
    ours = [_hmac(secret).digest(content) for secret in given.get(Algorithm.HMAC_SHA256, ())]
    checked = False
    for signature in header.split():
        version, _, text = signature.partition(",")
        if version not in given:
            continue
        checked = True
        theirs = _signature(text)
        if version == Algorithm.HMAC_SHA256:
            genuine = any(hmac.compare_digest(it, theirs) for it in ours)
        else:
            genuine = any(_is_ed25519(key, content, theirs) for key in given[Algorithm.ED25519])
        if genuine:
            return
    if not checked:
        known = " or ".join(sorted(given))
        raise WebhookInvalid(
            f"the header {SIGNATURE_HEADER} has no {known} signature, so the given secret cannot verify it; "
            f"use a secret ({SECRET_PREFIX}…) for v1, or a public key ({PUBLIC_PREFIX}…) for v1a",
            code="unknown_signature",
        )
    raise WebhookInvalid(
        "the signature does not match: the secret belongs to another endpoint, or the body was changed; use this "
        "endpoint's secret, and pass the received bytes, not JSON that was parsed and serialised again",
        code="wrong_signature",
    )


def _is_ed25519(key: str, content: bytes, signature: bytes) -> bool:
    try:
        from cryptography.exceptions import InvalidSignature

        public = _public_key(key)
    except ImportError as error:
        raise WebhookInvalid(
            "a public key (whpk_…) needs the package cryptography; pip install cryptography, or use the secret whsec_…",
            code="missing_library",
        ) from error
    try:
        public.verify(signature, content)
    except InvalidSignature:
        return False
    return True


def _written(algorithm: Algorithm, signature: bytes) -> str:
    return f"{algorithm.value},{base64.b64encode(signature).decode()}"


def _signature(text: str) -> bytes:
    """Decode a signature; empty if it is not base64, so that it never matches."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""


@functools.lru_cache(maxsize=4096)
def _hmac_key(secret: str) -> bytes:
    return _decoded(secret, SECRET_PREFIX, (_SECRET_LEAST, _SECRET_MOST))


@functools.lru_cache(maxsize=4096)
def _hmac(secret: str) -> KeyedHash:
    return KeyedHash(_hmac_key(secret))


@functools.lru_cache(maxsize=1024)
def _private_key(text: str) -> Ed25519PrivateKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(_decoded(text, PRIVATE_PREFIX, (_ED25519_BYTES, _ED25519_BYTES)))


@functools.lru_cache(maxsize=1024)
def _public_key(text: str) -> Ed25519PublicKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    return Ed25519PublicKey.from_public_bytes(_decoded(text, PUBLIC_PREFIX, (_ED25519_BYTES, _ED25519_BYTES)))


def _decoded(text: str, prefix: str, bounds: tuple[int, int]) -> bytes:
    """Decode the base64 after the prefix, with or without padding."""
    least, most = bounds
    size = str(least) if least == most else f"{least} to {most}"
    if not text.startswith(prefix):
        raise InvalidInput("secret", f"must begin with {prefix}")
    encoded = text.removeprefix(prefix)
    try:
        decoded = base64.b64decode(encoded.rstrip("=") + "=" * (-len(encoded.rstrip("=")) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidInput("secret", f"is not valid base64 after {prefix}; copy the whole secret") from None
    if not least <= len(decoded) <= most:
        raise InvalidInput(
            "secret", f"must have {size} bytes after {prefix} (got {len(decoded)}); copy the whole secret"
        )
    return decoded


_BLOCK_BYTES = 64


class KeyedHash:
    """HMAC-SHA256 with a fixed key, whose inner and outer hash states are computed once.

    ``hmac.digest`` takes twice as long. It also releases the interpreter lock on each call, which costs more than the
    digest when other threads are running.
    """

    def __init__(self, key: bytes) -> None:
        if len(key) > _BLOCK_BYTES:
            key = hashlib.sha256(key).digest()
        block = key.ljust(_BLOCK_BYTES, b"\0")
        self._inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in block))
        self._outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in block))

    def digest(self, message: bytes) -> bytes:
        """Return the HMAC-SHA256 of a message, 32 bytes."""
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(message)
        outer.update(inner.digest())
        return outer.digest()
