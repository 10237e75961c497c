"""What arq's queues of ours carry: MessagePack with a version, instead of pickle.

Give :func:`serialize` and :func:`deserialize` to ``arq.create_pool`` as ``job_serializer`` and
``job_deserializer`` to send messages to Tweezer's intake. Anything else is refused unread.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

_VERSION = 1


class _ArqMessage(msgspec.Struct, frozen=True, array_like=True):
    version: int
    body: dict[str, Any]


class _Shape(msgspec.Struct, frozen=True):
    """What arq reads of a message: function, arguments, tries, and when it was sent (ms)."""

    f: str
    a: list[Any]
    k: dict[str, Any]
    t: Annotated[int, Meta(ge=0, le=1_000_000)] | None
    et: Annotated[int, Meta(ge=0, le=253_402_300_799_999)]


_encoder = msgspec.msgpack.Encoder(enc_hook=str)
_decoder = msgspec.msgpack.Decoder(_ArqMessage)


def serialize(message: dict[str, Any]) -> bytes:
    """Packs arq's dictionary (keys ``t f a k et``, or those of a result); what is no plain data goes as text."""
    return _encoder.encode(_ArqMessage(_VERSION, message))


def deserialize(data: bytes) -> dict[str, Any]:
    """Unpacks it. Raises ValueError on pickles, other versions and junk; arq logs that and drops the message."""
    try:
        message = _decoder.decode(data)
    except msgspec.DecodeError as error:
        raise ValueError(f"not a message of Tweezer; use tweezer.model.wire.serialize: {error}") from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if message.version != _VERSION:
        raise ValueError(f"a message of version {message.version}; this Tweezer reads version {_VERSION}")
    return message.body


def check_message(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message that was unpacked; raise ValueError where arq would stop at its shape."""
    try:
        msgspec.convert(message, _Shape)
    except msgspec.ValidationError as error:
        raise ValueError(f"not a message of arq: {error}") from error
    return message
