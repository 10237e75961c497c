# ruff: noqa: INP001  # mkdocstrings loads it by its path
"""Prepare the package for the reference of its Python API.

The methods of `Queue` and `Batch` are made from those of `AsyncQueue` and `AsyncBatch`, which griffe does not see: they
become functions. Classes whose fields have no docstrings get a table of them. Sphinx roles in docstrings become code.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

from tweezer.sync import _ASYNC_WORDS

_MADE = re.compile(r"_(?:blocking|iterating|waiting|returning_batch|listing_batches|opening)\((?P<name>[\w.]+)\)")
_ROLE = re.compile(r":\w+:`~?([^`]+)`")


class TweezerExtension(griffe.Extension):
    """The extension that mkdocs.yml names."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Replace roles such as :class:`Queue` in a docstring."""
        if obj.docstring is not None:
            obj.docstring.value = _ROLE.sub(r"`\1`", obj.docstring.value)

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        """Add a table of fields to a class that does not describe them."""
        if cls.docstring is None or "Attributes:" in cls.docstring.value:
            return
        rows = [
            f"    {name}: {'Required.' if field.value is None else f'Default: `{field.value}`.'}"
            for name, field in cls.members.items()
            if field.is_attribute and field.annotation and not field.docstring and not name.startswith("_")
            if "property" not in field.labels
        ]
        if rows:
            cls.docstring.value += "\n\nAttributes:\n" + "\n".join(rows)

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Replace attributes such as `record = _blocking(AsyncBatch.record)` by the function, without `async`."""
        if pkg.name != "tweezer":
            return
        client, sync = pkg["client"], pkg["sync"]
        for owner in (sync, sync["Queue"], sync["Batch"]):
            for name, member in list(owner.members.items()):
                if not member.is_alias and member.is_attribute and (made := _MADE.fullmatch(str(member.value))):
                    owner.set_member(name, _without_async(name, client[made["name"]]))


def _without_async(name: str, function: griffe.Function) -> griffe.Function:
    assert function.docstring is not None
    return griffe.Function(
        name,
        lineno=function.lineno,
        endlineno=function.endlineno,
        parameters=function.parameters,
        returns=None if function.returns is None else str(function.returns).replace("Async", ""),
        docstring=griffe.Docstring(_ASYNC_WORDS.sub("", function.docstring.value), parent=function),
    )
