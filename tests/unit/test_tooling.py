"""The Makefile, the pre-commit hooks and the workflow run commands that exist, and the same checks as `.ci/run`."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "ruff": "ruff",
    "mypy": "mypy",
    "lint-imports": "import-linter",
    "mkdocs": "mkdocs",
    "pytest": "pytest",
}
"""Programs that the commands may call, and the packages that install them."""


def read_make_recipes() -> dict[str, list[str]]:
    """Return the commands of each target, as the shell would get them."""
    text = (ROOT / "Makefile").read_text("utf-8")
    variables = dict(re.findall(r"(?m)^(\w+) \?= (.*)$", text))
    recipes = dict(re.findall(r"(?m)^([\w-]+):.*\n((?:\t.*\n)*)", text))
    return {
        target: [re.sub(r"\$\((\w+)\)", lambda match: variables[match[1]], line.strip()) for line in body.splitlines()]
        for target, body in recipes.items()
    }


def read_yaml(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text("utf-8"))


def read_hooks() -> list[dict[str, Any]]:
    (repository,) = read_yaml(".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    hooks: list[dict[str, Any]] = repository["hooks"]
    return hooks


def list_declared_packages() -> set[str]:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    return {Requirement(entry).name for entries in extras.values() for entry in entries}


def check_command(command: str) -> None:
    """Check that a command calls a script of this repository, or a program of a declared dependency."""
    words = shlex.split(command)
    if words[0] == "python":
        words = words[2:] if words[1] == "-m" else words[1:]
    elif words[0].startswith(".ci/"):
        assert (ROOT / words[0]).stat().st_mode & 0o111, f"{words[0]} is not executable"
    if words[0] in PACKAGES:
        assert PACKAGES[words[0]] in list_declared_packages()
    else:
        assert (ROOT / words[0]).is_file(), f"{words[0]} does not exist"


@pytest.mark.parametrize(("target", "commands"), read_make_recipes().items())
def test_a_target_of_the_makefile_runs_commands_that_exist(target: str, commands: list[str]) -> None:
    assert commands, target
    for command in commands:
        check_command(command)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(("target", "commands"), read_make_recipes().items())
def test_make_runs_the_commands_of_a_target(target: str, commands: list[str]) -> None:
    dry_run = ["make", "--dry-run", "--always-make", "--no-print-directory", target]
    printed = subprocess.check_output(dry_run, cwd=ROOT, text=True, timeout=60)
    assert printed.splitlines()[-len(commands) :] == commands


def test_make_check_runs_what_ci_runs() -> None:
    ci = (ROOT / ".ci" / "run").read_text("utf-8")
    assert [command for command in read_make_recipes()["check"] if f"\n{command}" not in ci] == []


@pytest.mark.parametrize("hook", read_hooks(), ids=lambda hook: hook["id"])
def test_a_pre_commit_hook_runs_a_check_of_the_makefile_with_installed_tools(hook: dict[str, Any]) -> None:
    assert hook["language"] == "system"
    check_command(hook["entry"])
    program = hook["entry"].replace(" --force-exclude", "")
    assert any(command.startswith(program) for command in read_make_recipes()["check"])


def test_the_workflow_calls_the_ci_scripts() -> None:
    workflow = read_yaml(".github/workflows/ci.yml")
    called = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    scripts = [command for command in called if command.startswith(".ci/")]
    assert scripts == [".ci/run", ".ci/full"]
    for script in scripts:
        check_command(script)


def test_the_workflow_uses_actions_by_major_version_and_the_oldest_python() -> None:
    workflow = read_yaml(".github/workflows/ci.yml")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    for job in workflow["jobs"].values():
        used = {step["uses"]: step.get("with", {}) for step in job["steps"] if "uses" in step}
        assert all(re.fullmatch(r"actions/[\w-]+@v\d+", action) for action in used)
        (python,) = [arguments["python-version"] for arguments in used.values() if "python-version" in arguments]
        assert f">={python}" == project["requires-python"]


def test_the_programs_that_the_checks_need_are_installed() -> None:
    folder = str(Path(sys.executable).parent)
    for program in ("ruff", "mypy", "lint-imports"):
        assert shutil.which(program, path=folder), f"{program} is not beside {sys.executable}"
