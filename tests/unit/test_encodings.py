"""Text files are UTF-8 in every locale."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src" / "tweezer").rglob("*.py"))
NO_UTF8 = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
"""ASCII only: as with EUC-JP or GBK, UTF-8 text with other characters cannot be read."""

OPENERS = ("open", "fdopen")
READERS = {"read_text": 0, "write_text": 1}  # name → position of the encoding


def careless(tree: ast.AST) -> Iterator[int]:
    """Return the lines that read or write text without naming its encoding."""
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        if "encoding" in given or ast.unparse(call.func) == "os.open":  # it opens bytes
            continue
        if name in READERS and len(call.args) <= READERS[name]:
            yield call.lineno
        elif name in OPENERS:
            first = 1 if isinstance(call.func, ast.Name) or name == "fdopen" else 0
            mode = given.get("mode") or next(iter(call.args[first : first + 1]), None)
            text = ast.Constant("r") if mode is None and first else mode  # any object may have a method ``open``
            if isinstance(text, ast.Constant) and "b" not in str(text.value):
                yield call.lineno
        elif isinstance(flag := given.get("text"), ast.Constant) and flag.value is True:
            yield call.lineno


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: file.relative_to(ROOT / "src").as_posix())
def test_every_text_file_is_opened_with_an_encoding(file: Path) -> None:
    assert list(careless(ast.parse(file.read_text("utf-8")))) == []


@pytest.mark.parametrize("careful", ['open("a", "rb")', 'p.read_text("utf-8")', 'p.open("xb")', "store.open(connect)"])
def test_the_check_accepts_careful_code(careful: str) -> None:
    assert list(careless(ast.parse(careful))) == []


@pytest.mark.parametrize("bad", ['open("a")', 'open("a", "w")', "p.read_text()", 'p.open("a")', "run(c, text=True)"])
def test_the_check_finds_careless_code(bad: str) -> None:
    assert list(careless(ast.parse(bad))) == [1]


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "TWEEZER_"))
    }
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, env=environment | NO_UTF8 | variables, cwd=ROOT, capture_output=True, timeout=60, check=False
    )


def test_scripts_are_loaded_in_any_locale() -> None:
    program = """
import locale
assert locale.getencoding() != "utf-8"
from pathlib import Path
import tweezer.store
from tweezer.store.scripts import script_text
def _files():
    return (Path(tweezer.store.__file__).parent / "lua").glob("*.lua")
assert any(not script_text(path.stem).isascii() for path in _files()), "something that ASCII cannot hold"
"""
    ran = run("-X", "warn_default_encoding", "-c", program)
    assert (ran.returncode, ran.stderr) == (0, b"")


def test_the_command_line_works_in_any_locale() -> None:
    ran = run("-m", "tweezer.cli", "cancel", "--help", PYTHONIOENCODING="iso-8859-1")
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert rb"\u2026" in ran.stdout, "what the terminal does not have is written in ASCII"
