"""`.ci/check_english.py` finds words that prose avoids, and ignores them in what is not prose."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / ".ci" / "check_english.py"


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_english", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CHECK = load_script()


@pytest.mark.parametrize(
    ("suffix", "text", "line", "words"),
    [
        (".md", "A page.\nThe worker tells Redis.", 2, "tells"),
        (".md", "> A quote that is\n> to be here.", 1, "is to be"),
        (".md", "The `key` is no text.", 1, "is no"),
        (".md", "```sh\necho\n```\nNobody waits.", 4, "Nobody"),
        (".md", "| a cell | whatever it is |", 1, "whatever"),
        (".py", "x = 1  # what became of it", 1, "what became of"),
        (".py", '"""A summary.\n\n    A sentence that is to\n    end here."""', 3, "is to end"),
        (".py", 'error(\n    f"{name} is "\n    "no device"\n)', 2, "is no"),
        (".py", "# a process of its\n# own\ncode()", 1, "of its own"),
        (".py", r'"a line\ntold to others"', 1, "told"),
        (".py", "async def test_a_job_is_told_to_stop() -> None:", 1, "told"),
        (".lua", "local x = 1 -- waits in vain", 1, "in vain"),
        (".yaml", "key: value  # by way of a proxy", 1, "by way of"),
        (".service", "[Unit]\n# stands here", 2, "stands"),
        ("", "all:\n\trun  # the days to come", 2, "to come"),
    ],
)
def test_a_banned_word_in_prose_is_found_at_its_line(suffix: str, text: str, line: int, words: str) -> None:
    assert [hit[:2] for hit in CHECK.find_hits(text, suffix)] == [(line, words)]


@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        (".md", "`tell`, [a link](told.md#said) and https://example.org/tell"),
        (".md", "```sh\ntell whoever\n```"),
        (".md", "There is no worker, and it is no longer there."),
        (".md", "The range is to the left, a standard stand-in does not understand."),
        (".md", "The first paragraph is\n\nno second one"),
        (".py", "tell = said(whatever)"),
        (".py", 'message["heard"] = "told"'),
        (".py", 'f"a {tell(heard)} b"'),
        (".py", '"""Return ``nobody``, or None where it is None."""'),
        (".py", 'pair("it is", "no part of the same text")'),
        (".lua", "local tell = redis.call('told')"),
        (".yaml", "tell: told#heard"),
    ],
)
def test_what_is_not_prose_or_not_banned_is_ignored(suffix: str, text: str) -> None:
    assert CHECK.find_hits(text, suffix) == []


def test_each_pattern_has_advice_and_is_not_refused_by_another_pattern() -> None:
    for advice in CHECK.ADVICE.values():
        assert advice
        assert [hit for hit in CHECK.find_hits(advice, ".md") if "'" not in advice] == []


def test_a_finding_is_printed_with_file_line_and_advice_and_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text("One line.\nA job is told to stop.\n")
    monkeypatch.setattr(CHECK, "list_files", lambda _paths: [page])
    assert CHECK.main([]) == 1
    assert capsys.readouterr().out == f"{page}:2: 'told': {CHECK.ADVICE['tells?|told|telling']}\n"
    page.write_text("A job is asked to stop.\n")
    assert CHECK.main([]) == 0
