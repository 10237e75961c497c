"""The options with which commands act on all batches that match, and what they print."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import click
import msgspec

from tweezer.cli import show
from tweezer.cli.lists import filter_options
from tweezer.cli.options import Options, pass_options, print_json, yes_option
from tweezer.ledger.bulk_actions import BulkOutcome
from tweezer.model.errors import TweezerError
from tweezer.model.ids import short_id
from tweezer.model.lifecycle import BatchStatus
from tweezer.model.summaries import format_count

_SHOWN = 20  # lines about single batches
_JSON_FIELDS = ("count", "ids", "already", "live", "failed", "retries", "until")


class Words(msgspec.Struct, frozen=True):
    """The words of an action: ``cancel``, ``cancelled``, and for batches with nothing to do, ``already ended``.

    extent: the end of the question for confirmation, after the number of batches.
    """

    verb: str
    done: str
    already: str = ""
    extent: str = ""


class Matching(msgspec.Struct, frozen=True):
    """The options of a command that select batches, and how to act on them."""

    wanted: dict[str, Any]
    every: bool
    dry_run: bool
    yes: bool
    as_json: bool

    def check_given(self, batches: Sequence[str]) -> bool:
        """Return whether the command acts on what matches, rather than on named batches. Raises UsageError."""
        selects = self.every or any(self.wanted.values())
        if selects and batches:
            raise click.UsageError("give either batches or options that select them, such as --tag")
        if not selects and not batches:
            raise click.UsageError("give batches, or options that select them, such as --tag or --status; or --all")
        for option, is_set in (("--dry-run", self.dry_run), ("--json", self.as_json)):
            if is_set and batches:
                raise click.UsageError(f"{option} applies only to options that select batches, such as --tag")
        if self.as_json and not (self.yes or self.dry_run):
            raise click.UsageError("--json cannot ask for confirmation; add --yes or --dry-run")
        return selects

    def run(self, options: Options, words: Words, act: Callable[..., Awaitable[BulkOutcome]]) -> None:
        """Ask for confirmation, act on all batches that match, and print the outcome. act: takes a queue first."""

        def call(*, dry_run: bool, **changed: Any) -> BulkOutcome:
            given = self.wanted | {"all": self.every, "dry_run": dry_run} | changed
            return options.run(lambda queue: act(queue, **given))

        if self.dry_run:
            outcome = call(dry_run=True)
        elif self.yes:
            outcome = call(dry_run=False)
        else:
            plan = call(dry_run=True)
            if not plan.count:
                show.echo(_describe_none(words, plan))
                return
            show.confirm(f"{words.verb.capitalize()} {format_count(plan.count, 'batch')}{words.extent}?")
            outcome = call(dry_run=False, until=plan.until)  # no others than those that were confirmed
        if self.as_json:
            print_json({"dry_run": self.dry_run, **{name: getattr(outcome, name) for name in _JSON_FIELDS}})
        elif self.dry_run:
            _print_plan(words, outcome)
        else:
            _print_outcome(words, outcome)
        if outcome.failed:
            handled = outcome.count + len(outcome.failed)
            raise TweezerError(
                f"{len(outcome.failed)} of {format_count(handled, 'batch')} could not be {words.done}", code="partly"
            )


def matching_options(
    statuses: Sequence[BatchStatus],
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add the options of :class:`Matching` to a command, which gets them as one. statuses: those that may be named."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        def run(options: Options, /, *, every: bool, dry_run: bool, yes: bool, as_json: bool, **given: Any) -> None:
            wanted = {name: given.pop(name) for name in _FILTERS}
            command(options, matching=Matching(wanted, every, dry_run, yes, as_json), **given)

        found: Callable[..., None] = pass_options(functools.update_wrapper(run, command))
        for option in reversed(_HOW):
            found = option(found)
        return filter_options(statuses)(found)

    return decorate


_HOW = (
    click.option("--all", "every", is_flag=True, help="Select every batch of the project."),
    click.option("--dry-run", is_flag=True, help="Only print how many batches match, and which."),
    yes_option,
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object, with full ids."),
)
_FILTERS = ("status", "device", "tag", "name", "user", "since", "until")


def _print_plan(words: Words, outcome: BulkOutcome) -> None:
    if not outcome.count:
        show.echo(_describe_none(words, outcome))
        return
    show.echo(f"This would {words.verb} {format_count(outcome.count, 'batch')}{_describe_rest(words, outcome)}:")
    show.echo("\n".join(f"  {short_id(batch_id)}" for batch_id in outcome.ids))
    if outcome.count > len(outcome.ids):
        show.echo(f"  … and {outcome.count - len(outcome.ids)} more")


def _print_outcome(words: Words, outcome: BulkOutcome) -> None:
    for old, new in list(outcome.retries.items())[:_SHOWN]:
        show.echo(f"{short_id(old)} is retried as {short_id(new)}")
    if len(outcome.retries) > _SHOWN:
        show.echo(f"… and {len(outcome.retries) - _SHOWN} more; --json lists all")
    for message in list(outcome.failed.values())[:_SHOWN]:
        show.echo(message, err=True)
    if len(outcome.failed) > _SHOWN:
        show.echo(f"… and {len(outcome.failed) - _SHOWN} more; --json lists all", err=True)
    if outcome.count:
        count = format_count(outcome.count, "batch")
        show.echo(f"{words.done.capitalize()} {count}{_describe_rest(words, outcome)}.")
    elif not outcome.failed:
        show.echo(_describe_none(words, outcome))


def _describe_rest(words: Words, outcome: BulkOutcome) -> str:
    already = f"; {len(outcome.already)} had {words.already}" if outcome.already else ""
    has, is_kept = ("has", "is") if len(outcome.live) == 1 else ("have", "are")
    return already + (f"; {len(outcome.live)} {has} not ended and {is_kept} kept" if outcome.live else "")


def _describe_none(words: Words, outcome: BulkOutcome) -> str:
    return f"No batch to {words.verb} matches{_describe_rest(words, outcome)}."
