"""Make calls of one of Pasqal's clients for a test: for each JSON object on a line of stdin, print another.

Runs in the client's own environment, which lacks Tweezer and its tests. A call specifies a function of a module beside
this one, the access to the server, and arguments.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from typing import Any

from access import Access


def answer(call: dict[str, Any]) -> dict[str, Any]:
    """Make a call; return its result or its error, with the answered requests and the seconds it took."""
    access = Access(**call["access"])
    began = time.monotonic()
    try:
        module, _, function = call["function"].partition(".")
        outcome = {"answer": getattr(importlib.import_module(module), function)(access, **call["arguments"])}
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # some of the client's errors are not subclasses of Exception
        outcome = {"error": {"type": type(error).__name__, "message": str(error)}}
    return {**outcome, "requests": access.requests, "took_s": time.monotonic() - began}


def main() -> None:
    """Answer until the input ends. Output of libraries goes to stderr."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        replies.write(json.dumps(answer(json.loads(line)), default=str) + "\n")


if __name__ == "__main__":
    main()
