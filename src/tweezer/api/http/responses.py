"""Answers that are asked for often or are long: encoded by msgspec, which is much quicker than pydantic.

What is in them are the fields of schemas, which describe them in the OpenAPI document.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from fastapi import Response

_JSON = "application/json"
_encoder = msgspec.json.Encoder()


def success(data: object, **beside: object) -> Response:
    """A success with this data, and what stands beside it."""
    return Response(_encoder.encode(_envelope(data) | beside), media_type=_JSON)


def page(rows: Sequence[object], *, offset: int, total: int) -> Response:
    """A page of a list: ``end`` is where the next one starts. The header says the same in an older way."""
    end = offset + len(rows)
    body = {**_envelope(rows), "pagination": {"total": total, "start": offset, "end": end}}
    headers = {
        "Content-Range": f"{offset}-{end - 1}/{total}" if rows else f"*/{total}",
        "Access-Control-Expose-Headers": "Content-Range",
    }
    return Response(_encoder.encode(body), media_type=_JSON, headers=headers)


def _envelope(data: object) -> dict[str, Any]:
    return {"status": "success", "message": "OK.", "code": "200", "data": data}
