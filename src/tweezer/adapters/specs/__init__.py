"""What devices are like: the specs that adapters bring, those that operators give, and whether Pulser takes them.

One text that Pulser cannot read keeps every client from every device, because they read all of them at once. So what
comes from outside is checked with Pulser itself, in a process of its own, before anybody is told.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from importlib import resources
from pathlib import Path

from tweezer.adapters.lane.jail.home import environment, scratch
from tweezer.model.errors import InvalidInput, TweezerError
from tweezer.model.specs import DeviceSpecs, read_specs

_PATIENCE_S = 60.0
_NO_PULSER = 3  # exit code of tweezer.adapters.specs.check


def virtual_specs(device: str) -> DeviceSpecs:
    """Return the specs of an emulator without limits: Pulser's ``MockDevice``, under this device's name."""
    return _under_its_name("virtual.json", device)


def analog_specs(device: str) -> DeviceSpecs:
    """Return the specs of a machine where none are given: Pulser's ``AnalogDevice``, under this device's name."""
    return _under_its_name("analog.json", device)


def load_specs(path: Path, *, field: str) -> DeviceSpecs:
    """Return the specs in a file, checked with Pulser. Raises InvalidInput, and TweezerError without Pulser."""
    return check_specs(read_specs_file(path, field=field), field=field)


def read_specs_file(path: Path, *, field: str) -> str:
    """Return the specs in a file as they stand there. Raises InvalidInput."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InvalidInput(field, f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidInput(field, f"{path} is not UTF-8 text") from error


def check_specs(text: str, *, field: str = "specs") -> DeviceSpecs:
    """Return the specs of this text, if Pulser makes a device of them. Blocks for the seconds of importing Pulser.

    Raises InvalidInput, and TweezerError where Pulser is not installed.
    """
    specs = read_specs(text, field=field)
    ended = _ask_pulser(text)
    if ended.returncode == _NO_PULSER:
        raise TweezerError(
            f"{field}: cannot be checked, because Pulser is not installed here: pip install 'tweezer[emulators]'",
            code="missing_extra",
        )
    if ended.returncode != 0:
        last = (ended.stderr.strip().splitlines() or ["it was killed"])[-1]
        raise TweezerError(f"{field}: cannot be checked, because Pulser failed: {last}", code="specs_unchecked")
    if problem := ended.stdout.strip():
        raise InvalidInput(field, f"are not specs of a device that Pulser can read: {problem}")
    return specs


def _ask_pulser(text: str) -> subprocess.CompletedProcess[str]:
    try:
        with scratch() as folder:
            return subprocess.run(
                [sys.executable, "-P", "-m", "tweezer.adapters.specs.check", str(folder)],
                input=text,
                capture_output=True,
                encoding="utf-8",
                timeout=_PATIENCE_S,
                cwd=folder,
                env=environment(os.environ, folder),
                check=False,
            )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise TweezerError(
            f"specs: cannot be checked, because Pulser did not answer: {error}", code="specs_unchecked"
        ) from error


def _under_its_name(file: str, device: str) -> DeviceSpecs:
    return read_specs(json.dumps({**_document(file), "name": device}))


@functools.cache
def _document(file: str) -> dict[str, object]:
    document: dict[str, object] = json.loads((resources.files(__name__) / file).read_text("utf-8"))
    return document
