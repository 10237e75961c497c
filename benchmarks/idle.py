"""The cost of an idle installation: CPU seconds per minute and memory of ``tweezer up``, by process, and its start."""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
from harness import WAIT_S, Broken, Figure, figure, note, report

SETTLE_S = 10.0
"""The wait after the start, before anything is counted: caches fill, and the first sweeps end."""


@contextlib.contextmanager
def installation(folder: Path, device: str) -> Iterator[tuple[psutil.Process, float]]:
    """Run ``tweezer up`` on its own data folder until the block ends; provide it, and the seconds of its start."""
    log = folder / "up.log"
    began = time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "tweezer.cli", "up", "--data", str(folder / "data")),
                *("--port", "0", "--redis-port", "0", "--device", device, "--lanes", "1"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        deadline = time.monotonic() + 2 * WAIT_S
        while "Ctrl-C stops it all" not in log.read_text():
            if process.poll() is not None or time.monotonic() > deadline:
                raise Broken(f"`tweezer up` did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.1)
        yield psutil.Process(process.pid), time.monotonic() - began
    finally:
        process.terminate()
        process.wait(WAIT_S)


def name_of(process: psutil.Process) -> str:
    """Return the command of a process: ``up``, ``api``, ``redis-server``, or ``lane`` for a lane's process."""
    words = process.cmdline()
    if "tweezer.cli" in words:
        return words[words.index("tweezer.cli") + 1]
    if "up" in words:
        return "up"
    return "lane" if any("child_main" in word for word in words) else Path(words[0]).name.split()[0]


def memory_mib(processes: dict[psutil.Process, str]) -> dict[str, tuple[float, float]]:
    """Return the proportional and the resident memory of the processes, summed by name."""
    used: dict[str, tuple[float, float]] = {}
    for process, name in processes.items():
        found, (pss, rss) = process.memory_full_info(), used.get(name, (0.0, 0.0))
        used[name] = pss + found.pss / (1 << 20), rss + found.rss / (1 << 20)
    return used


def cpu_s(processes: dict[psutil.Process, str]) -> dict[str, float]:
    """Return the CPU seconds that the processes have used, summed by name."""
    spent: dict[str, float] = {}
    for process, name in processes.items():
        times = process.cpu_times()
        spent[name] = spent.get(name, 0.0) + times.user + times.system
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to watch (60)")
    parser.add_argument("--device", default="EMU_FREE", help="the device to serve (EMU_FREE)")
    parser.add_argument("--quick", action="store_true", help="a smoke test: watch for 3 seconds")
    parser.add_argument("--strict", action="store_true", help="exit with 1 when a target is not met")
    options = parser.parse_args()
    seconds, settle_s = (3.0, 0.0) if options.quick else (options.seconds, SETTLE_S)
    with (
        tempfile.TemporaryDirectory(prefix="tweezer-idle-") as folder,
        installation(Path(folder), options.device) as (up, up_s),
    ):
        note(f"idle for {settle_s + seconds:g} s")
        time.sleep(settle_s)
        processes = {it: name_of(it) for it in (up, *up.children(recursive=True))}
        before, began = cpu_s(processes), time.monotonic()
        time.sleep(seconds)
        minutes = (time.monotonic() - began) / 60
        spent = {name: (after - before[name]) / minutes for name, after in cpu_s(processes).items()}
        memory = memory_mib(processes)
    figures: list[Figure] = [
        figure("CPU of an idle `tweezer up`", sum(spent.values()), "<= 0.7", "s/min"),
        figure("resident memory of all its processes", sum(rss for _, rss in memory.values()), "<= 520", "MiB"),
        figure("the same, shared memory counted once", sum(pss for pss, _ in memory.values()), "", "MiB"),
        figure("from its start to ready", up_s, "", "s"),
        *(figure(f"CPU of {name}", value, "", "s/min") for name, value in sorted(spent.items())),
        *(figure(f"resident memory of {name}", rss, "", "MiB") for name, (_, rss) in sorted(memory.items())),
    ]
    report(
        figures, {"python": sys.version.split()[0], "seconds": seconds, "device": options.device}, as_json=options.json
    )
    if options.strict and not all(one.met for one in figures):
        sys.exit(1)


if __name__ == "__main__":
    main()
