"""The overhead of the queue on emu-sv and emu-mps for jobs of 5 s and more, and the time until a cancel frees a lane.

All processes are warm and have one thread, and every run has another detuning, so nothing is cached. With ``--gpu``,
compare the libraries on a GPU and on the CPU instead, without a queue.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any

from bare_torch import BareEmulator, configuration_text, emulate, sequence_text

if TYPE_CHECKING:
    from tweezer.store.connection import Store

PROJECT = "benchmark"
RUNS = 1000
LIMIT_S = 200.0
SIZES = {"EMU_SV": (13, 6000), "EMU_MPS": (4, 4000)}
"""Qubits and nanoseconds by device, for a run of 5 s or more on one core."""
QUICK = {"EMU_SV": (4, 200), "EMU_MPS": (2, 200)}
ENDLESS = (16, 100_000)
ON_GPU = {"EMU_SV": ((12, 1000), (16, 1000), (20, 1000), (23, 1000)), "EMU_MPS": ((9, 1000), (16, 1000), (25, 1000))}
TOO_LONG_S = 60.0
"""A job that took longer than this on the CPU is not repeated there with more qubits."""


async def submit(store: Store, device: str, text: str, detuning: float) -> Any:
    """Submit a batch of one job and return its id."""
    from tweezer.model.ids import new_batch_id
    from tweezer.model.messages import BatchDoc, JobSpec

    batch_id = new_batch_id()
    doc = BatchDoc(device, text, backend_configuration=configuration_text(RUNS))
    jobs = [JobSpec(RUNS, {"detuning": detuning})]
    await store.commands.submit(batch_id, PROJECT, doc, jobs, idempotency_key=str(batch_id))
    return batch_id


async def reached(store: Store, batch_id: Any, what: str, *statuses: str) -> float:
    """Wait until the batch has one of these statuses, and return the monotonic time."""
    import harness

    async def has_it() -> bool:
        return (await store.reader.batch(batch_id, project=PROJECT)).status in statuses

    await harness.until(has_it, what, LIMIT_S)
    return time.monotonic()


async def warm(store: Store, device: str) -> None:
    """Wait until the lane of a device is warm."""
    import harness

    async def has_a_lane() -> bool:
        record = await store.reader.device(device)
        return record is not None and record.lanes == 1

    await harness.until(has_a_lane, "the lane is warm", 2 * harness.WAIT_S)


async def through_the_queue(store: Store, device: str, text: str, detuning: float) -> float:
    """Return the seconds from the call of submit to the last event, by Redis' clock; poll seldom to save CPU."""
    import harness

    from tweezer.store.keys import Key

    began_us = await harness.server_time_us(store.redis)
    batch_id = await submit(store, device, text, detuning)
    while (batch := await store.reader.batch(batch_id, project=PROJECT)).status in {"PENDING", "RUNNING"}:
        if await harness.server_time_us(store.redis) - began_us > LIMIT_S * 1e6:
            raise harness.Broken(f"the batch did not end within {LIMIT_S:g} s")
        await asyncio.sleep(0.2)
    if batch.status != "DONE" or not await store.reader.results(batch_id, [0]):
        raise harness.Broken(f"the batch ended as {batch.status}: {batch.fault}")
    ((_, last),) = await store.redis.xrevrange(store.keys(Key.EVENTS), count=1)
    return (int(last[b"t"]) - began_us) / 1e6


async def freed_by_cancel(store: Store, device: str, short: str, detuning: float) -> float:
    """Return the seconds from the cancel of a running job to the start of the next one on its lane."""
    endless = await submit(store, device, sequence_text(*ENDLESS), detuning)
    await reached(store, endless, "the endless batch runs", "RUNNING")
    following = await submit(store, device, short, detuning)
    await asyncio.sleep(3.0)  # into the evolution
    began = time.monotonic()
    await store.commands.cancel(endless, project=PROJECT)
    freed = await reached(store, following, "the next batch runs", "RUNNING", "DONE") - began
    await reached(store, following, "the next batch has ended", "DONE")
    return freed


async def measure(url: str, rounds: int, *, quick: bool) -> tuple[list[Any], dict[str, Any]]:
    import harness

    from tweezer.store.connection import Connect, Store

    figures, measured = [], {}
    with BareEmulator() as bare:
        for device, (qubits, duration_ns) in (QUICK if quick else SIZES).items():
            text, short = sequence_text(qubits, duration_ns), sequence_text(2, 100)
            queue: list[float] = []
            alone: list[float] = []
            freed: list[float] = []
            async with Store.open(Connect(url=url)) as store:
                await store.redis.flushall()
                async with harness.program("tickets", url, "--device", device, "--lanes", "1"):
                    harness.note(f"{device}: warming up")
                    await warm(store, device)
                    await through_the_queue(store, device, short, 1.0)
                    await asyncio.to_thread(bare.emulate, device, short, 1.0, RUNS, LIMIT_S)
                    for number in range(1, rounds + 1):
                        detuning = 15.0 + number / 10
                        queue.append(await through_the_queue(store, device, text, detuning))
                        alone.append(await asyncio.to_thread(bare.emulate, device, text, detuning, RUNS, LIMIT_S))
                        freed.append(await freed_by_cancel(store, device, short, detuning))
                        harness.note(f"  queue {queue[-1]:.2f} s, bare {alone[-1]:.2f} s, freed {freed[-1]:.3f} s")
            name = f"{device}, {qubits} qubits, {duration_ns} ns"
            figures += [
                harness.figure(f"{name}: through the queue / bare library", harness.ratio(queue, alone), "<= 1.1"),
                harness.figure(f"{device}: cancel to the next job on the lane", max(freed), "<= 2", "s"),
            ]
            measured |= {f"{device} queue, s": queue, f"{device} bare, s": alone, f"{device} freed, s": freed}
    return figures, harness.rounded(measured)


def on_a_gpu(*, quick: bool) -> int:
    """Print the seconds of the same jobs on all cores of the CPU and on the GPU, and one JSON object at the end."""
    import torch

    if not torch.cuda.is_available():
        print(f"torch {torch.__version__} sees no GPU here", file=sys.stderr)
        return 1
    cores = os.cpu_count() or 1
    torch.set_num_threads(cores)
    rows = []
    for device, sizes in ON_GPU.items():
        emulate(device, sequence_text(4, 100), 15.0, RUNS, gpu=True)
        emulate(device, sequence_text(4, 100), 15.0, RUNS)
        cpu_s: float | None = 0.0
        for qubits, duration_ns in [(4, 200)] if quick else sizes:
            text = sequence_text(qubits, duration_ns)
            gpu_s = emulate(device, text, 15.0, RUNS, gpu=True)
            cpu_s = None if cpu_s is None or cpu_s > TOO_LONG_S else emulate(device, text, 15.0, RUNS)
            row = {"device": device, "qubits": qubits, "ns": duration_ns, "cpu_s": cpu_s, "gpu_s": gpu_s}
            rows.append(row)
            on_cpu = "not run" if cpu_s is None else f"{cpu_s:.2f} s, {cpu_s / gpu_s:.2f} times as long"
            print(f"{device} {qubits:>3} qubits {duration_ns} ns: GPU {gpu_s:.2f} s, CPU {on_cpu}", flush=True)
    versions = {name: importlib.metadata.version(name) for name in ("torch", "emu-sv", "emu-mps", "pulser-core")}
    setup = {"gpu": torch.cuda.get_device_name(0), "cores": cores, "versions": versions}
    print(json.dumps({"rows": rows, "setup": setup}))
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--rounds", type=int, help="rounds of each measurement (3; 1 with --quick)")
    parser.add_argument("--quick", action="store_true", help="tiny jobs: a smoke test, not a measurement")
    parser.add_argument("--strict", action="store_true", help="exit with 1 when a figure is not met")
    parser.add_argument("--gpu", action="store_true", help="GPU against CPU instead, in this process, without Redis")
    asked = parser.parse_args()
    if asked.gpu:
        return on_a_gpu(quick=asked.quick)
    import harness

    rounds = asked.rounds or (1 if asked.quick else 3)
    with harness.server() as running:
        setup = harness.setup_of(running, rounds, quick=asked.quick, lanes=1)
        figures, measured = harness.run(measure(running.url, rounds, quick=asked.quick))
    harness.report(figures, setup | {"measured": measured}, as_json=asked.json)
    return int(asked.strict and not all(one.met for one in figures))


if __name__ == "__main__":
    sys.exit(main())
