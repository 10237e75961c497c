# ruff: noqa: INP001  # a script beside the pages that it fills, not a package
"""Draw the reference of the command line from click's commands, for docs/reference/cli.md.

docs/hooks.py puts it into the page when the site is built.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

import click

from tweezer.cli import main
from tweezer.cli.group import SECTIONS

_PREFORMATTED = "\b"


def draw() -> dict[str, str]:
    """Return the drawn blocks by name."""
    return {"cli": "\n\n".join(_sections())}


def _sections() -> Iterator[str]:
    root = click.Context(main, info_name="tweezer")
    yield "## `tweezer`"
    yield from _describe(main, root)
    for section, names in SECTIONS.items():
        yield f"## {section}"
        for name in names:
            command = main.get_command(root, name)
            assert command is not None
            yield from _command(command, click.Context(command, info_name=name, parent=root), level=3)


def _command(command: click.Command, context: click.Context, *, level: int) -> Iterator[str]:
    yield f"{'#' * level} `{context.command_path}`"
    yield from _describe(command, context)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            if not inner.hidden:
                yield from _command(inner, click.Context(inner, info_name=name, parent=context), level=level + 1)


def _describe(command: click.Command, context: click.Context) -> Iterator[str]:
    yield from _paragraphs(command.help or "")
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    yield f"```text\n{usage}\n```"
    records = [record for param in command.get_params(context) if (record := param.get_help_record(context))]
    rows = [f"| `{_cell(option)}` | {_cell(text)} |" for option, text in records if text and "--help" not in option]
    if rows:
        yield "\n".join(["| option | description |", "| --- | --- |", *rows])


def _paragraphs(text: str) -> Iterator[str]:
    """Return the paragraphs of a help text; those that click does not rewrap are code."""
    for paragraph in inspect.cleandoc(text).split("\f", 1)[0].split("\n\n"):
        if paragraph.strip().startswith(_PREFORMATTED):
            yield "```text\n{}\n```".format(paragraph.strip().removeprefix(_PREFORMATTED).strip("\n"))
        elif paragraph.strip():
            yield " ".join(paragraph.split())


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace(" RANGE", "").replace("|", "\\|")
