"""Check the specs on standard input with Pulser: ``python -m tweezer.adapters.specs.check SCRATCH``.

This process enters the same jail as lanes, with the scratch folder SCRATCH. It prints what is wrong with the specs, or
nothing if they are valid. Its exit code is 3 if Pulser is not installed.
"""

from __future__ import annotations

import json
import sys

from tweezer.adapters.lane.jail import Jail, enter
from tweezer.deferred_imports import DRAWING, defer_imports


def main() -> int:
    enter(Jail(scratch=sys.argv[1]))
    text = sys.stdin.read()
    try:
        with defer_imports(*DRAWING):
            from pulser.json.abstract_repr.deserializer import deserialize_device

            from tweezer.adapters.emulators.pulser_sequences import describe_error
    except ModuleNotFoundError as error:
        sys.stderr.write(f"{error}\n")
        return 3
    try:
        device = deserialize_device(text)
        if device.name != json.loads(text)["name"]:
            sys.stdout.write(f"Pulser reads another name, {device.name!r}")
    except Exception as error:  # noqa: BLE001  # any error is caused by the text
        cause = _find_cause(error)
        sys.stdout.write(f"{type(cause).__name__}: {describe_error(cause)}")
    return 0


def _find_cause(error: BaseException) -> BaseException:
    """Return the innermost error, because Pulser's own gives no reason."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


if __name__ == "__main__":
    sys.exit(main())
