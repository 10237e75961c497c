"""Logs have one format for all loggers, and contain no secrets."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
import structlog
from tests.support.waiting import until

from tweezer import logs


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    level = root.level
    yield
    for handler in [known for known in root.handlers if isinstance(known, logs._Handler)]:
        root.removeHandler(handler)
    root.setLevel(level)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_json_line_has_time_level_logger_event_and_bound_values(stream: io.StringIO) -> None:
    logs.configure("json", stream=stream)
    batch = UUID("0193b4a0-0000-7000-8000-000000000001")
    structlog.get_logger("tweezer.worker").bind(batch=batch, token=7).info("ticket.taken", jobs=12)
    (line,) = lines(stream)
    stamped = datetime.fromisoformat(line.pop("timestamp"))
    assert stamped.tzinfo == UTC
    assert line == {
        "level": "info",
        "logger": "tweezer.worker",
        "event": "ticket.taken",
        "batch": str(batch),
        "token": 7,
        "jobs": 12,
    }


def test_context_is_on_lines_of_structlog_and_of_the_standard_library(stream: io.StringIO) -> None:
    logs.configure("json", stream=stream)
    with structlog.contextvars.bound_contextvars(job="j1", token=3):
        structlog.get_logger("tweezer").info("settled")
        logging.getLogger("arq.jobs").info("%s ran", "cron:sweep", extra={"delay_s": 0.5})
    ours, foreign = lines(stream)
    assert (ours["job"], ours["token"]) == (foreign["job"], foreign["token"]) == ("j1", 3)
    assert foreign["event"] == "cron:sweep ran"
    assert foreign["logger"] == "arq.jobs"
    assert foreign["delay_s"] == 0.5
    assert set(ours) <= set(foreign)


@pytest.mark.parametrize("name", ["arq", "uvicorn", "uvicorn.access"])
def test_handlers_of_libraries_are_removed(name: str, stream: io.StringIO) -> None:
    library = logging.getLogger(name)
    library.addHandler(logging.StreamHandler(io.StringIO()))
    library.propagate = False
    logs.configure("json", stream=stream)
    library.info("hello")
    assert [line["event"] for line in lines(stream)] == ["hello"]
    assert not library.handlers


def test_the_coloured_copy_of_a_message_of_uvicorn_is_not_logged(stream: io.StringIO) -> None:
    logs.configure("json", stream=stream)
    logging.getLogger("uvicorn.error").info("Started [%d]", 1, extra={"color_message": "Started [\x1b[36m%d\x1b[0m]"})
    (line,) = lines(stream)
    assert line["event"] == "Started [1]"
    assert "color_message" not in line


def test_the_level_filters_structlog_and_the_standard_library(stream: io.StringIO) -> None:
    logs.configure("json", "WARNING", stream=stream)
    structlog.get_logger("tweezer").info("quiet")
    logging.getLogger("arq.worker").info("quiet")
    structlog.get_logger("tweezer").warning("loud")
    logging.getLogger("arq.worker").warning("loud")
    assert [line["event"] for line in lines(stream)] == ["loud", "loud"]


def test_configuring_again_replaces_the_handler_and_reaches_existing_loggers(stream: io.StringIO) -> None:
    log = structlog.get_logger("tweezer")
    logs.configure("json", stream=io.StringIO())
    log.info("first")
    logs.configure("json", "DEBUG", stream=stream)
    log.debug("second")
    assert [line["event"] for line in lines(stream)] == ["second"]


@pytest.mark.parametrize(
    "key",
    ["password", "PASSWORD", "webhook_secret", "secret", "api_key", "api-keys", "Authorization", "access_token"],
)
def test_a_key_that_names_a_secret_shows_no_value(key: str, stream: io.StringIO) -> None:
    logs.configure("json", stream=stream)
    structlog.get_logger("tweezer").info("called", **{key: "hunter2"}, headers=[{key: "hunter2"}])
    assert "hunter2" not in stream.getvalue()
    (line,) = lines(stream)
    assert line[key] == logs.REDACTED


def test_the_fencing_token_and_similar_keys_are_shown(stream: io.StringIO) -> None:
    logs.configure("json", stream=stream)
    structlog.get_logger("tweezer").info("settled", token=42, idempotency_key="k", secretary="Ada")
    (line,) = lines(stream)
    assert (line["token"], line["idempotency_key"], line["secretary"]) == (42, "k", "Ada")


@pytest.mark.parametrize("format", ["json", "console"])
def test_credentials_in_urls_are_masked_everywhere(format: logs.LogFormat, stream: io.StringIO) -> None:
    logs.configure(format, stream=stream)
    url = "redis://user:hunter2@redis.lab:6379/0"
    log = structlog.get_logger("tweezer")
    log.info("connecting", url=url, also=[url], inside={"redis_url": url})
    prose = f"connecting to {url}"
    log.info(prose)
    logging.getLogger("arq").warning("lost %s", url)
    try:
        raise ConnectionError(f"cannot reach {url}")
    except ConnectionError:
        log.exception("failed", hint="rediss://:hunter2@redis.lab")
    text = stream.getvalue()
    assert "hunter2" not in text
    assert text.count("redis://***@redis.lab:6379/0") >= 5
    assert "ConnectionError" in text


@pytest.mark.parametrize("format", ["json", "console"])
def test_tickets_and_signatures_in_urls_are_masked(format: logs.LogFormat, stream: io.StringIO) -> None:
    logs.configure(format, stream=stream)
    log = structlog.get_logger("tweezer")
    log.warning("refused", url="http://h/api/v2/events/stream?after=now&ticket=hush1&type=a", ticket="t7")
    log.warning("refused", path="/api/v1/jobs/1/results?expires=1&signature=hush2")
    text = stream.getvalue()
    assert "hush" not in text
    assert all(shown in text for shown in ("after=now&ticket=***&type=a", "expires=1&signature=***", "t7"))


def test_text_that_only_resembles_credentials_is_unchanged(stream: io.StringIO) -> None:
    logs.configure("json", stream=stream)
    structlog.get_logger("tweezer").info("sent", url="http://lab.example:8000/a@b", to="ada@lab.example")
    (line,) = lines(stream)
    assert (line["url"], line["to"]) == ("http://lab.example:8000/a@b", "ada@lab.example")


def test_auto_is_readable_in_a_terminal_and_json_elsewhere(
    stream: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal = Terminal()
    logs.configure("auto", stream=terminal)
    structlog.get_logger("tweezer").info("ticket.taken", jobs=12)
    assert "ticket.taken" in terminal.getvalue()
    assert not terminal.getvalue().startswith("{")
    assert "\x1b[" in terminal.getvalue()
    logs.configure("auto", stream=stream)
    structlog.get_logger("tweezer").info("ticket.taken")
    assert lines(stream)[0]["event"] == "ticket.taken"


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    terminal = Terminal()
    logs.configure("console", stream=terminal)
    structlog.get_logger("tweezer").info("ticket.taken")
    assert "\x1b[" not in terminal.getvalue()


# -- events of jobs, at a bounded pace ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("indices", "text"),
    [
        ([], ""),
        ([3], "3"),
        ([3, 4], "3-4"),
        (range(100_000), "0-99999"),
        ([0, 1, 2, 7, 9, 10], "0-2,7,9-10"),
        (range(0, 10, 2), "0,2,4,6,8"),
        (range(0, 100, 2), "0,2,4,6,8,…"),
    ],
)
def test_indices_are_joined_into_ranges(indices: list[int], text: str) -> None:
    assert logs.join_ranges(indices) == text


async def test_few_events_of_jobs_have_a_line_each(stream: io.StringIO) -> None:
    logs.configure("json", stream=stream)
    paced = logs.PacedLog(structlog.get_logger("tweezer"))
    paced.info("job.done", [3], seconds=1.5)
    paced.warning("job.failed", [4, 5], cause="user")
    done, failed = lines(stream)
    assert (done["event"], done["level"], done["jobs"], done["seconds"]) == ("job.done", "info", "3", 1.5)
    assert (failed["event"], failed["level"], failed["jobs"]) == ("job.failed", "warning", "4-5")


async def test_ten_thousand_events_become_a_few_lines_and_a_sum(stream: io.StringIO) -> None:
    logs.configure("json", stream=stream)
    paced = logs.PacedLog(structlog.get_logger("tweezer"))
    with structlog.contextvars.bound_contextvars(device="EMU", batch="b", lane=1):
        for index in range(10_000):
            paced.info("job.done", [index], seconds=0.0)
        paced.warning("job.failed", [10_000])

    await until(lambda: lines(stream)[-1]["event"] == "jobs.not_logged", "the sum")
    *others, last = lines(stream)
    done = [line for line in others if line["event"] == "job.done"]
    assert len(done) < 200
    assert last["job.done"] == 10_000 - len(done)
    assert last["device"] == "EMU"
    assert "batch" not in last
    assert "job.failed" in [line["event"] for line in others], "many events of one kind do not hide another"


async def test_a_summary_is_followed_by_lines_again(stream: io.StringIO) -> None:
    logs.configure("json", stream=stream)
    paced = logs.PacedLog(structlog.get_logger("tweezer"))
    for _ in range(1000):
        paced.info("job.done", [0])
    await until(lambda: lines(stream)[-1]["event"] == "jobs.not_logged", "the sum")

    def is_logged() -> bool:
        paced.info("job.done", [7])
        return lines(stream)[-1].get("jobs") == "7"

    await until(is_logged, "a line")
