"""Device specs: the built-in ones of adapters, those of operators' files, and their validation with Pulser.

Clients read the specs of all devices at once, so one document that Pulser cannot read makes every device unusable.
Specs from outside are therefore checked with Pulser itself, in a separate process, before any client receives them.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from importlib import resources
from pathlib import Path

from tweezer.adapters.lane.jail.home import build_environment, scratch
from tweezer.model.errors import InvalidInput, TweezerError, install_command
from tweezer.model.specs import DeviceSpecs, read_specs

_TIMEOUT_S = 60.0
_NO_PULSER = 3  # exit code of tweezer.adapters.specs.check


def make_virtual_specs(device: str) -> DeviceSpecs:
    """Return the specs of an emulator without limits: Pulser's ``MockDevice``, renamed to this device."""
    return _load_renamed("virtual.json", device)


def make_analog_specs(device: str) -> DeviceSpecs:
    """Return the default specs of an emulated machine: Pulser's ``AnalogDevice``, renamed to this device."""
    return _load_renamed("analog.json", device)


def load_specs(path: Path, *, field: str) -> DeviceSpecs:
    """Read specs from a file and check them with Pulser. Raises InvalidInput, or TweezerError without Pulser."""
    return check_specs(read_specs_file(path, field=field), field=field)


def read_specs_file(path: Path, *, field: str) -> str:
    """Read a file of specs without checking them. Raises InvalidInput."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InvalidInput(field, f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidInput(field, f"{path} is not UTF-8 text") from error


def check_specs(text: str, *, field: str = "specs") -> DeviceSpecs:
    """Parse specs and check that Pulser can make a device of them. Blocks for seconds, while Pulser is imported.

    Raises InvalidInput, or TweezerError if Pulser is not installed.
    """
    specs = read_specs(text, field=field)
    ended = _ask_pulser(text)
    if ended.returncode == _NO_PULSER:
        raise TweezerError(
            f"{field}: cannot be checked, because Pulser is not installed here; run {install_command('emulators')}",
            code="missing_extra",
        )
    if ended.returncode != 0:
        last = (ended.stderr.strip().splitlines() or ["its process was killed"])[-1]
        raise TweezerError(f"{field}: cannot be checked, because Pulser failed: {last}", code="specs_unchecked")
    if problem := ended.stdout.strip():
        raise InvalidInput(field, f"Pulser cannot read these device specs: {problem}")
    return specs


def _ask_pulser(text: str) -> subprocess.CompletedProcess[str]:
    try:
        with scratch() as folder:
            return subprocess.run(
                [sys.executable, "-P", "-m", "tweezer.adapters.specs.check", str(folder)],
                input=text,
                capture_output=True,
                encoding="utf-8",
                timeout=_TIMEOUT_S,
                cwd=folder,
                env=build_environment(os.environ, folder),
                check=False,
            )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise TweezerError(
            f"specs: cannot be checked, because the process with Pulser failed: {error}", code="specs_unchecked"
        ) from error


def _load_renamed(file: str, device: str) -> DeviceSpecs:
    return read_specs(json.dumps({**_load_document(file), "name": device}))


@functools.cache
def _load_document(file: str) -> dict[str, object]:
    document: dict[str, object] = json.loads((resources.files(__name__) / file).read_text("utf-8"))
    return document
