"""Pasqal's clients for tests, each in its own environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_SERVE = Path(__file__).parent / "scripts" / "serve.py"


class ClientError(Exception):
    """An error that the client raised. ``kind`` is the name of its class."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind

    @property
    def sentence(self) -> str:
        """Return its first line, which a user reads first."""
        return str(self).partition("\n")[0]


class Client:
    """An interpreter that calls the client by scripts until the end of the session.

    requests: the answered requests of the last call, in order. took_s: the duration of the last call.
    """

    def __init__(self, python: str, name: str) -> None:
        self.name = name
        self.requests: list[dict[str, Any]] = []
        self.took_s = 0.0
        self.access: Mapping[str, Any] = {}
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("TWEEZER_", "PYTHON"))}
        self._process = subprocess.Popen(
            [python, "-W", "ignore", str(_SERVE)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=sys.__stderr__,
            env=environment,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def call(self, function: str, *, through: Mapping[str, Any] | None = None, **arguments: Any) -> Any:
        """Call a function of a script; return its result or raise ClientError. ``through`` changes the access."""
        call = {"function": function, "access": {**self.access, **(through or {})}, "arguments": arguments}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(call) + "\n")
        self._process.stdin.flush()
        reply = json.loads(self._process.stdout.readline() or '{"error": {"type": "ended", "message": ""}}')
        self.requests = reply.get("requests", [])
        self.took_s = reply.get("took_s", 0.0)
        if error := reply.get("error"):
            raise ClientError(error["type"], error["message"])
        return reply["answer"]

    def paths(self, *, ending: str = "") -> list[str]:
        """Return the paths of the last call's requests that end with this text."""
        return [request["path"] for request in self.requests if request["path"].endswith(ending)]
