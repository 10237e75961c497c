"""The headers of a webhook, of which the receiver knows who sent it and when."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from tweezer.model.signatures import ID_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER, SigningSecret, sign


def headers(secrets: Sequence[SigningSecret], id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """Signed with each of the secrets that is good at ``timestamp``, the unix seconds of this attempt.

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
