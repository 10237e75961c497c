"""``tweezer logs``: what the emulator wrote while a job ran."""

from __future__ import annotations

import asyncio

import click

from tweezer.cli import show
from tweezer.cli.options import Options, pass_options, print_json, split_job
from tweezer.client import AsyncQueue
from tweezer.store.job_logs import JobLog

_LOOK_S = 0.5


@click.command()
@click.argument("job", metavar="BATCH[/JOB]")
@click.option("--follow", is_flag=True, help="Wait for more output until the job ends.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for each part, as in the API.")
@pass_options
def logs(options: Options, *, job: str, follow: bool, as_json: bool) -> None:
    """Show what the emulator wrote while a job ran. Without a number it is job 0 of the batch.

    Of more than 64 KiB the end is kept. A job on a QPU or on another server has no log here.
    """
    named, index = split_job(job)

    def present(found: JobLog, *, ended: bool) -> None:
        if as_json:
            print_json({"text": found.text, "next": found.next, "cut": found.cut, "ended": ended})
            return
        if found.cut:
            show.echo(f"[{found.cut} bytes of earlier output were not kept]", err=True)
        for line in found.text.splitlines():
            show.echo(line)

    async def run(queue: AsyncQueue) -> None:
        batch = await queue.find(named)
        identity = (await queue.job(f"{batch.id}/{index or 0}")).id
        if not as_json and not (await queue.logs(identity)).next:
            device = await queue.device((await batch.record()).device)
            if device is not None and device.reattaches:
                show.echo(f"{device.name} is a QPU or another server, so its jobs have no logs here.", err=True)
                return
        after, ended = 0, False
        while not ended:
            ended = (await queue.job(identity)).status.terminal  # first, so that the last part is read, too
            found = await queue.logs(identity, after=after)
            if found.text or (ended and as_json):
                present(found, ended=ended)
            after = found.next
            if not follow:
                break
            await asyncio.sleep(0 if ended else _LOOK_S)
        if not after and not as_json:
            show.echo("The job has written nothing.", err=True)

    options.run(run, patient=follow)
