"""The group of all commands: their modules, their summaries, and how their errors are reported."""

from __future__ import annotations

import copy
import io
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn

import click
from click.exceptions import NoSuchCommand

from tweezer.cli import show
from tweezer.cli.options import Options
from tweezer.model.errors import InvalidInput, NotFound, TweezerError, describe_os_error, install_command

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

FAILED = 1
INTERRUPTED = 130

_MESSAGE_LENGTH = 2000

SECTIONS: dict[str, dict[str, tuple[str, str]]] = {
    "Start": {
        "demo": ("local.demo", "Run a real sequence through a temporary queue and show the results."),
        "up": ("processes", "Start everything on this machine, for development."),
        "completion": ("completion", "Print a script that completes commands and options in a shell."),
    },
    "Batches": {
        "submit": ("batches", "Submit a batch and print its id."),
        "add": ("batches", "Add jobs to an open batch."),
        "close": ("batches", "Close an open batch: no more jobs can be added."),
        "batches": ("lists", "List the batches of the project, newest first."),
        "jobs": ("lists", "List the jobs of a batch."),
        "status": ("status", "Show the state of a batch."),
        "watch": ("status", "Follow a batch live until its jobs have ended."),
        "events": ("events", "Show or follow the events of a batch or of the project."),
        "attempts": ("events", "Show each execution of a job: where, when, and how it ended."),
        "logs": ("job_logs", "Show or follow what the emulator wrote while a job ran."),
        "results": ("results", "Show the bitstrings that the jobs measured."),
        "export": ("results", "Write batches with their jobs and results as JSON lines."),
        "archive": ("results", "Archive ended batches: lists of tasks leave them out."),
        "delete": ("results", "Delete ended batches permanently."),
        "change": ("batches", "Change the priority or the tags of batches."),
        "cancel": ("batches", "Cancel batches, or some jobs of a batch."),
        "retry": ("batches", "Submit the failed jobs of batches again."),
        "pause": ("batches", "Pause batches or a device: start no more of their jobs."),
        "resume": ("batches", "Resume paused batches or a paused device."),
        "schedules": ("schedules", "Submit a batch at certain times: create, list, pause, run, delete."),
    },
    "Operators": {
        "devices": ("devices", "List the devices, or forget one."),
        "maintenance": ("devices", "Plan maintenance of a device: add, list, remove."),
        "drain": ("devices", "Pause a device and wait until its jobs have ended."),
        "workers": ("devices", "List the live workers."),
        "projects": ("credentials", "Manage projects: create, list, delete, retention, limits."),
        "keys": ("credentials", "Manage API keys: create, list, revoke, rotate."),
        "users": ("credentials", "Manage users who log in with a password."),
        "webhooks": ("webhooks", "Manage webhooks: endpoints, secrets, deliveries, test receiver."),
        "db": ("ledger", "Manage the ledger database: upgrade, check, backup, restore."),
        "dead-letters": ("ledger", "Manage messages that could not be processed: list, retry, drop."),
        "redis-users": ("redis_users", "Write an ACL file with a Redis user for each kind of process."),
        "doctor": ("doctor", "Check Redis, ledger, workers and settings; suggest fixes."),
    },
    "Processes": {
        "worker": ("processes", "Run a worker, which serves a device."),
        "recorder": ("processes", "Run a recorder, which writes events to the ledger."),
        "courier": ("processes", "Run a courier, which delivers webhooks."),
        "scheduler": ("processes", "Run the scheduler: schedules, arq messages, sweeps, clean-up."),
        "api": ("processes", "Serve the HTTP API."),
        "qpu-sim": ("processes", "Simulate a QPU: serve its API, backed by an emulator."),
    },
}
"""Section → command → module of tweezer.cli, and the summary in the list of commands."""

_WHERE = {name: entry for section in SECTIONS.values() for name, entry in section.items()}

_OTHER_WORDS = {
    "list": ("batches", "devices"),
    "ls": ("batches", "devices"),
    "queue": ("devices",),
    "run": ("submit",),
    "start": ("up",),
    "stop": ("cancel", "drain"),
    "kill": ("cancel",),
    "log": ("logs", "events"),
    "set": ("change",),
    "edit": ("change",),
}
"""Words for commands in other programs, and the commands that are meant."""

_MISSING = re.compile(r"there is no (batch|device|project|schedule) ")
_WHERE_TO_LOOK = {
    "batch": "`tweezer batches` lists them",
    "device": "`tweezer devices` lists them",
    "schedule": "`tweezer schedules list` lists them",
    "project": "`tweezer projects list` shows their ids, and `tweezer projects create` creates one",
}
"""Kind of an object that was not found, and where to look for it."""

_LATE = "late_"  # prefix of the names of global options that are given after the command
_GLOBAL = "The options of `tweezer` itself, such as --project, may be given here, too."


class CommandGroup(click.Group):
    """Imports a command when it is called. An error prints one sentence to stderr and sets the exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_WHERE)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _WHERE:
            return None
        from tweezer.deferred_imports import defer_imports

        try:
            with defer_imports("jwt"):  # redis imports it, with cryptography, for a login that Tweezer lacks
                module = import_module(f"tweezer.cli.{_WHERE[cmd_name][0]}")
        except ModuleNotFoundError as error:  # the base install has neither a server nor a ledger
            if (error.name or "tweezer").startswith("tweezer"):
                raise
            if ctx.resilient_parsing:  # completion in a shell
                return None
            raise TweezerError(
                f"`tweezer {cmd_name}` needs {error.name}; run {install_command('server')}", code="missing_extra"
            ) from error
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        _check_values(command)
        _accept_anywhere(command, [it for it in self.params if isinstance(it, click.Option) and it.expose_value])
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name[:1] != "-" and not ctx.resilient_parsing and self.get_command(ctx, name) is None:
            meant = [word for word in _OTHER_WORDS.get(name, ()) if word in _WHERE]
            if meant:
                raise click.UsageError(f"No such command {name!r}. Did you mean {' or '.join(map(repr, meant))}?", ctx)
            raise NoSuchCommand(name, possibilities=_WHERE, ctx=ctx)
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete a command without importing any, or an option."""
        from click.shell_completion import CompletionItem

        found = {name: text for name, (_, text) in _WHERE.items() if name.startswith(incomplete)}
        commands = [CompletionItem(name, help=text) for name, text in found.items()]
        return [*commands, *click.Command.shell_complete(self, ctx, incomplete)]

    def make_parser(self, ctx: click.Context) -> Any:
        return _refusing_repeats(super().make_parser(ctx), ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name, summary) for name, (_, summary) in commands.items()])

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command line as click does. Exit codes: 1 for an error, 2 for wrong usage, 130 for Ctrl-C."""
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        if sys.stderr is None:  # closed by the caller, as stdout may be: `tweezer devices >&- 2>&-`
            sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115  for the whole process
        if sys.stdout is None:
            _end("standard output is closed; redirect it to /dev/null to discard it")
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")  # the locale may lack some characters
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
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at exit
            sys.exit(FAILED)
        except TweezerError as error:
            missing = _MISSING.match(error.message) if error.code == NotFound.code else None
            _end(f"{error.message}; {_WHERE_TO_LOOK[missing[1]]}" if missing else error.message)
        except OSError as error:
            _end(describe_os_error(error))
        except Exception as error:  # the last resort: a user never sees a traceback
            if os.environ.get("TWEEZER_LOG_LEVEL") == "DEBUG":
                raise
            _end(
                f"internal error: {type(error).__name__}: {error}\n"
                "This is a bug in Tweezer: report it, with the traceback that TWEEZER_LOG_LEVEL=DEBUG shows."
            )
        sys.exit(code if isinstance(code, int) else 0)


class _Text(click.types.StringParamType):
    """A text parameter: without control characters, decodable in the locale's encoding, and not empty as an
    argument."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        text = super().convert(value, param, ctx)
        if not text and isinstance(param, click.Argument):
            self.fail("is empty; check that the shell variable is set", param, ctx)
        if not text.isprintable():  # fast, and true for almost every text
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
    """A finite number within a range. Click accepts NaN in every range."""


_TEXT, _NUMBER = _Text(), _Number()


def _check_values(command: click.Command) -> None:
    """Make the command and its subcommands reject repeated options, control characters, NaN and infinity."""
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


def _accept_anywhere(command: click.Command, options: Sequence[click.Option]) -> None:
    """Make the command and its subcommands accept the options of the main group that they do not define themselves."""
    own = {name for param in command.params for name in param.opts}
    for option in options:
        if not own.intersection(option.opts):
            late = copy.copy(option)
            late.name = f"{_LATE}{option.name}"  # arguments of commands may have its name
            late.hidden, late.expose_value, late.callback = True, False, _set_late
            command.params.append(late)
    if options:
        command.epilog = _GLOBAL
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            _accept_anywhere(inner, options)


def _set_late(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    """Replace a global option for this command. Raises UsageError if it was given before."""
    if value is None:
        return
    options = ctx.find_object(Options)
    assert options is not None
    assert param.name is not None
    name = param.name.removeprefix(_LATE)
    if getattr(options, name) is not None:
        raise click.UsageError(f"{param.opts[0]}: given 2 times; give it once", ctx)
    ctx.obj = options._replace(**{name: value})


def _refusing_repeats(parser: Any, ctx: click.Context) -> Any:
    """Make a parser reject a repeated single-value option. Click would silently use the last value."""
    parse = parser.parse_args

    def parse_args(args: list[str]) -> tuple[dict[str, Any], list[str], list[click.Parameter]]:
        values, rest, order = parse(args)
        for option, times in Counter(order).items():
            has_one_value = isinstance(option, click.Option) and not (option.multiple or option.count)
            if times > 1 and has_one_value and not (option.is_flag and not option.secondary_opts):
                raise click.UsageError(f"{option.opts[0]}: given {times} times; give it once", ctx)
        return values, rest, order

    parser.parse_args = parse_args
    return parser


def _short(message: str) -> str:
    """Shorten a message that repeats a long value, by cutting its middle."""
    return message if len(message) <= _MESSAGE_LENGTH else f"{message[: _MESSAGE_LENGTH // 2]}…{message[-200:]}"


def _end(message: str) -> NoReturn:
    show.echo(f"Error: {_short(message)}", err=True)
    sys.exit(FAILED)
