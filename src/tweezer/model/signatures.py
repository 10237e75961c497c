"""Signatures of webhooks, as Standard Webhooks 1.0 has them, for who sends and for who receives.

A signature is of ``id.timestamp.body``: ``v1`` is HMAC-SHA256 with a secret that both sides know (``whsec_…``),
``v1a`` ed25519 with a private key (``whsk_…``) of which receivers know the public one (``whpk_…``). The header
``webhook-signature`` holds one for each secret that is good, with spaces between.
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
    """How a secret signs: the version in front of its signatures."""

    HMAC_SHA256 = "v1"
    ED25519 = "v1a"


class SigningSecret(msgspec.Struct, frozen=True):
    """A secret that signs now. text: ``whsec_…`` or ``whsk_…``. expires: it was rotated, and signs until then."""

    text: str
    algorithm: Algorithm = Algorithm.HMAC_SHA256
    expires: datetime | None = None

    def __repr__(self) -> str:
        return f"SigningSecret(***, algorithm={self.algorithm.value!r}, expires={self.expires!r})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("text", "***"), ("algorithm", self.algorithm.value), ("expires", self.expires)]


class Webhook(msgspec.Struct, frozen=True):
    """A webhook that is genuine. id: the same each time the event is sent. timestamp: of the event, not of sending."""

    id: str
    type: str
    timestamp: datetime
    data: dict[str, Any]


class WebhookInvalid(TweezerError):
    """A request is no webhook of who has the secret, or the secret is none. ``code`` says which check failed:

    ``missing_header``, ``bad_timestamp``, ``too_old``, ``too_new``, ``unknown_signature`` (none that the given secrets
    could check), ``wrong_signature``, ``bad_body``; ``bad_secret`` and ``missing_library`` are the receiver's to mend.
    """

    code = "wrong_signature"


class _Envelope(msgspec.Struct):
    type: str
    timestamp: datetime
    data: dict[str, Any]


_envelope = msgspec.json.Decoder(_Envelope)


def new_secret() -> str:
    """A secret for ``v1`` that nobody has had."""
    return SECRET_PREFIX + base64.b64encode(randomness.token_bytes(_SECRET_BYTES)).decode()


def new_private_key() -> str:
    """A private key for ``v1a`` that nobody has had."""
    return PRIVATE_PREFIX + base64.b64encode(randomness.token_bytes(_ED25519_BYTES)).decode()


def public_key(private_key: str) -> str:
    """The public key (``whpk_…``) of a private one, for receivers. Raises InvalidInput("secret", …)."""
    raw = _private_key(private_key).public_key().public_bytes_raw()
    return PUBLIC_PREFIX + base64.b64encode(raw).decode()


def check_secret(text: str) -> None:
    """Raises InvalidInput("secret", …), which does not quote it, unless it is one for ``v1``."""
    _hmac_key(text)


def sign(secret: str, id: str, timestamp: int, body: bytes) -> str:
    """The signature of a webhook: ``v1,…`` with a ``whsec_…``, ``v1a,…`` with a ``whsk_…``.

    timestamp: unix seconds of the attempt, as in the header. Raises InvalidInput("secret", …).
    """
    content = b"%s.%d.%s" % (id.encode(), timestamp, body)
    if secret.startswith(PRIVATE_PREFIX):
        return _written(Algorithm.ED25519, _private_key(secret).sign(content))
    return _written(Algorithm.HMAC_SHA256, _hmac(secret).digest(content))


def signed_headers(secrets: Sequence[SigningSecret], id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """Return the headers of a webhook, signed with each of the secrets that is valid at ``timestamp`` (unix seconds).

    While a secret is rotated the receiver finds the signature of the one that it has.
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
    """The webhook in a request, if it was signed with the secret and sent just now.

    body: as it came, not parsed and written again. headers: of the request, in any case. secret: ``whsec_…``, or the
    public key ``whpk_…`` for signatures with ed25519 (needs ``cryptography``); several while secrets are rotated.
    tolerance_s: how far the sender's clock may be from ``now`` (default: this machine's), and how long a request that
    somebody recorded could be repeated: remember the ``id`` of what was seen. Raises :class:`WebhookInvalid`.
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
            f"the body is signed, and no JSON with type, timestamp and data: {error}; ask who sends it", code="bad_body"
        ) from error
    return Webhook(identity, read.type, read.timestamp, read.data)


def _header(headers: Mapping[str, str], name: str) -> str:
    value = headers.get(name, "")
    if not value:
        raise WebhookInvalid(
            f"the header {name} is missing: this is no webhook, or something on its way took the header off",
            code="missing_header",
        )
    return value


def _given(secrets: list[str]) -> dict[Algorithm, list[str]]:
    """The secrets by what they check, each one well-formed."""
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
        raise WebhookInvalid("no secret was given: give the one of the endpoint, whsec_…", code="bad_secret")
    return given


def _check_timestamp(text: str, tolerance_s: float, now: datetime | None) -> None:
    if not (text.isascii() and text.isdigit() and len(text) <= _TIMESTAMP_DIGITS):
        raise WebhookInvalid(f"the header {TIMESTAMP_HEADER} is no number of unix seconds", code="bad_timestamp")
    age_s = (now or datetime.now(UTC)).timestamp() - int(text)
    if abs(age_s) <= tolerance_s:
        return
    old = age_s > 0
    raise WebhookInvalid(
        f"the webhook was sent {abs(age_s):.0f} s {'ago' if old else 'from now'}, and {tolerance_s:g} s are allowed: "
        + ("it is somebody's repetition, or " if old else "")
        + "a clock is wrong; set this machine's by NTP",
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
        known = " and ".join(sorted(given))
        raise WebhookInvalid(
            f"the header {SIGNATURE_HEADER} has no signature of version {known}, which the given secret checks: "
            f"v1 wants {SECRET_PREFIX}…, v1a the public {PUBLIC_PREFIX}…",
            code="unknown_signature",
        )
    raise WebhookInvalid(
        "the signature is another's: the secret is not that of this endpoint, or the body is not as it came "
        "(give its very bytes, not parsed JSON written again)",
        code="wrong_signature",
    )


def _is_ed25519(key: str, content: bytes, signature: bytes) -> bool:
    try:
        from cryptography.exceptions import InvalidSignature

        public = _public_key(key)
    except ImportError as error:
        raise WebhookInvalid(
            "a public key (whpk_…) needs the library cryptography: pip install cryptography, or check with whsec_…",
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
    """The bytes of a signature; none for what is no base64, which signs nothing."""
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
    """The bytes behind the prefix, base64 with or without its padding."""
    least, most = bounds
    size = str(least) if least == most else f"{least} to {most}"
    if not text.startswith(prefix):
        raise InvalidInput("secret", f"does not begin with {prefix}")
    encoded = text.removeprefix(prefix)
    try:
        decoded = base64.b64decode(encoded.rstrip("=") + "=" * (-len(encoded.rstrip("=")) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidInput("secret", f"is no base64 behind {prefix}: copy it whole") from None
    if not least <= len(decoded) <= most:
        raise InvalidInput("secret", f"has {len(decoded)} bytes instead of {size}: copy it whole")
    return decoded


_BLOCK_BYTES = 64


class KeyedHash:
    """A key, and the two halves of its HMAC-SHA256 as far as they are always the same.

    ``hmac.digest`` takes twice as long, and lets other threads have the interpreter each time, which where there are
    some costs more than the digest.
    """

    def __init__(self, key: bytes) -> None:
        if len(key) > _BLOCK_BYTES:
            key = hashlib.sha256(key).digest()
        block = key.ljust(_BLOCK_BYTES, b"\0")
        self._inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in block))
        self._outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in block))

    def digest(self, message: bytes) -> bytes:
        """The HMAC-SHA256 of a message, 32 bytes."""
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(message)
        outer.update(inner.digest())
        return outer.digest()
