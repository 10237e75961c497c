"""The benchmarks run and report their figures; the tests do not check whether a target is met."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(program: str, *arguments: str) -> Any:
    """Run a benchmark and return the object in its last line."""
    pytest.importorskip("uvloop", reason="needs the extra tweezer[bench]")
    ran = subprocess.run(
        [sys.executable, str(BENCHMARKS / program), *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.mark.redis
@pytest.mark.slow
def test_dispatch_ends_with_one_object_of_figures_and_setup(redis_server: object) -> None:
    told = run("dispatch.py", "--quick", "--json")
    assert set(told) == {"figures", "setup"}
    assert len(told["figures"]) == 10
    for figure in told["figures"]:
        assert set(figure) == {"name", "value", "unit", "target", "met"}
        assert figure["value"] > 0
    assert {"python", "redis", "cores", "rounds", "versions"} <= set(told["setup"])


@pytest.mark.redis
@pytest.mark.slow
def test_chain_measures_four_figures(redis_server: object) -> None:
    told = run("chain.py", "--quick", "--json")
    assert len(told["figures"]) == 4
    assert all(figure["value"] > 0 for figure in told["figures"])


@pytest.mark.redis
@pytest.mark.slow
def test_peers_end_with_one_object_of_figures_and_setup(redis_server: object, tmp_path: Path) -> None:
    told = run("peers.py", "--quick", "--json", "--only", "arq", "--environments", str(tmp_path))
    assert len(told["figures"]) == 10
    assert all(figure["value"] > 0 for figure in told["figures"])
    assert set(told["setup"]["queues"]) == {"tweezer", "arq"}


@pytest.mark.redis
@pytest.mark.slow
def test_growth_draws_a_line_of_each_form_and_step_for_each_parameter(redis_server: object, tmp_path: Path) -> None:
    picture = tmp_path / "growth.svg"
    told = run("growth.py", "--quick", "--json", "--only", "jobs", "--only", "projects", "--plot", str(picture))
    assert len(told["figures"]) == 4
    assert all(figure["value"] > 0 for figure in told["figures"])
    assert picture.read_text().count("<polyline ") == 8


@pytest.mark.redis
@pytest.mark.postgres
@pytest.mark.slow
def test_ledger_ends_with_one_object_of_figures_and_setup(redis_server: object, postgres_server: object) -> None:
    told = run("ledger.py", "--quick", "--json", "--jobs", "5000")
    assert len(told["figures"]) == 40
    assert all(figure["value"] > 0 for figure in told["figures"])
    assert told["setup"]["jobs"] == 5000


@pytest.mark.redis
@pytest.mark.slow
def test_http_path_ends_with_one_object_of_figures_and_setup(redis_server: object) -> None:
    told = run("http_path.py", "--quick", "--json")
    assert len(told["figures"]) == 7
    assert all(figure["value"] > 0 for figure in told["figures"])


@pytest.mark.redis
@pytest.mark.slow
@pytest.mark.parametrize(
    ("parts", "figures"), [(("rate", "dispatch"), 2), (("latency", "neighbours"), 2), (("cut", "restart"), 4)]
)
def test_webhooks_ends_with_one_object_of_figures_and_setup(
    redis_server: object, parts: tuple[str, ...], figures: int
) -> None:
    little = ("--rounds", "1", "--batches", "20", "--samples", "5", "--seconds", "1", "--cuts", "2")
    told = run("webhooks.py", "--json", *little, *(f"--only={part}" for part in parts))
    assert len(told["figures"]) == figures
    assert all(figure["value"] > 0 for figure in told["figures"])
    assert told["setup"]["ledger"] == "sqlite"


@pytest.mark.emulator
@pytest.mark.slow
def test_prepare_ends_with_one_object_of_figures_and_setup() -> None:
    told = run("prepare.py", "--quick", "--json")
    assert [figure["unit"] for figure in told["figures"]] == ["x"]
    assert told["figures"][0]["value"] > 0
    assert set(told["setup"]["measured"]) == {"prepare, ms", "bare Pulser, ms"}


@pytest.mark.slow
def test_startup_ends_with_one_object_of_figures_and_setup() -> None:
    told = run("startup.py", "--quick", "--json")
    assert [figure["unit"] for figure in told["figures"]] == ["ms"] * 5
    assert all(figure["value"] > 0 for figure in told["figures"])
