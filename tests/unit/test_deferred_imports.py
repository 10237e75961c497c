"""Libraries that are imported only when something in them is used."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tweezer.deferred_imports import _Deferred, defer_imports

LIBRARY = {
    "__init__.py": "defaults = {'width': 1}\n",
    "axes.py": "class Axes:\n    unit = 'mm'\n    def __init__(self, size): self.size = size\n",
    "plots/__init__.py": "from drawing.axes import Axes\ndef plot(size=1): return Axes(size)\n",
}
USER = """
import drawing
import drawing.plots as plots
from drawing.axes import Axes
from drawing import axes, missing

class Own(Axes):
    pass

def own(size): return plots.plot(size)
"""
CALLER = "import drawing.plots\nplotted = drawing.plots.plot(3)\n"


@pytest.fixture(autouse=True)
def _library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Provide the library ``drawing``, a module that imports it, and one that uses it during its import."""
    for name, text in LIBRARY.items():
        file = tmp_path / "drawing" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (tmp_path / "drawing_user.py").write_text(USER)
    (tmp_path / "drawing_caller.py").write_text(CALLER)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = list(sys.meta_path)
    yield
    assert sys.meta_path == before
    for name in [name for name in sys.modules if name.startswith("drawing")]:
        del sys.modules[name]


def test_a_library_is_imported_when_something_in_it_is_used() -> None:
    with defer_imports("drawing"):
        user = importlib.import_module("drawing_user")
    assert "drawing" not in sys.modules
    assert user.own(2).size == 2
    assert Path(sys.modules["drawing"].__file__ or "").name == "__init__.py"
    assert user.Axes(3).size == user.axes.Axes(3).size == 3
    assert isinstance(user.own(2), user.Axes)
    assert user.Axes.unit == user.drawing.axes.Axes.unit == "mm"
    with pytest.raises(AttributeError):
        _ = user.missing.name


def test_imports_after_the_block_are_not_deferred() -> None:
    with defer_imports("drawing"):
        importlib.import_module("drawing_user")
    axes = importlib.import_module("drawing.axes")
    assert isinstance(axes.Axes(1), axes.Axes)


def test_a_library_that_is_used_within_the_block_is_imported_there() -> None:
    with defer_imports("drawing"):
        user = importlib.import_module("drawing_user")
        assert importlib.import_module("drawing_caller").plotted.size == 3
        assert sys.modules["drawing.plots"].Axes is sys.modules["drawing.axes"].Axes
    assert user.Axes(4).size == 4
    assert "drawing.plots" in sys.modules


def test_items_of_a_library_can_be_set_and_read_within_the_block() -> None:
    with defer_imports("drawing"):
        defaults = importlib.import_module("drawing").defaults
        defaults["height"] = 2
        assert defaults["width"] == 1
    assert importlib.import_module("drawing").defaults == {"width": 1, "height": 2}


def test_a_class_of_a_library_can_be_part_of_a_union_within_the_block() -> None:
    with defer_imports("drawing"):
        axes = importlib.import_module("drawing.axes").Axes
        assert (axes | None, None | axes, int | axes | None) == (Any, Any, Any | None)
        assert isinstance(sys.modules["drawing"], _Deferred)


def test_distutils_is_not_found_rather_than_broken_while_setuptools_is_deferred() -> None:
    """In a separate process: another test may have imported setuptools, which patches distutils."""
    program = """
from tweezer.deferred_imports import defer_imports
with defer_imports("setuptools"):
    import setuptools.command
    for name in ("setuptools._distutils", "distutils"):
        try:
            __import__(name)
        except ImportError:
            pass
        else:
            assert name == "distutils"  # that of Python 3.11
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, timeout=60)


def test_an_imported_library_stays() -> None:
    with defer_imports("json"):
        assert importlib.import_module("json.decoder") is json.decoder
    assert sys.modules["json"] is json


def test_other_libraries_are_found_as_before() -> None:
    with defer_imports("drawing"), pytest.raises(ModuleNotFoundError):
        importlib.import_module("drawings")
