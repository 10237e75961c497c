"""The code of docs/guides/pasqal-clients.md, run unchanged but for the URL, the key and the project."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from tests.compat.cloud import PROJECT, Cloud

pytestmark = pytest.mark.compat

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "pasqal-clients.md"
BLOCKS = re.findall(r"^## ([^\n]+)$(?:(?!^## ).)*?^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(("heading", "code"), BLOCKS, ids=[heading for heading, _ in BLOCKS])
def test_the_code_of_the_page_works(cloud: Cloud, heading: str, code: str) -> None:
    stack = "B" if heading == "Older stacks" else "A"
    assert PROJECT in code
    code = code.replace("http://127.0.0.1:8000", cloud.base).replace("twz_abcdefgh2345_…", cloud.key)
    python = os.environ[f"TWEEZER_COMPAT_{stack}"]
    ran = subprocess.run([python, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    assert re.search(r"'[01]{2}': \d+", ran.stdout), ran.stdout


def test_the_page_has_code_for_each_stack() -> None:
    assert [heading for heading, _ in BLOCKS] == ["pasqal-cloud", "Pulser's backends", "Older stacks"]
