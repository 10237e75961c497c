"""How a script is assembled from its includes, and how its arguments are bound by name."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import fakeredis
import pytest

from tweezer.store.scripts import (
    Script,
    generated_includes,
    included_names,
    name_arguments,
    nest_parts,
    read_arguments,
    resolve_includes,
    script_arguments,
    script_names,
)

LUA = Path(str(resources.files("tweezer.store") / "lua"))
INCLUDES = {path.stem: path.read_text("utf-8") for path in (LUA / "include").glob("*.lua")} | {
    f"generated/{name}": text for name, text in generated_includes().items()
}
SOURCES = {path.stem: path.read_text("utf-8") for path in LUA.glob("*.lua")}


def names_defined_by(text: str) -> set[str]:
    found = re.findall(r"(?m)^local (?:function )?([\w, ]+)", text)
    return {name.strip() for names in found for name in names.split(",")}


def words_of(text: str) -> set[str]:
    """Return the words of the code, without comments, strings and fields of tables."""
    code = re.sub(r"--[^\n]*|'[^'\n]*'", "", text)
    return set(re.findall(r"(?<![\w.:])[A-Za-z_]\w*", code))


OWNERS = {name: include for include, text in INCLUDES.items() for name in names_defined_by(text)}


def test_each_include_is_there_once_after_its_own_includes() -> None:
    texts = {"a": "-- include: b, c\n\na", "b": "-- include: c\n\nb", "c": "c"}
    assert resolve_includes("-- include: a, b\n", texts.__getitem__) == [texts["c"], texts["b"], texts["a"]]


def test_an_unknown_include_is_named() -> None:
    with pytest.raises(ValueError, match=r"no include 'nothing' \(included by a\)"):
        resolve_includes("-- include: a\n", {"a": "-- include: nothing\n"}.__getitem__)


def test_includes_in_a_circle_are_named() -> None:
    texts = {"a": "-- include: b\n", "b": "-- include: a\n"}
    with pytest.raises(ValueError, match="circular includes: a -> b -> a"):
        resolve_includes("-- include: a\n", texts.__getitem__)


def test_no_two_includes_define_one_name() -> None:
    defined = [name for text in INCLUDES.values() for name in names_defined_by(text)]
    assert len(defined) == len(set(defined))


@pytest.mark.parametrize("name", sorted(SOURCES) + sorted(it for it in INCLUDES if "/" not in it))
def test_a_file_includes_what_it_uses_and_uses_what_it_includes(name: str) -> None:
    text = SOURCES.get(name) or INCLUDES[name]
    if name in SOURCES and name in INCLUDES:
        text += INCLUDES[name]
    found = {it for it, include in INCLUDES.items() if include in resolve_includes(text, INCLUDES.__getitem__)}
    used = {OWNERS[word] for word in words_of(text) & OWNERS.keys()} - {name}
    assert used <= found
    assert set(included_names(text)) <= used


async def test_parts_that_are_nested_see_those_before_them() -> None:
    parts = [f"local n{number} = {number}" for number in range(100)]
    text = nest_parts([*parts, "return n0 + n40 + n99"])
    assert text.count("return (function()") == text.count("end)()") == 3
    redis: Any = fakeredis.FakeAsyncRedis()
    assert await redis.eval(text, 0) == 139
    await redis.aclose()


@pytest.mark.parametrize("name", script_names())
def test_no_argument_shadows_a_name_of_an_include(name: str) -> None:
    assert not set(script_arguments(name)) & OWNERS.keys()


HEADER = """-- x: does x
--
-- KEYS[1] namespace
-- ARGV ticket:str of it   lease_ms:int   index:digits
--     fields:{name:str value:any}[] of the record   jobs:{index:digits spec:bytes}...: some
-- Returns {'ok'}

return { 'ok' }
"""


def bind(**values: Any) -> list[Any]:
    return Script("x", "", read_arguments(HEADER)).bind(values)


VALUES: dict[str, Any] = {
    "ticket": "t",
    "lease_ms": 1,
    "index": 2,
    "fields": [("a", 1.5), ("b", b"")],
    "jobs": [(3, b"x")],
}


def test_arguments_are_named_in_lua() -> None:
    assert list(name_arguments(read_arguments(HEADER))) == [
        "local ticket, lease_ms, index = ARGV[1], tonumber(ARGV[2]), ARGV[3]",
        "local fields_first, fields_last = 4 + 1, 4 + tonumber(ARGV[4])",
        "local jobs_first, jobs_last = fields_last + 1, #ARGV",
    ]


def test_arguments_are_bound_by_name_in_any_order() -> None:
    bound = ["t", 1, 2, 4, "a", 1.5, "b", b"", 3, b"x"]
    assert bind(**VALUES) == bound
    assert bind(**dict(reversed(VALUES.items()))) == bound


def test_empty_lists_are_bound() -> None:
    assert bind(**VALUES | {"fields": (), "jobs": ()}) == ["t", 1, 2, 0]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"ticket": 1}, "ticket must be str, not int"),
        ({"lease_ms": "1"}, "lease_ms must be int, not str"),
        ({"index": 1.5}, "index must be digits, not float"),
        ({"jobs": [(b"x", 3)]}, "jobs must be digits, not bytes"),
        ({"jobs": [(3, b"x"), (4,)]}, "jobs takes rows of 2 values"),
        (
            {"token": "t"},
            "x takes ticket, lease_ms, index, fields, jobs; got ticket, lease_ms, index, fields, jobs, token",
        ),
    ],
)
def test_wrong_arguments_are_refused(change: dict[str, Any], problem: str) -> None:
    with pytest.raises(TypeError, match=re.escape(problem)):
        bind(**VALUES | change)


def test_a_missing_argument_is_refused() -> None:
    with pytest.raises(TypeError, match="x takes ticket, lease_ms"):
        bind(ticket="t")


def calls_of_scripts(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Return the calls in a module that name a script by a literal, as all calls with arguments do."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call):
            for value in node.args:
                if isinstance(value, ast.Constant) and value.value in SOURCES and node.keywords:
                    yield value.value, node


def test_every_call_of_a_script_names_its_arguments() -> None:
    of_calls = {"equal", "attempt", "expires_us", "running"}
    beside = {"_command": {"batch_id", "project"}, "_call": {"device"}}
    beside["_call_once"] = beside["_command"] | of_calls
    called = set()
    for path in LUA.parent.rglob("*.py"):
        for script, call in calls_of_scripts(path):
            function = call.func.attr if isinstance(call.func, ast.Attribute) else ""
            names = {it.arg for it in call.keywords if it.arg != "fine"}
            if None not in names:  # otherwise a dictionary, whose call tests/store covers
                assert names | beside.get(function, set()) == set(script_arguments(script)), f"{path}: {script}"
                called.add(script)
    assert called >= {"submit", "settle", "renew", "restore", "cancel_jobs", "pause_device"}
