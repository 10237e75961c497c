"""Encrypts secrets before they are stored in the ledger, so that the database alone does not reveal them."""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import os
import secrets as randomness
from collections.abc import Sequence
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tweezer.model.errors import InvalidInput, TweezerError

KEY_FILE = "secrets.key"
VARIABLE = "TWEEZER_SECRETS_KEY"

SECRETS_FRESH_S = 1.0
"""How long a process may use cached secrets and endpoints before it reads them again, in seconds."""

SECRETS_SURE_S = 1.5 * SECRETS_FRESH_S
"""After this time, in seconds, every process signs with a new secret; show it only then."""

_KEY_BYTES, _MARK_BYTES, _NONCE_BYTES = 32, 4, 12
_VERSION = b"\x01"
_ROTATE = "rotate it with --overlap 0 (`tweezer webhooks rotate`, or `tweezer keys rotate-links` for links)"
_HOW = "make one with `openssl rand -base64 32`"


class Vault:
    """Encrypts with the first of its keys and decrypts with all of them (AES-256-GCM).

    A value is bound to its owner: if it is moved to the row of another owner, it cannot be decrypted. It begins with a
    version and an identifier of its key, so that keys can be replaced one at a time.
    """

    def __init__(self, keys: Sequence[bytes], *, source: str = VARIABLE) -> None:
        self._ciphers = {_mark(key): AESGCM(key) for key in keys}
        self._mark = _mark(keys[0])
        self._source = source

    @classmethod
    def of(cls, keys_text: str, data_dir: Path) -> Vault:
        """Use the keys in the settings, else the key in a file in the data folder, which is created if necessary.

        Raises InvalidInput("TWEEZER_SECRETS_KEY" or the file, …).
        """
        if keys_text.strip():
            return cls(_keys(VARIABLE, keys_text))
        file = data_dir.absolute() / KEY_FILE
        return cls(_keys(str(file), _kept(file)), source=str(file))

    def encrypt(self, text: str, owner: str) -> bytes:
        """Encrypt a secret of this owner."""
        nonce = randomness.token_bytes(_NONCE_BYTES)
        header = _VERSION + self._mark
        return header + nonce + self._ciphers[self._mark].encrypt(nonce, text.encode(), header + owner.encode())

    def decrypt(self, value: bytes, owner: str) -> str:
        """Decrypt a secret of this owner. Raises TweezerError if the keys or the owner do not match."""
        start = len(_VERSION) + _MARK_BYTES
        header, nonce, sealed = value[:start], value[start : start + _NONCE_BYTES], value[start + _NONCE_BYTES :]
        cipher = self._ciphers.get(header[len(_VERSION) :])
        if header[: len(_VERSION)] != _VERSION or cipher is None:
            raise TweezerError(
                f"a secret in the ledger was encrypted with a key that is not in {self._source}; add that key after "
                f"the current one, separated by a comma; if it is lost, {_ROTATE}",
                code="secrets_key",
            )
        try:
            return cipher.decrypt(nonce, sealed, header + owner.encode()).decode()
        except (InvalidTag, ValueError) as error:
            raise TweezerError(
                f"a secret in the ledger was modified or moved to another row; {_ROTATE}",
                code="secrets_key",
            ) from error

    def is_current(self, value: bytes) -> bool:
        """Return whether the value was encrypted with the first key."""
        return value.startswith(_VERSION + self._mark)


def _mark(key: bytes) -> bytes:
    """Return an identifier of a key, which reveals nothing else about it."""
    return hashlib.sha256(b"tweezer secrets key" + key).digest()[:_MARK_BYTES]


def _keys(source: str, text: str) -> list[bytes]:
    return [_key(source, entry.strip()) for entry in text.split(",")]


def _key(source: str, text: str) -> bytes:
    try:
        key = base64.b64decode(text.replace("-", "+").replace("_", "/"), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidInput(source, f"contains a key that is not valid base64; {_HOW}") from None
    if len(key) != _KEY_BYTES:
        raise InvalidInput(source, f"the key must have {_KEY_BYTES} bytes (got {len(key)}); {_HOW}")
    return key


def _kept(file: Path) -> str:
    """Return the content of the file. If several processes create it at once, all use the first one's."""
    try:
        with contextlib.suppress(FileNotFoundError):
            return file.read_text("ascii", "replace")
        file.parent.mkdir(parents=True, exist_ok=True)
        _make(file)
        return file.read_text("ascii", "replace")
    except OSError as error:
        raise InvalidInput(
            str(file), f"cannot be read or created: {error.strerror}; set a key in {VARIABLE}"
        ) from error


def _make(file: Path) -> None:
    """Create the file atomically: it is written under another name, and then linked unless the file exists."""
    draft = file.with_name(f".{file.name}.{randomness.token_hex(8)}")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as output:
            output.write(base64.b64encode(randomness.token_bytes(_KEY_BYTES)).decode() + "\n")
            output.flush()
            os.fsync(output.fileno())
        with contextlib.suppress(FileExistsError):
            file.hardlink_to(draft)
    finally:
        draft.unlink(missing_ok=True)
