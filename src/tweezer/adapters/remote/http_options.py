"""Options that adapters of HTTP APIs have in common. No HTTP library is needed to read them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from msgspec import Meta

from tweezer.model.errors import InvalidInput

Seconds = Annotated[float, Meta(gt=0, le=3600)]
Text = Annotated[str, Meta(min_length=1)]

API_PATH = "/api/v1"


def secret(field: str, given: str | None, file: str | None) -> str:
    """What is given, or the file holds. Raises InvalidInput naming the field."""
    if file is None:
        if not given:
            raise InvalidInput(field, f"is missing: give it, or {field.rpartition('.')[2]}_file")
        return given
    try:
        text = Path(file).read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{field}_file", f"cannot be read: {error}") from error
    if not text:
        raise InvalidInput(f"{field}_file", "is empty")
    return text


def http_url(field: str, url: str, *, example: str, credentials: str) -> str:
    """The URL without a slash at its end. Raises InvalidInput naming the field. credentials: the option for them."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise InvalidInput(field, f"is no URL: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise InvalidInput(field, f"must be a URL such as {example}")
    if parts.username or parts.password:
        raise InvalidInput(field, f"must not carry a user or a password; credentials go into {credentials}")
    return url.rstrip("/")
