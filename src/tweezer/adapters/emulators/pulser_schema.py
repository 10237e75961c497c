"""Checks sequences against Pulser's JSON schema, each part once. Imported in lane processes only.

Nine tenths of the time in which Pulser reads a sequence go into this check. Here a device is checked once. The rest is
checked once for all texts that differ only in numbers, because the schema has no limits for the numbers of a sequence.
A text that is not valid is checked again as a whole, so its error is Pulser's.
"""

from __future__ import annotations

import hashlib
import json

from pulser.json.abstract_repr import deserializer
from pulser.json.abstract_repr.validation import validate_abstract_repr
from pulser.json.utils import ObjectType

from tweezer.model.lru import Recent

_PARTS_KEPT = 256
_VALID_DEVICE = "MockDevice"  # the schema accepts some names in place of a device

_checked: Recent[bytes, bool] = Recent(_PARTS_KEPT)


def install() -> None:
    """Let Pulser check sequences in this way in this process."""
    setattr(deserializer, "validate_abstract_repr", _validate)  # noqa: B010  # a name that it imports


def _validate(obj_str: str, name: ObjectType) -> None:
    if name != "sequence":
        return validate_abstract_repr(obj_str, name)
    try:
        form = json.loads(obj_str, parse_int=lambda _: 0, parse_float=lambda _: 0.5)
        _validate_once(json.loads(obj_str)["device"], "device")
        _validate_once(form | {"device": _VALID_DEVICE}, name)
    except Exception:  # noqa: BLE001  # reported by this check of the whole text
        validate_abstract_repr(obj_str, name)


def _validate_once(part: object, name: ObjectType) -> None:
    text = json.dumps(part)
    key = hashlib.sha256(f"{name} {text}".encode()).digest()
    if _checked.get(key) is None:
        validate_abstract_repr(text, name)
        _checked.put(key, True)
