"""``tweezer demo``: run a real sequence through a temporary queue, and plot the results."""

from __future__ import annotations

import asyncio
import json
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Coroutine, Iterator
from functools import partial
from itertools import zip_longest
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import UUID

import click
import msgspec

from tweezer.cli import show
from tweezer.cli.listen import Received, Receiver, read_secrets
from tweezer.cli.local import antiferromagnet as ring
from tweezer.cli.local.children import Interrupts
from tweezer.cli.local.owned import HOST, free_port
from tweezer.cli.local.stack import QPU_JOURNAL, Stack
from tweezer.cli.options import Options, pass_options
from tweezer.cli.processes import CURL, require_emulator, require_server, usage
from tweezer.cli.status import Meter, follow, must_be_done
from tweezer.client import Finished, connect_async
from tweezer.model.errors import TweezerError
from tweezer.model.ids import short_id
from tweezer.model.signatures import Webhook
from tweezer.model.summaries import describe_values, format_duration
from tweezer.model.webhooks import USUAL_TYPES
from tweezer.qpu_sim.journal import read_journal, tally
from tweezer.qpu_sim.serve import load_device_specs
from tweezer.settings import Settings
from tweezer.store.records import BatchRecord
from tweezer.sync import connect

DEVICE = "EMU_FREE"
MACHINE = "QPU_SIM"
RUNS = 500
_LEAST_JOBS = 2
_MOST_JOBS = 1000
_TOP = 6
_PICTURE_COLUMNS = 19
_PLOT_COLUMNS = 64
_AXIS = "final detuning"

_STORY = (
    "A laser is swept from below resonance to a final detuning. Neighbours in the ring block each other: the further "
    "the sweep goes, the more atoms favour a pattern in which every second one is excited. Each job has a different "
    "final detuning, and is emulated by Pulser in a separate process."
)
_QPU_STORY = (
    "This time the jobs run on a simulated QPU: a process with the HTTP API of a real one, where a new submit cancels "
    "the running job, and no job may run twice."
)

Say = Callable[[str], None]


class DemoResult(msgspec.Struct, frozen=True):
    """The outcome of the demo's batch.

    seconds: from its submission to its last result. webhooks: all webhooks of the batch, received and verified.
    submits: how often each job was submitted to the simulated QPU, by the QPU's count; None without a QPU.
    """

    sequence: str
    batch: BatchRecord
    jobs: list[Finished]
    seconds: float
    webhooks: list[Webhook]
    submits: list[int] | None = None


@click.command()
@click.option(
    "--jobs",
    type=click.IntRange(_LEAST_JOBS, _MOST_JOBS),
    default=24,
    show_default=True,
    help="Number of jobs, each with a different final detuning.",
)
@click.option("--lanes", type=int, default=2, show_default=True, help="Number of jobs at once.")
@click.option("--port", type=click.IntRange(0, 65_535), default=0, help="Port of the API  [default: a free one].")
@click.option("--qpu", is_flag=True, help="Run the jobs on a simulated QPU.")
@click.option("--keep", is_flag=True, help="Keep everything running afterwards, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object to stdout, and everything else to stderr.")
@click.pass_context
@pass_options
def demo(
    options: Options,
    context: click.Context,
    /,
    *,
    jobs: int,
    lanes: int,
    port: int,
    qpu: bool,
    keep: bool,
    as_json: bool,
) -> None:
    """Run a real sequence through a temporary queue and show the results.

    This starts Redis, a ledger and all processes in a temporary folder, and submits a Pulser sequence with a job for
    each of several final detunings. It plots how antiferromagnetic order appears in a ring of atoms, and verifies the
    webhooks of the batch. Afterwards everything is removed.
    """
    require_server("demo")
    require_emulator("demo", "qutip")
    qpu_port = free_port() if qpu else None

    def say(text: str) -> None:
        show.echo(text, err=as_json)

    with Interrupts() as interrupts, tempfile.TemporaryDirectory(prefix="tweezer-demo-") as folder:
        data = Path(folder)
        own: dict[str, object] = {
            "data_dir": data,
            "database.url": "",
            "results_dir": data / "results",
            "api.key": "",
            "api.port": port,
            "worker.device": DEVICE,
            "worker.lanes": lanes,
        }
        if qpu_port is not None:
            own |= {"worker.device": MACHINE, "worker.lanes": 1, "devices": _machine(qpu_port)}
        settings = options.settings(own)
        stack = Stack(
            settings,
            redis_port=0,
            qpu_port=qpu_port,
            report=say,
        )
        try:
            _introduce(say, qpu=qpu)
            began = time.monotonic()
            stack.start()
            with interrupts.allowed():
                sequence = ring.build_sequence(load_device_specs(None).text if qpu else None)  # while they start
                stack.wait_ready(interrupts.came)
                say(f"  ready after {format_duration(time.monotonic() - began)}: {stack.redis_place}, {stack.api_url}")
                outcome = _run(settings, stack.redis_url, sequence, ring.final_detunings(jobs), say, interrupts)
            must_be_done(outcome.batch)
            if qpu:
                outcome = msgspec.structs.replace(outcome, submits=_submits(data))
            kept = data / "ring.json" if keep else None
            if kept is not None:
                kept.write_text(outcome.sequence, encoding="utf-8")
            for line in [*_findings(outcome), *_what_next(settings, stack, outcome, kept)]:
                say(line)
            if as_json:
                click.echo(json.dumps(_as_json(outcome)))
            if keep:
                stack.watch(interrupts.came)
        except KeyboardInterrupt:
            say("\nStopping; everything is removed.")
            context.exit(interrupts.exit_code)
        finally:
            stack.stop(hurry=lambda: interrupts.count > 1)


def _machine(port: int) -> dict[str, object]:
    """Return the setting ``devices`` for the simulated QPU at this port."""
    adapter_options = {"base_url": f"http://{HOST}:{port}", "poll_s": 0.05}
    return {MACHINE: {"adapter": "qpu", "options": adapter_options}}


def _submits(data: Path) -> list[int]:
    """Return how often each job was submitted to the simulated QPU."""
    return [counted.submits for counted in tally(read_journal(data / QPU_JOURNAL)).values()]


def _introduce(say: Say, *, qpu: bool) -> None:
    say(show.style(f"Tweezer demo: antiferromagnetic order in a ring of {ring.ATOMS} atoms", bold=True))
    say("")
    say(click.wrap_text(f"{_STORY} {_QPU_STORY}" if qpu else _STORY, min(show.width(), 80) - 2))
    say("")
    say("Starting Redis, ledger, worker, courier and API; building the sequence …")


def _run(
    settings: Settings, redis_url: str, sequence: str, detunings: list[float], say: Say, interrupts: Interrupts
) -> DemoResult:
    """Submit the batch, follow it, read its results, and wait for its webhooks. Raises TweezerError."""
    ledger = settings.locate_ledger().url  # for events that Redis no longer holds
    opened = connect(redis_url, project=settings.project_id, namespace=settings.namespace, database_url=ledger)
    with Mailbox(settings) as mailbox, opened as queue:
        began = time.monotonic()
        batch = queue.submit(
            sequence,
            [{"runs": RUNS, "variables": {"delta_final": detuning}} for detuning in detunings],
            device=settings.worker.device,
            name="antiferromagnetic order in a ring",
            tags=["demo"],
            webhook=mailbox.url,
        )
        say(f"Submitted batch {short_id(batch.id)}: {len(detunings)} jobs of {RUNS} runs\n")
        interrupts.run(_follow(settings, redis_url, batch.id))
        record, results = batch.record(), batch.results()
        seconds = time.monotonic() - began
        expected = {event.id for event in batch.events(follow=False) if event.type in USUAL_TYPES}
        return DemoResult(sequence, record, results, seconds, mailbox.wait(expected))


async def _follow(settings: Settings, redis_url: str, batch_id: UUID) -> None:
    async with connect_async(redis_url, project=settings.project_id, namespace=settings.namespace) as queue:
        await follow(queue, batch_id, Meter(err=True))


def _findings(outcome: DemoResult) -> Iterator[str]:
    """Yield the histogram of the last job beside its most frequent state, the order of all jobs, and the webhooks."""
    last = outcome.jobs[-1]
    columns = min(show.width(), 80)
    yield ""
    yield f"All {len(outcome.jobs)} jobs took {format_duration(outcome.seconds)}."
    yield ""
    yield show.style(f"Most frequent bitstrings of the last job ({describe_values(last.variables)} rad/µs)", bold=True)
    yield ""
    histogram = show.histogram(last.counter, top=_TOP, columns=columns - _PICTURE_COLUMNS - 2, marked=ring.ORDERED)
    picture = ring.drawing(max(last.counter, key=lambda bits: last.counter[bits]))
    for line, drawn in zip_longest(histogram, picture, fillvalue=""):
        gap = " " * (columns - _PICTURE_COLUMNS - len(show.unstyle(line)))
        yield f"{line}{gap}{show.style(drawn, fg='green')}" if drawn else line
    yield ""
    yield show.style("Antiferromagnetic order of each job (1.0: every second atom is excited)", bold=True)
    yield ""
    first = outcome.jobs[0].variables["delta_final"]
    yield from show.columns_plot(
        show.thinned([ring.order(job.counter) for job in outcome.jobs], _PLOT_COLUMNS),
        left=f"{first:g}",
        right=f"{last.variables['delta_final']:g} rad/µs",
        label=_AXIS,
        cells=max(_PLOT_COLUMNS // len(outcome.jobs), 1),
    )
    yield ""
    yield show.style(f"{len(outcome.webhooks)} webhooks received, all signatures verified; for example", bold=True)
    yield ""
    first_job = next((it for it in outcome.webhooks if it.type.startswith("job.")), outcome.webhooks[0])
    for webhook in (first_job, outcome.webhooks[-1]):
        yield f"  #{webhook.data['sequence']:<5} {webhook.type:<13} {_about(webhook)}"
    yield ""
    if outcome.submits is not None:
        once = sum(count == 1 for count in outcome.submits)
        yield show.style(
            f"By the QPU's count, {once} of {len(outcome.jobs)} jobs were submitted exactly once", bold=True
        )
        yield ""


def _about(webhook: Webhook) -> str:
    data = webhook.data
    if data.get("index") is None:
        return f"batch: {data['status']}"
    size = f", result of {data['result']['size']} bytes" if data.get("result") else ""
    return f"job {data['index']}: {data['status']}{size}"


def _what_next(settings: Settings, stack: Stack, outcome: DemoResult, kept: Path | None) -> Iterator[str]:
    if kept is None:
        yield "What next:"
        yield "  tweezer demo --keep   # keep the demo running, to try the other commands"
        yield "  tweezer up            # start a queue to work with on this machine"
        yield "  tweezer --help        # list all commands: submit, watch, results, doctor, …"
        return
    yield "Everything keeps running until Ctrl-C, and is then removed."
    yield from usage(stack)
    yield f"  tweezer results {short_id(outcome.batch.id)} --sum"
    yield f"  tweezer submit {kept} --device {settings.worker.device} \\"
    yield "    --runs 500 --var delta_final=18 --wait"
    yield "  tweezer devices"
    yield "  tweezer doctor"
    yield from CURL


def _as_json(outcome: DemoResult) -> dict[str, Any]:
    return {
        "batch": str(outcome.batch.id),
        "status": outcome.batch.status.value,
        "jobs": len(outcome.jobs),
        "counters": [job.counter for job in outcome.jobs],
        "seconds": round(outcome.seconds, 3),
        "webhooks": len(outcome.webhooks),
        **({} if outcome.submits is None else {"submits": outcome.submits}),
    }


_PATIENCE_S = 30.0
_LOOK = "run the demo again with TWEEZER_LOG_LEVEL=DEBUG; `tweezer up` shows whether a courier can run here"


class Mailbox:
    """A webhook receiver on the loopback interface, with the secrets of the project; a context manager."""

    def __init__(self, settings: Settings) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="mailbox", daemon=True)
        self._receiver = Receiver(partial(read_secrets, settings), self._put)
        self._came = threading.Condition()
        self._verified: dict[str, Webhook] = {}
        self._problem: str | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        self._run(self._receiver.start())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._run(self._receiver.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def url(self) -> str:
        """The URL of the receiver."""
        return self._receiver.url

    def wait(self, ids: Collection[str]) -> list[Webhook]:
        """Wait until the webhooks of these events have been verified; return them by sequence number.

        Raises TweezerError when no webhook arrives for half a minute.
        """
        with self._came:
            while missing := set(ids) - self._verified.keys():
                if not self._came.wait(_PATIENCE_S):
                    raise TweezerError(
                        f"{len(missing)} of {len(ids)} webhooks are missing, and none arrived for {_PATIENCE_S:g} s; "
                        + (f"the last one could not be verified: {self._problem}" if self._problem else _LOOK),
                        code="webhooks",
                    )
            return sorted((self._verified[one] for one in ids), key=lambda it: int(it.data["sequence"]))

    def _put(self, received: Received) -> None:
        with self._came:
            if received.webhook is not None:
                self._verified[received.webhook.id] = received.webhook
            self._problem = received.problem
            self._came.notify_all()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()
