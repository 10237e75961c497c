"""Check that prose is plain English: docs, strings, docstrings and comments avoid the words of the table below.

    python .ci/check_english.py [PATH...]

What is not prose is masked first: code, code spans, links, placeholders of f-strings, and strings without white space,
which are names or words of the wire format.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

SCOPE = ("*.md", "docs", "src", "tests", "deploy", "examples", "benchmarks", ".ci", ".github", "Makefile", "*.toml")
EXCLUDED = {
    ".ci/check_english.py": "it contains the table",
    "tests/unit/test_english.py": "its examples contain the words",
    "deploy/constraints": "a program writes these files",
    "src/tweezer/api/pages/files/swagger-ui": "files of another project",
}
EXCLUDED_TYPES = {".json", ".ipynb"}

# Each pattern matches whole words; a space in it matches white space, including one line break.
ADVICE = {
    r"tells?|told|telling": "use report, send, return or show",
    r"hears?|heard|hearing": "use receive, read or notice",
    r"says?|said|saying": "use state, specify, show, report or contain",
    r"stands?|stood|standing": "use be, remain, wait, mean or represent",
    r"(?<!there\s)(is|are|was|were) no(?! (longer|more|less|fewer|later|earlier|older|newer|different)\b)": (
        "use 'is not a ...', 'has no ...' or 'there is no ...'"
    ),
    r"(is|are|was|were) (?-i:none)": "use 'there is no ...' or 'is not a ...'",
    r"(?-i:none) (lives?|runs|running)": "use 'no worker is running'",
    r"to come": "use next, later or future",
    r"(is|are|was|were) to(?! (an?|the|this|that|these|each|every|all|its?|their|your|one|another|no|x+)\b) [a-z]+": (
        "use must, should, will or can"
    ),
    r"of ours": "use 'our ...' or name the owner",
    r"of (its|their|one's|your|our|my|his|her)( very)? own": "use 'its own ...' or 'a separate ...'",
    r"of (former|olden) days": "use earlier or old",
    r"who(so)?ever|whomever|what(so)?ever|whyever": "name the person or the thing, or use any",
    r"thereof|therein|thereby|thereto|wherein|whereof|whereby|whereupon|hereby": "use a plain phrase",
    r"who (asks|reads|writes|calls)": "use the caller, the reader or the user",
    r"(for|to|by|of|with|from|than) who": "use 'for users who ...' or name the person",
    r"what (became|becomes|becoming|came|comes) of": "use the outcome or the result of",
    r"lives|lived|living": "use is, runs, running, or live (as in live worker)",
    r"pass(es|ed|ing)? over": "use ignore or skip",
    r"car(es?|ed|ing) for": "use manage, maintain or handle",
    r"in vain": "use 'without effect' or 'unsuccessfully'",
    r"be it": "use whether or if",
    r"as long as is set": "name the setting",
    r"by way of": "use through, via or with",
    r"nobody|somebody": "use no one or someone for people, and 'no client', 'another process' for programs",
    r"so to speak": "leave it out",
}
GAP = r"(?:[^\S\n]+|[^\S\n]*\n[^\S\n]*)"
PATTERNS = {
    re.compile(rf"(?<![\w'’-])(?:{words.replace(' ', GAP)})(?![\w’-])", re.IGNORECASE): advice
    for words, advice in ADVICE.items()
}

NOT_PROSE = "\x00"
FENCE = re.compile(r"^( *)(```+|~~~+).*?^ *\2 *$", re.MULTILINE | re.DOTALL)
CODE_SPAN = re.compile(r"(?<!`)(`+)(?!`)(?:(?!\n\s*\n).)+?(?<!`)\1(?!`)", re.DOTALL)
LINK = re.compile(r"(?<=\])\([^)\s]*\)|https?://[^\s)>]+|<!--.*?-->", re.DOTALL)
PLACEHOLDER = re.compile(r"\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}")
STRING = re.compile(r"(?P<prefix>[a-z]*)(?P<quote>\"\"\"|'''|\"|')(?P<body>.*)(?P=quote)", re.DOTALL | re.IGNORECASE)
Place = tuple[int, int]


def mask(pattern: re.Pattern[str], text: str, with_: str = "x") -> str:
    """Replace each character of each match, and keep the line breaks."""
    return pattern.sub(lambda match: re.sub(r"[^\n]", with_, match[0]), text)


def keep_markdown(text: str) -> str:
    text = mask(LINK, mask(CODE_SPAN, mask(FENCE, text, NOT_PROSE)))
    return re.sub(r"^[ >]+", lambda match: " " * len(match[0]), text, flags=re.MULTILINE)


def keep_comments(text: str, mark: str) -> str:
    lines = []
    for line in text.split("\n"):
        code, space, prose = re.match(rf"(.*?)((?:^|(?<=\s)){mark}+!?|$)(.*)", line).groups()  # type: ignore[union-attr]
        lines.append(re.sub(r"\S", NOT_PROSE, code) + " " * len(space) + prose)
    return mask(LINK, mask(CODE_SPAN, "\n".join(lines)))


def keep_python(text: str) -> str:
    """Keep comments, names of tests, and strings; those that Python concatenates remain one text."""
    offsets = [0]
    for line in text.splitlines(keepends=True):
        offsets.append(offsets[-1] + len(line))
    kept = list(re.sub(r"\S", NOT_PROSE, text))
    for first, last in find_strings(text):
        begin, end = offsets[first[0] - 1] + first[1], offsets[last[0] - 1] + last[1]
        kept[begin:end] = keep_token(text[begin:end])
    for name in re.finditer(r"\bdef (test_\w+)", text):
        kept[name.start(1) : name.end(1)] = name[1].replace("_", " ")
    return mask(LINK, mask(CODE_SPAN, "".join(kept)))


def find_strings(text: str) -> Iterator[tuple[Place, Place]]:
    """Yield the begin and the end of each comment and string; since Python 3.12 an f-string is several tokens."""
    opening, closing = getattr(tokenize, "FSTRING_START", None), getattr(tokenize, "FSTRING_END", None)
    opened: list[Place] = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == opening:
            opened.append(token.start)
        elif token.type == closing:
            start = opened.pop()
            if not opened:
                yield start, token.end
        elif token.type in {tokenize.STRING, tokenize.COMMENT} and not opened:
            yield token.start, token.end


def keep_token(token: str) -> str:
    match = STRING.fullmatch(token)
    if match is None:
        return token.replace("#", " ", 1)
    body, prefix = match["body"], match["prefix"].lower()
    if not re.search(r"\s", body):
        return NOT_PROSE * len(token)
    if "f" in prefix:
        body = mask(PLACEHOLDER, body)
    if "r" not in prefix:
        body = re.sub(r"\\[^\n]", "  ", body)
    quote = " " * len(match["quote"])
    return " " * len(prefix) + quote + body + quote


def keep_prose(text: str, suffix: str) -> str:
    """Mask everything in a file but its prose; each character keeps its place."""
    if suffix == ".md":
        return keep_markdown(text)
    return keep_python(text) if suffix == ".py" else keep_comments(text, "--" if suffix == ".lua" else "#")


def find_hits(text: str, suffix: str) -> list[tuple[int, str, str]]:
    """Return the line, the words and the advice of each finding in a file."""
    prose = keep_prose(text, suffix)
    hits = [(match, advice) for pattern, advice in PATTERNS.items() for match in pattern.finditer(prose)]
    hits.sort(key=lambda hit: hit[0].start())
    return [(prose.count("\n", 0, match.start()) + 1, " ".join(match[0].split()), advice) for match, advice in hits]


def list_files(paths: list[str]) -> list[Path]:
    command = ["git", "ls-files", "-co", "--exclude-standard", "--", *paths]
    files = [Path(name) for name in subprocess.check_output(command, text=True).splitlines()]
    return [
        file
        for file in files
        if file.is_file() and file.suffix not in EXCLUDED_TYPES and not file.as_posix().startswith(tuple(EXCLUDED))
    ]


def main(paths: list[str]) -> int:
    found = False
    for file in list_files(paths or list(SCOPE)):
        for line, words, advice in find_hits(file.read_text(encoding="utf-8"), file.suffix):
            print(f"{file}:{line}: '{words}': {advice}")
            found = True
    return int(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
