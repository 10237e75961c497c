"""The command line. Commands are imported when they are called, so that ``tweezer --help`` is fast."""

from __future__ import annotations

import os
from pathlib import Path

import click

from tweezer import __version__
from tweezer.cli.group import CommandGroup
from tweezer.cli.options import Options

__all__ = ["main"]


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--api", metavar="URL", help="URL of the HTTP API, for use with a key  [default: TWEEZER_API_URL].")
@click.option(
    "--key-file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="File with the key for the API  [default: the key in TWEEZER_API_KEY].",
)
@click.option("--redis", metavar="URL", help="URL of the Redis that holds the queue  [default: TWEEZER_REDIS_URL].")
@click.option("--project", metavar="ID", help="Project to use  [default: TWEEZER_PROJECT_ID, else default].")
@click.option("--namespace", help="Prefix of every key in Redis  [default: TWEEZER_NAMESPACE].")
@click.version_option(__version__, prog_name="tweezer", message="%(prog)s %(version)s")
@click.pass_context
def main(
    context: click.Context,
    api: str | None,
    key_file: Path | None,
    redis: str | None,
    project: str | None,
    namespace: str | None,
) -> None:
    """Tweezer, a job queue for neutral-atom quantum work.

    New here? `tweezer demo` runs a real sequence through a temporary queue, and `tweezer up` starts a queue to
    work with.
    """
    from tweezer import logs

    if os.environ.get("NO_COLOR"):
        context.color = False
    if api is not None and redis is not None:
        raise click.UsageError("give either --api or --redis")
    if key_file is not None and redis is not None:
        raise click.UsageError("--key-file is for the API; omit it with --redis")
    context.obj = Options(redis=redis, api=api, key_file=key_file, project=project, namespace=namespace)
    logs.configure("console", "ERROR")  # for commands; the processes configure their logs from the settings
