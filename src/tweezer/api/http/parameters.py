"""Checks of the query parameters and headers of every route."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import get_origin
from urllib.parse import unquote_to_bytes

from fastapi.dependencies.models import Dependant
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from tweezer.api.access.auth import get_caller
from tweezer.api.http.bodies import is_pasqals
from tweezer.model.arguments import quote_name
from tweezer.model.checks import list_names, suggest_name


class CheckedParameters:
    """ASGI middleware of a route: reject parameters that FastAPI would ignore or change silently.

    FastAPI ignores unknown parameters. For a single-valued parameter that was sent several times it takes the last
    value, and for a header the first. It replaces bytes that are not UTF-8 by U+FFFD.

    Unknown parameters are ignored in two cases: without a key, because probes and signed links get parameters on their
    way, and from Pasqal's clients, because newer ones may send more. But where the parameters select what a request
    changes, ignoring one would change more than was asked for.
    """

    def __init__(self, route: APIRoute) -> None:
        self._app: ASGIApp = route.app
        self._known = dict(_find_parameters(route.dependant, "query_params"))
        headers = dict(_find_parameters(route.dependant, "header_params"))
        self._headers = {name.lower().encode(): name for name, is_single in headers.items() if is_single}
        self._selects = bool(self._known) and "GET" not in (route.methods or ())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["query_string"]:
            names = Counter(_parameter_names(scope["query_string"]))
            if get_caller(scope) is not None and (self._selects or not is_pasqals(scope)):
                self._refuse_unknown(names)
            _check_once("query", (name for name, is_single in self._known.items() if is_single and names[name] > 1))
        if self._headers:
            sent = Counter(name for name, _ in scope["headers"])
            _check_once("header", (shown for name, shown in self._headers.items() if sent[name] > 1))
        await self._app(scope, receive, send)

    def _refuse_unknown(self, names: Iterable[str]) -> None:
        for name in names:
            if name not in self._known:
                known = f"its parameters are {list_names(sorted(self._known))}" if self._known else "it has none"
                hint = suggest_name(name, self._known) or f"; {known}"
                raise _validation_error("query", quote_name(name), f"is not a parameter of this route{hint}")


def _find_parameters(dependant: Dependant, kind: str) -> Iterator[tuple[str, bool]]:
    """Yield each parameter and whether it is single-valued; multi-valued ones are declared as tuples."""
    for parameter in getattr(dependant, kind):
        fields = getattr(parameter.field_info.annotation, "model_fields", {parameter.alias: parameter.field_info})
        yield from ((name, get_origin(field.annotation) is not tuple) for name, field in fields.items())
    for inner in dependant.dependencies:
        yield from _find_parameters(inner, kind)


def _parameter_names(query: bytes) -> Iterator[str]:
    """Yield the name of each parameter that was sent. Raises RequestValidationError for one that is not UTF-8."""
    for part in query.split(b"&"):
        name, _, value = (unquote_to_bytes(it.replace(b"+", b" ")) for it in part.partition(b"="))
        shown = name.decode(errors="replace")
        try:
            (name + value).decode()
        except UnicodeDecodeError:
            raise _validation_error("query", quote_name(shown), "is not UTF-8 text; encode it as UTF-8") from None
        if part not in (b"", b"="):
            yield shown


def _check_once(kind: str, repeated: Iterable[str]) -> None:
    for name in sorted(repeated):
        raise _validation_error(kind, name, "appears more than once; send it once")


def _validation_error(kind: str, name: str, problem: str) -> RequestValidationError:
    return RequestValidationError([{"type": "value_error", "loc": (kind, name), "msg": problem}])
