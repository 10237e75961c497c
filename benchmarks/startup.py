"""The CPU time of commands that only print, ``tweezer --help`` and ``tweezer --version``: the best of several runs."""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from pathlib import Path

from harness import Figure, figure, report

PYTHON = sys.executable
TWEEZER = str(Path(PYTHON).with_name("tweezer"))
COMMANDS = {
    "tweezer --help": ([TWEEZER, "--help"], "<= 150"),
    "tweezer --version": ([TWEEZER, "--version"], "<= 150"),
    "import click": ([PYTHON, "-c", "import click"], ""),
    "import tweezer": ([PYTHON, "-c", "import tweezer"], ""),
    "python -c pass": ([PYTHON, "-c", "pass"], ""),
}


def cpu_ms(command: list[str]) -> float:
    """Return the CPU time of one run in milliseconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return 1000 * (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--rounds", type=int, help="runs of each command, of which the best counts (10)")
    parser.add_argument("--quick", action="store_true", help="a smoke test: one run of each")
    parser.add_argument("--strict", action="store_true", help="exit with 1 when a target is not met")
    asked = parser.parse_args()
    rounds = asked.rounds or (1 if asked.quick else 10)
    taken: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(rounds):
        for name, (command, _target) in COMMANDS.items():
            taken[name].append(cpu_ms(command))
    figures: list[Figure] = [
        figure(f"CPU time of `{name}`", min(taken[name]), target, "ms") for name, (_, target) in COMMANDS.items()
    ]
    report(figures, {"python": sys.version.split()[0], "rounds": rounds}, as_json=asked.json)
    return int(asked.strict and not all(one.met for one in figures))


if __name__ == "__main__":
    sys.exit(main())
