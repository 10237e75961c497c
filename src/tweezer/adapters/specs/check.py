"""A process that has Pulser read the specs on standard input: ``python -m tweezer.adapters.specs.check SCRATCH``.

It enters the jail of lanes, with this scratch folder, and prints what is wrong with the specs, or nothing. Its exit
code is 3 where Pulser is not installed.
"""

from __future__ import annotations

import json
import sys

from tweezer.adapters.lane.jail import Jail, enter


def main() -> int:
    enter(Jail(scratch=sys.argv[1]))
    text = sys.stdin.read()
    try:
        from pulser.json.abstract_repr.deserializer import deserialize_device

        from tweezer.adapters.emulators.pulser_sequences import brief
    except ModuleNotFoundError as error:
        sys.stderr.write(f"{error}\n")
        return 3
    try:
        device = deserialize_device(text)
        if device.name != json.loads(text)["name"]:
            sys.stdout.write(f"it comes out under another name, {device.name!r}")
    except Exception as error:  # noqa: BLE001  # whatever it is, its cause is the text
        cause = _cause(error)
        sys.stdout.write(f"{type(cause).__name__}: {brief(cause)}")
    return 0


def _cause(error: BaseException) -> BaseException:
    """Return the innermost error: Pulser's own says only that it failed."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


if __name__ == "__main__":
    sys.exit(main())
