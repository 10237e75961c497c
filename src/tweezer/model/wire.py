"""What arq's queues of ours carry: MessagePack with a version, instead of pickle.

Give :func:`serialize` and :func:`deserialize` to ``arq.create_pool`` as ``job_serializer`` and
``job_deserializer`` to send messages to Tweezer's intake. Anything else is refused unread.
"""

from __future__ import annotations

from typing import Any

import msgspec

_VERSION = 1


class _Message(msgspec.Struct, frozen=True, array_like=True):
    version: int
    body: dict[str, Any]


_encoder = msgspec.msgpack.Encoder(enc_hook=str)
_decoder = msgspec.msgpack.Decoder(_Message)


def serialize(message: dict[str, Any]) -> bytes:
    """Packs arq's dictionary (keys ``t f a k et``, or those of a result); what is no plain data goes as text."""
    return _encoder.encode(_Message(_VERSION, message))


def deserialize(data: bytes) -> dict[str, Any]:
    """Unpacks it. Raises ValueError on pickles, other versions and junk; arq logs that and drops the message."""
    try:
        message = _decoder.decode(data)
    except msgspec.DecodeError as error:
        raise ValueError(f"not a message of Tweezer; use tweezer.model.wire.serialize: {error}") from error
    if message.version != _VERSION:
        raise ValueError(f"a message of version {message.version}; this Tweezer reads version {_VERSION}")
    return message.body
