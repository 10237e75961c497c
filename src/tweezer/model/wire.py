"""The serialisation of arq messages to and from Tweezer: MessagePack with a version, instead of pickle.

Pass :func:`serialize` and :func:`deserialize` to ``arq.create_pool`` as ``job_serializer`` and ``job_deserializer`` to
send messages to Tweezer's intake. It rejects any other format.
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
    """The fields of a message that arq reads: function, arguments, tries, and when it was sent (ms)."""

    f: str
    a: list[Any]
    k: dict[str, Any]
    t: Annotated[int, Meta(ge=0, le=1_000_000)] | None
    et: Annotated[int, Meta(ge=0, le=253_402_300_799_999)]


_encoder = msgspec.msgpack.Encoder(enc_hook=str)
_decoder = msgspec.msgpack.Decoder(_ArqMessage)


def serialize(message: dict[str, Any]) -> bytes:
    """Pack a message of arq.

    Args:
        message: arq's dictionary: the keys ``t f a k et`` of a job, or those of a result. Values that are not plain
            data are sent as their ``str``.

    Returns:
        The version and the message as MessagePack.
    """
    return _encoder.encode(_ArqMessage(_VERSION, message))


def deserialize(data: bytes) -> dict[str, Any]:
    """Unpack a message of arq.

    Args:
        data: A message that :func:`serialize` packed.

    Raises:
        ValueError: The message is a pickle, of another version, or damaged. arq logs this and drops the message.
    """
    try:
        message = _decoder.decode(data)
    except msgspec.DecodeError as error:
        raise ValueError(f"not a Tweezer message, use tweezer.model.wire.serialize: {error}") from error
    except RecursionError as error:
        raise ValueError("the message is nested too deeply") from error
    if message.version != _VERSION:
        raise ValueError(f"the message has version {message.version}; this Tweezer supports version {_VERSION}")
    return message.body


def check_message(message: dict[str, Any]) -> dict[str, Any]:
    """Return an unpacked message. Raises ValueError if its shape would make arq's worker fail."""
    try:
        msgspec.convert(message, _Shape)
    except msgspec.ValidationError as error:
        raise ValueError(f"not a valid arq message: {error}") from error
    return message
