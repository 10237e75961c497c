"""The documentation matches the code: everything that it names exists, and its generated parts are up to date."""

from __future__ import annotations

import ast
import importlib
import itertools
import re
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import UUID

import click
import pytest
import yaml
from tests.support.docs import DOCS, load_generator

import tweezer
from tweezer.adapters.registry import DEVICE_KINDS
from tweezer.cli import main
from tweezer.model.errors import FaultKind, TweezerError, install_command
from tweezer.model.events import read_events
from tweezer.model.lifecycle import BatchEvent, BatchStatus, JobEvent, JobStatus
from tweezer.settings import CONFIG_VARIABLE, PREFIX, SECRET_FILES, SETTINGS
from tweezer.store.keys import Key

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "tweezer"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md"))]

_BLOCK = re.compile(r"^(?P<indent> *)```(?P<language>[a-z]*)\n(?P<body>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`]+)`")
_LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)|^\[[^\]]+\]: (\S+)$", re.MULTILINE)
_REFERENCE = re.compile(r"\[[^\]]+\]\[([\w-]+)\]")
_DEFINITION = re.compile(r"^\[([^\]]+)\]: \S", re.MULTILINE)
_HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)
_VARIABLE = re.compile(rf"\b{PREFIX}[A-Z][A-Z_]*[A-Z]\b")


def of_page(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


every_page = pytest.mark.parametrize("path", PAGES, ids=of_page)


def blocks(text: str, *languages: str) -> list[str]:
    return [textwrap.dedent(match["body"]) for match in _BLOCK.finditer(text) if match["language"] in languages]


def spans(text: str) -> list[str]:
    """Return the texts in backquotes outside of blocks; a span may continue on the next line."""
    return [" ".join(span.split()) for span in _SPAN.findall(_BLOCK.sub("", text))]


def table_rows(text: str, *header: str) -> list[list[str]]:
    """Return the cells of the table with this header."""
    lines = text.splitlines()
    start = lines.index(f"| {' | '.join(header)} |") + 2
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return rows


# --- the lifecycle page


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    return load_generator("draw_lifecycle")


def test_the_lifecycle_page_is_what_its_generator_makes(generator: ModuleType) -> None:
    page = (DOCS / "explanation/lifecycle.md").read_text()
    assert generator.drawn(page) == page, "run `python docs/draw_lifecycle.py`"
    for path, text in generator.images().items():
        assert path.read_text(encoding="utf-8") == text, "run `python docs/draw_lifecycle.py`"


def test_a_page_without_a_place_for_a_drawing_is_an_error(generator: ModuleType) -> None:
    page = (DOCS / "explanation/lifecycle.md").read_text()
    with pytest.raises(ValueError, match="table of jobs"):
        generator.drawn(page.replace("<!-- drawn: table of jobs -->", ""))


def test_each_status_and_each_event_is_explained() -> None:
    page = (DOCS / "explanation/lifecycle.md").read_text()
    of_jobs, of_batches = page.split("## Jobs")[1].split("## Batches")
    for part, statuses, events in ((of_jobs, JobStatus, JobEvent), (of_batches, BatchStatus, BatchEvent)):
        assert set(re.findall(r"^### (\w+)$", part, re.MULTILINE)) == set(statuses)
        explained = {
            name for row in table_rows(part, "event", "what happened", "made by") for name in _SPAN.findall(row[0])
        }
        assert explained == set(events)


# --- links, paths and tests


def slug(heading: str) -> str:
    """Return the anchor that GitHub makes of a heading."""
    kept = re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower())
    return kept.strip().replace(" ", "-")


@every_page
def test_internal_links_resolve(path: Path) -> None:
    text = _BLOCK.sub("", path.read_text(encoding="utf-8"))
    for link in filter(None, itertools.chain.from_iterable(_LINK.findall(text))):
        if link.startswith(("https://", "http://")):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), f"{link} leads nowhere"
        if anchor:
            assert anchor in map(slug, _HEADING.findall(_BLOCK.sub("", target.read_text()))), f"no heading for {link}"
    assert set(_REFERENCE.findall(text)) <= set(_DEFINITION.findall(text))


_PATH = re.compile(r"[\w@.*/-]+\.(?:py|lua|md|toml|conf|yaml|service|example)\Z|[\w./-]+/\Z|\.ci/run\Z|deploy/[\w/]+\Z")
_SOME_USERS = {"sequence.json", "tweezer.toml"}
"""Files that the documentation asks a reader to make."""


@every_page
def test_the_files_that_are_named_exist(path: Path) -> None:
    roots = (ROOT, PACKAGE, PACKAGE / "store", PACKAGE / "store" / "lua", PACKAGE / "adapters", DOCS)
    missing = {
        span
        for span in spans(path.read_text(encoding="utf-8"))
        if _PATH.match(span)
        and not span.startswith("/")
        and span not in _SOME_USERS
        and not any(root.joinpath(span).exists() for root in roots)
    }
    assert not missing - {"redis.conf", "tweezer.env", "worker.env"}


@every_page
def test_the_tests_that_are_named_exist(path: Path) -> None:
    sources = "\n".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    for name in re.findall(r"`(test_\w+…?)`", path.read_text(encoding="utf-8")):
        pattern = rf"def {re.escape(name.removesuffix('…'))}{'' if name.endswith('…') else chr(92) + 'b'}"
        assert re.search(pattern, sources), f"there is no {name}"


# --- the site

_GENERATED = re.compile(r"<!-- generated: ([a-z ]+) -->")


def pages_of(nav: list[Any]) -> Iterator[str]:
    """The files of a navigation of mkdocs."""
    for entry in nav:
        for item in entry.values() if isinstance(entry, dict) else [entry]:
            yield from pages_of(item) if isinstance(item, list) else [item]


def test_every_page_is_in_the_navigation_once() -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    assert sorted(pages_of(nav)) == sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))


def test_the_start_page_leads_to_every_page() -> None:
    lists = ("decisions/", "reference/http-api/")  # folders whose own start page lists their pages
    linked = {link.partition("#")[0] for link, _ in _LINK.findall((DOCS / "index.md").read_text())}
    pages = {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")} - {"index.md"}
    assert {page for page in pages if not page.startswith(lists)} <= linked
    assert {f"{folder}index.md" for folder in lists} <= linked


def test_every_generated_block_has_a_place() -> None:
    drawn = load_generator("draw_cli").draw() | load_generator("draw_http_api").draw()
    placed = [name for page in DOCS.rglob("*.md") for name in _GENERATED.findall(page.read_text())]
    assert sorted(placed) == sorted(drawn)
    assert all(drawn.values())


def test_what_a_built_page_loads_from_other_hosts_is_found() -> None:
    finder = load_generator("hooks").ResourceFinder()
    finder.feed('<script src="https://a/x.js"></script><link rel="stylesheet" href="//b/x.css"><img src="x.svg">')
    finder.feed('<a href="https://c/">c</a><link rel="canonical" href="https://d/"><p style="background: url(//e/x)">')
    assert finder.external == ["https://a/x.js", "//b/x.css", "//e/x"]


def test_pages_need_no_script_from_elsewhere() -> None:
    assert not [page for page in PAGES if "```mermaid" in page.read_text()], "draw an SVG: mermaid loads a script"


# --- the command line


def commands(text: str) -> Iterator[list[str]]:
    """Return the words of each call of tweezer that is shown, without the program."""
    shown = [line.split("  #")[0] for block in blocks(text, "sh") for line in block.splitlines()]
    parts = [part for line in shown for part in re.split(r"&& |\$\(|\)", line)]
    for part in [*parts, *spans(text)]:
        words = shlex.split(part.replace("'…'", "REASON"), comments=True)
        if words and (words[0] == "tweezer" or words[0].endswith("/bin/tweezer")):
            yield words[1:]


def option_of(command: click.Command, word: str) -> click.Option | None:
    return next((it for it in command.params if isinstance(it, click.Option) and word in it.opts), None)


def split_options(command: click.Command, words: list[str]) -> tuple[list[str], list[str]]:
    """Return the options of this command, and the words after them (for a group) or between them."""
    options: list[str] = []
    rest: list[str] = []
    left = iter(words)
    for word in left:
        if word in ("--help", "-h", "--version"):
            continue
        if not word.startswith("--"):
            rest.append(word)
            if isinstance(command, click.Group):
                return options, [word, *left]
            continue
        options.append(word)
        option = option_of(command, word)
        if option is not None and not option.is_flag:
            next(left, None)
    return options, rest


@every_page
def test_the_commands_that_are_named_exist_with_their_options(path: Path) -> None:
    context = click.Context(main)
    for words in commands(path.read_text(encoding="utf-8")):
        options, rest = split_options(main, words)
        command: click.Command = main
        assert all(option_of(main, option) for option in options), words
        if rest:
            found = main.get_command(context, rest[0])
            assert found is not None, f"there is no command {rest[0]}"
            command = found
            options, _ = split_options(command, rest[1:])
        assert all(option_of(command, option) for option in options), words


def test_every_command_is_named() -> None:
    named = {words[0] for page in PAGES for words in commands(page.read_text()) if words}
    for text in re.findall(r"The command line: (.*?)\n- ", (ROOT / "CHANGELOG.md").read_text(), re.DOTALL):
        assert set(_SPAN.findall(text)) <= set(main.list_commands(click.Context(main)))
    assert named >= set(main.list_commands(click.Context(main))) - {"pause", "resume"}


# --- monitoring

_LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}
_EVENT = re.compile(r"[a-z_]+\.[a-z_]+")


def log_events() -> set[str]:
    """The events that are passed to a logger, anywhere in the package but in the simulated QPU."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        if "qpu_sim" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
                event = node.args[0]
                if node.func.attr in _LEVELS and isinstance(event, ast.Constant) and _EVENT.fullmatch(str(event.value)):
                    found.add(str(event.value))
    return found


def test_every_log_event_is_explained() -> None:
    page = re.sub(r"```.*?```", "", (DOCS / "operations/monitoring.md").read_text(), flags=re.DOTALL)
    logs = page.split("## Logs")[1]
    explained = {event for event in _SPAN.findall(logs) if _EVENT.fullmatch(event)}
    assert log_events() <= explained
    sources = "\n".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    assert not {event for event in explained if f'"{event}"' not in sources}


# --- settings


@every_page
def test_the_variables_that_are_named_exist(path: Path) -> None:
    known = {setting.variable for setting in SETTINGS.values()} | {CONFIG_VARIABLE}
    known |= {"TWEEZER_REQUIRE_SERVERS", *(f"TWEEZER_COMPAT_{stack}" for stack in "ABCD")}  # of the tests
    known |= {"TWEEZER_API_URL", "TWEEZER_API_CA_FILE"}  # of clients
    known |= {it.envvar for it in main.params if isinstance(it.envvar, str)} | set(SECRET_FILES.values())
    assert set(_VARIABLE.findall(path.read_text(encoding="utf-8"))) <= known


def test_the_tables_of_settings_are_what_their_generator_makes() -> None:
    generator = load_generator("draw_settings")
    page = (DOCS / "reference/settings.md").read_text()
    assert generator.drawn(page) == page, "run `python docs/draw_settings.py`"
    for setting in SETTINGS.values():
        assert re.search(rf"^\| `{setting.name}`<br>`{setting.variable}` \|", page, re.MULTILINE)
    with pytest.raises(ValueError, match="no block for the settings"):
        generator.drawn("")


# --- Python


def test_the_examples_on_the_pages_are_the_files() -> None:
    generator = load_generator("draw_examples")
    assert [page for page in PAGES if generator.drawn(text := page.read_text()) != text] == [], (
        "run `python docs/draw_examples.py`"
    )
    shown = {name for page in PAGES for name in re.findall(r"<!-- example: (\S+) -->", page.read_text())}
    assert {"first_batch.py", "sweep.py", "optimiser.py", "webhook_receiver.py", "arq_producer.py"} <= shown


def python_blocks() -> list[tuple[str, str]]:
    return [(of_page(page), block) for page in PAGES for block in blocks(page.read_text(), "python")]


@pytest.mark.parametrize(("page", "source"), python_blocks())
def test_python_compiles_and_what_it_imports_from_us_exists(page: str, source: str) -> None:
    tree = ast.parse(source, page)
    compile(tree, page, "exec")
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module is not None]
    for node in imports:
        if node.module is not None and node.module.split(".")[0] == "tweezer":
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names)


def test_there_is_python_in_the_pages_for_newcomers() -> None:
    assert {"README.md", "docs/guides/python.md"} <= {page for page, _ in python_blocks()}


def test_every_public_name_is_in_the_reference() -> None:
    page = (DOCS / "reference/python.md").read_text()
    missing = [name for name in tweezer.__all__ if not re.search(rf"\b{name}\b", page)]
    assert not missing


def test_errors_suggest_the_same_command_to_install_an_extra_as_the_readme() -> None:
    command = install_command("all").split("`")[1]
    assert f"`{command}`" in (ROOT / "README.md").read_text()


def all_errors(root: type[TweezerError] = TweezerError) -> Iterator[type[TweezerError]]:
    for kind in root.__subclasses__():
        if kind.__name__ in tweezer.__all__:
            yield kind
        yield from all_errors(kind)


def test_every_error_is_in_the_table_with_its_code() -> None:
    rows = table_rows((DOCS / "reference/errors.md").read_text(), "class", "`code`", "retryable", "when")
    told = {row[0].strip("`"): (_SPAN.findall(row[1])[0], row[2]) for row in rows if row[0]}
    for kind in all_errors():
        assert told[kind.__name__] == (kind.code, "yes" if kind.retryable else "no")


def codes_of_errors(path: Path) -> Iterator[str]:
    """Return the codes of errors in a source file: `code = "…"` of a class, and `code="…"` of a call."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.keyword(arg="code", value=value):
                pass
            case ast.Assign(targets=[ast.Name(id="code")], value=value):
                pass
            case _:
                continue
        values = (value.body, value.orelse) if isinstance(value, ast.IfExp) else (value,)
        yield from (each.value for each in values if isinstance(each, ast.Constant) and isinstance(each.value, str))


_NOT_RAISED_BY_THE_LIBRARY = {
    *("execution", "duty_ended", "superseded", "not_durable"),  # within the processes
    *("backup", "installation"),  # by commands and processes; their users read the message
    *("busy", "disabled", "overlaps", "secrets_key", "served", "specs_unchecked"),  # by commands and the HTTP API
}


def test_the_table_of_errors_has_exactly_the_codes_of_the_library() -> None:
    others = [PACKAGE / folder for folder in ("adapters/remote", "api", "cli", "qpu_sim")]
    files = [file for file in PACKAGE.rglob("*.py") if not any(file.is_relative_to(folder) for folder in others)]
    codes = set(itertools.chain.from_iterable(map(codes_of_errors, files)))
    assert codes >= _NOT_RAISED_BY_THE_LIBRARY
    rows = table_rows((DOCS / "reference/errors.md").read_text(), "class", "`code`", "retryable", "when")
    assert {code for row in rows for code in _SPAN.findall(row[1])} == codes - _NOT_RAISED_BY_THE_LIBRARY


def test_every_code_of_a_fault_is_explained() -> None:
    rows = table_rows((DOCS / "reference/errors.md").read_text(), "code", "meaning")
    explained = {code for row in rows for code in _SPAN.findall(row[0])}
    assert explained == {
        *FaultKind,
        "dependency",
        "invalid",
        "lost",
        "quota",
        "reported",
        "result_unavailable",
        "expired",
        "failures",
    }


# --- protocol and adapters


def test_the_protocol_names_every_script() -> None:
    rows = table_rows((DOCS / "explanation/protocol.md").read_text(), "script", "called by", "does")
    told = {name for row in rows for name in _SPAN.findall(row[0])}
    assert told == {file.name for file in (PACKAGE / "store" / "lua").glob("*.lua")}


def test_the_code_that_the_protocol_names_exists() -> None:
    page = (DOCS / "explanation/protocol.md").read_text()
    sources = "\n".join(path.read_text() for kind in ("*.py", "*.lua") for path in PACKAGE.rglob(kind))
    places = re.findall(r"\*Where:\*(.*?)(?=\n\n|\Z)", page, re.DOTALL)
    names = {
        name for place in places for name in spans(place) if re.fullmatch(r"[A-Za-z]\w*\.[a-z_]+|_?[a-z]+[a-z_]+", name)
    }
    assert len(names) > 50
    missing = {name for name in names for part in name.split(".") if not re.search(rf"\b{part}\b", sources)}
    assert not {name for name in missing if not name.endswith(".lua") and not name.startswith("test_")}


def test_the_protocol_names_every_key() -> None:
    rows = table_rows((DOCS / "explanation/protocol.md").read_text(), "key", "type", "holds", "removed")
    assert {name for row in rows for name in _SPAN.findall(row[0])} == {key.value for key in Key}


def test_the_words_of_events_match_the_protocol() -> None:
    for words, meaning in table_rows((DOCS / "explanation/protocol.md").read_text(), "word", "event"):
        types = [event.type for word in _SPAN.findall(words) for event in read_events(UUID(int=0), 1, 0, word)]
        assert types
        named = [name for name in _SPAN.findall(meaning) if "." in name]
        assert not named or named == types


def test_the_adapters_page_names_every_device_and_every_option() -> None:
    page = (DOCS / "guides/adapters.md").read_text()
    devices = table_rows(page, "device", "adapter", "what it is")
    assert {row[0].strip("`"): row[1].strip("`") for row in devices} == dict(DEVICE_KINDS)
    told = [set(_SPAN.findall(row[0])) for row in table_rows(page, "keys", "treatment")[:3]]
    tree = ast.parse((PACKAGE / "adapters" / "emulators" / "pulser_configuration.py").read_text())
    options = {
        node.targets[0].id: ast.literal_eval(node.value.args[0])
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Call)
        and all(isinstance(argument, ast.Set) for argument in node.value.args)
        and node.value.args
    }
    assert told == [options["_COMMON_KEYS"], options["_IGNORED_KEYS"], options["_OPERATOR_KEYS"]]
    own = [
        {
            field.target.id
            for field in node.body
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        }
        for name in ("QutipKeys", "StateVectorKeys", "TensorKeys")
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name == name
    ]
    assert [set(_SPAN.findall(row[1])) for row in table_rows(page, "adapter", "its own keys")] == own
