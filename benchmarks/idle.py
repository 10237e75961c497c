"""The cost of an idle installation: CPU seconds per minute and memory of ``tweezer up``, by process."""

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
def installation(folder: Path, device: str) -> Iterator[psutil.Process]:
    """Run ``tweezer up`` on its own data folder until the block ends."""
    log = folder / "up.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "tweezer.cli", "up", "--data", str(folder / "data")),
                *("--port", "0", "--redis-port", "0", "--device", device),
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
        yield psutil.Process(process.pid)
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
    return "lane" if any("lane_main" in word for word in words) else Path(words[0]).name


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
        installation(Path(folder), options.device) as up,
    ):
        note(f"idle for {settle_s + seconds:g} s")
        time.sleep(settle_s)
        processes = {it: name_of(it) for it in (up, *up.children(recursive=True))}
        before, began = cpu_s(processes), time.monotonic()
        time.sleep(seconds)
        minutes = (time.monotonic() - began) / 60
        spent = {name: (after - before[name]) / minutes for name, after in cpu_s(processes).items()}
        memory_mb = sum(it.memory_full_info().pss for it in processes) / (1 << 20)
    figures: list[Figure] = [
        figure("CPU of an idle `tweezer up`", sum(spent.values()), "<= 0.7", "s/min"),
        figure("resident memory of all its processes", memory_mb, "", "MiB"),
        *(figure(f"CPU of {name}", value, "", "s/min") for name, value in sorted(spent.items())),
    ]
    report(
        figures, {"python": sys.version.split()[0], "seconds": seconds, "device": options.device}, as_json=options.json
    )
    if options.strict and not all(one.met for one in figures):
        sys.exit(1)


if __name__ == "__main__":
    main()
