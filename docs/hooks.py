# ruff: noqa: INP001  # mkdocs loads it by its path
"""Fill the generated parts of the site, and refuse scripts, styles, fonts and images from other hosts.

``<!-- generated: name -->`` in a page is replaced by the block of that name when the site is built.
"""

from __future__ import annotations

import logging
import posixpath
import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import draw_cli
import draw_http_api

log = logging.getLogger("mkdocs.hooks")  # `mkdocs build --strict` fails on a warning

_GENERATED = re.compile(r"<!-- generated: (?P<name>[a-z ]+) -->")
_EXTERNAL = re.compile(r"(?:https?:)?//")
_LINK = re.compile(r"\[(?P<text>[^\]]+)\]\((?P<to>\.\./[^)\s]+)\)")
_STYLE = re.compile(r"(?:@import\s+|url\()\s*[\"']?(?:https?:)?//")
_LINKS = {"stylesheet", "icon", "preload", "prefetch", "preconnect", "dns-prefetch", "modulepreload", "manifest"}


@cache
def load_blocks() -> dict[str, str]:
    """Return all generated blocks by name."""
    return draw_cli.draw() | draw_http_api.draw()


def fill(markdown: str) -> str:
    """Return the page with its generated blocks. Raises KeyError for an unknown one."""
    return _GENERATED.sub(lambda match: load_blocks()[match["name"]], markdown)


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Fill a page, for mkdocs. Links to files of the repository that are not part of the site become plain text."""
    folder = posixpath.dirname(page.file.src_uri)

    def keep_inside(match: re.Match[str]) -> str:
        return match["text"] if posixpath.normpath(posixpath.join(folder, match["to"])).startswith("..") else match[0]

    if page.parent is None:  # a page without a section: its navigation would have one entry
        page.meta.setdefault("hide", ["navigation"])
    if page.file.src_uri == "reference/http-api/index.md":
        markdown = draw_http_api.link_routes(markdown)
    return fill(_LINK.sub(keep_inside, markdown))


def on_post_build(config: Any) -> None:
    """Report everything that a built page would load from another host, for mkdocs."""
    for file in sorted(Path(config.site_dir).rglob("*")):
        if file.suffix == ".html":
            finder = ResourceFinder()
            finder.feed(file.read_text(encoding="utf-8"))
            for url in finder.external:
                log.warning("%s loads %s; the site must not load anything from other hosts", file, url)
        elif file.suffix == ".css" and _STYLE.search(file.read_text(encoding="utf-8")):
            log.warning("%s loads a style, font or image from another host", file)


class ResourceFinder(HTMLParser):
    """Finds what a page loads from other hosts by itself; links that a reader follows are fine."""

    def __init__(self) -> None:
        super().__init__()
        self.external: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        urls = [found.get("src", ""), *re.split(r",\s*", found.get("srcset", ""))]
        if tag == "link" and _LINKS & set(found.get("rel", "").split()):
            urls.append(found.get("href", ""))
        if tag == "object":
            urls.append(found.get("data", ""))
        if _STYLE.search(found.get("style", "")):
            urls.append(found["style"].partition("(")[2].strip("\"')"))
        self.external += [url for url in urls if _EXTERNAL.match(url)]
        if "mermaid" in found.get("class", "").split():
            self.external.append("https://unpkg.com/mermaid")  # the theme loads it for such a block
