"""The group of all commands: which there are, where they live, and how their errors are told."""

from __future__ import annotations

import io
import math
import os
import sys
from collections import Counter
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

import click

from tweezer.cli import show
from tweezer.model.errors import InvalidInput, TweezerError

FAILED = 1
INTERRUPTED = 130

_MESSAGE_LENGTH = 2000

SECTIONS: dict[str, dict[str, tuple[str, str]]] = {
    "Start": {
        "demo": ("local.demo", "Run a real sequence through a queue of its own, and show what it found."),
        "up": ("processes", "Start everything on this machine, for development."),
    },
    "Batches": {
        "submit": ("batches", "Submit a batch; prints its id."),
        "add": ("batches", "Add jobs to an open batch."),
        "close": ("batches", "Say that no more jobs will come."),
        "status": ("status", "Show how a batch stands."),
        "watch": ("status", "Follow a batch live until its jobs have ended."),
        "events": ("events", "Show what happened, to a batch or in the project, and follow it."),
        "results": ("results", "Show the bitstrings that the jobs measured."),
        "export": ("results", "Write batches with their jobs and results as JSON lines."),
        "delete": ("results", "Delete batches that have ended, for good."),
        "cancel": ("batches", "Cancel batches, or some jobs of one."),
        "pause": ("batches", "Hand out no more jobs of a batch or a device."),
        "resume": ("batches", "Go on with a paused batch or device."),
    },
    "Operators": {
        "devices": ("devices", "List the devices."),
        "maintenance": ("devices", "Plan when a device is not to be used: add, list, remove."),
        "drain": ("devices", "Pause a device and wait until nothing runs on it."),
        "workers": ("devices", "List the live workers."),
        "projects": ("credentials", "Projects: create, list, delete, and how long their batches are kept."),
        "keys": ("credentials", "Keys of the API: create, list, revoke, rotate."),
        "users": ("credentials", "Users who log in with a password: create, list, disable, their projects."),
        "webhooks": ("webhooks", "Webhooks: where they go, their secrets, what became of them; a local receiver."),
        "db": ("ledger", "Care for the ledger: upgrade, check, backup, restore."),
        "dead-letters": ("ledger", "What could not be processed: list, try again, drop."),
        "redis-users": ("redis_users", "Make the users of Redis, one for each kind of process."),
        "doctor": ("doctor", "Check Redis, ledger, workers and settings; says what to change."),
    },
    "Processes": {
        "worker": ("processes", "Serve a device until told to stop."),
        "recorder": ("processes", "Record what happens in the ledger, the SQL database."),
        "courier": ("processes", "Deliver webhooks."),
        "scheduler": ("processes", "Take in arq messages and do periodic duties."),
        "api": ("processes", "Serve the HTTP API."),
        "qpu-sim": ("processes", "Be a QPU: its API in front of an emulator, for rehearsals."),
    },
}
"""Section → command → module of tweezer.cli, and what the list of commands says of it."""

_WHERE = {name: entry for section in SECTIONS.values() for name, entry in section.items()}


class CommandGroup(click.Group):
    """Loads a command when it is called. Whatever goes wrong is one sentence on stderr and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_WHERE)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _WHERE:
            return None
        try:
            command: click.Command = getattr(
                import_module(f"tweezer.cli.{_WHERE[cmd_name][0]}"), cmd_name.replace("-", "_")
            )
        except ModuleNotFoundError as error:  # the base install has neither a server nor a ledger
            if (error.name or "tweezer").startswith("tweezer"):
                raise
            raise TweezerError(
                f"`tweezer {cmd_name}` needs {error.name}: pip install 'tweezer[server]'", code="missing_extra"
            ) from error
        _check_values(command)
        return command

    def make_parser(self, ctx: click.Context) -> Any:
        return _refusing_repeats(super().make_parser(ctx), ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name, says) for name, (_, says) in commands.items()])

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """As click's; exit codes are 1 for an error, 2 for a wrong call, 130 for Ctrl-C."""
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        if sys.stderr is None:  # closed by the caller, as stdout may be: `tweezer devices >&- 2>&-`
            sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115  for the whole process
        if sys.stdout is None:
            _end("standard output is closed; redirect it to /dev/null to see nothing")
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")  # the locale may lack characters that are printed
        try:
            code = super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
            sys.stdout.flush()
        except click.ClickException as error:
            error.message = show.escaped(_short(error.message), lines=True)  # type: ignore[misc]  # final for subclasses
            error.show()
            sys.exit(error.exit_code)
        except (click.Abort, KeyboardInterrupt):
            sys.exit(INTERRUPTED)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at its end
            sys.exit(FAILED)
        except TweezerError as error:
            _end(error.message)
        except OSError as error:
            _end(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        except Exception as error:  # the last resort: a user never sees a traceback
            if os.environ.get("TWEEZER_LOG_LEVEL") == "DEBUG":
                raise
            _end(
                f"Tweezer failed, which is a bug of its own: {type(error).__name__}: {error} "
                "(TWEEZER_LOG_LEVEL=DEBUG shows where)"
            )
        sys.exit(code if isinstance(code, int) else 0)


class _Text(click.types.StringParamType):
    """A text of the command line: without control characters, of bytes that the locale's encoding can read, and as an
    argument not empty."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        text = super().convert(value, param, ctx)
        if not text and isinstance(param, click.Argument):
            self.fail("is empty; a variable of the shell may not be set", param, ctx)
        if not text.isprintable():  # which is quick to ask, and true of nearly all
            from tweezer.model.checks import check_characters

            try:
                check_characters("", text)
            except InvalidInput as error:
                self.fail(error.problem, param, ctx)
        return text


class _Number(click.types.FloatParamType):
    """A finite number."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{number} is not a finite number.", param, ctx)
        return number


class _NumberRange(_Number, click.FloatRange):
    """A finite number within a range; NaN is within every one."""


_TEXT, _NUMBER = _Text(), _Number()


def _check_values(command: click.Command) -> None:
    """Make the command, and those in it, refuse values that they could neither show, store nor count with, and options
    that are given twice."""
    make_parser = command.make_parser
    command.make_parser = lambda ctx: _refusing_repeats(make_parser(ctx), ctx)  # type: ignore[method-assign]
    for parameter in command.params:
        if parameter.type is click.STRING:
            parameter.type = _TEXT
        elif parameter.type is click.FLOAT:
            parameter.type = _NUMBER
        elif type(parameter.type) is click.FloatRange:
            it = parameter.type
            parameter.type = _NumberRange(it.min, it.max, it.min_open, it.max_open, it.clamp)
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            _check_values(inner)


def _refusing_repeats(parser: Any, ctx: click.Context) -> Any:
    """Make a parser refuse a second value of an option that has one: click takes the last, without a word."""
    parse = parser.parse_args

    def parse_args(args: list[str]) -> tuple[dict[str, Any], list[str], list[click.Parameter]]:
        values, rest, order = parse(args)
        for option, times in Counter(order).items():
            has_one_value = isinstance(option, click.Option) and not (option.multiple or option.count)
            if times > 1 and has_one_value and not (option.is_flag and not option.secondary_opts):
                raise click.UsageError(f"{option.opts[0]}: is given {times} times; give it once", ctx)
        return values, rest, order

    parser.parse_args = parse_args
    return parser


def _short(message: str) -> str:
    """Return a message without the middle where it repeats a long value."""
    return message if len(message) <= _MESSAGE_LENGTH else f"{message[: _MESSAGE_LENGTH // 2]}…{message[-200:]}"


def _end(message: str) -> NoReturn:
    show.echo(f"Error: {_short(message)}", err=True)
    sys.exit(FAILED)
