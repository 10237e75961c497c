"""The cost of a sequence that a lane has not seen: ``prepare`` of a warm lane of EMU_FREE, compared with a bare process
that only parses the same text with Pulser.

They take turns, text by text. Each text has its own register and pulses, on one device.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import random
import sys
import time
from multiprocessing.pool import Pool
from typing import Any

import harness
from bare_pool import sequence_text
from harness import figure, median, note, ratio

from tweezer.adapters.lane.lane import ChildLane, LaneOptions
from tweezer.adapters.registry import QUTIP_BACKEND
from tweezer.model.ids import new_batch_id
from tweezer.model.messages import BatchDoc, BatchWork


def _load() -> None:
    import warnings

    import pulser  # noqa: F401  # so that the first text does not include the import

    warnings.simplefilter("ignore")


def _parse(text: str) -> None:
    import pulser

    pulser.Sequence.from_abstract_repr(text)


def texts(count: int, seed: int) -> list[str]:
    """Return sequences that differ in the places of their atoms."""
    draw, document = random.Random(seed), json.loads(sequence_text())
    made = []
    for _ in range(count):
        angle = draw.uniform(0, 2 * math.pi)
        turned = [
            atom
            | {
                "x": atom["x"] * math.cos(angle) - atom["y"] * math.sin(angle),
                "y": atom["x"] * math.sin(angle) + atom["y"] * math.cos(angle),
            }
            for atom in document["register"]
        ]
        made.append(json.dumps(document | {"register": turned}))
    return made


async def compare(lane: ChildLane, bare: Pool, sequences: list[str]) -> tuple[float, float]:
    """Return the median seconds of a prepare on the lane, and of parsing in the bare process."""
    ours, theirs = [], []
    for text in sequences:
        batch = BatchWork(new_batch_id(), BatchDoc("EMU_FREE", text))
        began = time.perf_counter()
        await lane.prepare(batch)
        ours.append(time.perf_counter() - began)
        began = time.perf_counter()
        bare.apply(_parse, (text,))
        theirs.append(time.perf_counter() - began)
    return median(ours), median(theirs)


async def measure(rounds: int, count: int) -> tuple[list[float], list[float]]:
    ours, theirs = [], []
    lane = await ChildLane.open(QUTIP_BACKEND, LaneOptions())
    try:
        with multiprocessing.get_context("spawn").Pool(1, _load) as bare:
            await compare(lane, bare, texts(5, 0))
            for number in range(1, rounds + 1):
                prepare_s, parse_s = await compare(lane, bare, texts(count, number))
                ours.append(1000 * prepare_s)
                theirs.append(1000 * parse_s)
                note(f"round {number} of {rounds}: {ours[-1]:.2f} ms, bare {theirs[-1]:.2f} ms")
    finally:
        await lane.close()
    return ours, theirs


def main() -> int:
    asked = harness.options(
        __doc__, quick="few texts: a smoke test, not a measurement", rounds="rounds (3; 1 with --quick)"
    ).parse_args()
    rounds = asked.rounds or (1 if asked.quick else 3)
    ours, theirs = harness.run(measure(rounds, 10 if asked.quick else 100))
    figures = [figure("prepare of a new sequence / bare Pulser", ratio(ours, theirs), "<= 0.5")]
    measured: dict[str, Any] = harness.rounded({"prepare, ms": ours, "bare Pulser, ms": theirs})
    harness.report(
        figures, {"python": sys.version.split()[0], "rounds": rounds, "measured": measured}, as_json=asked.json
    )
    return int(asked.strict and not all(one.met for one in figures))


if __name__ == "__main__":
    sys.exit(main())
