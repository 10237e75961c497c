"""Several processes of one command, which are kept running together."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from tweezer.cli.local.child import Child
from tweezer.cli.local.interrupts import Interrupts
from tweezer.model.errors import TweezerError
from tweezer.settings import Settings, environment_of

_LOOK_S = 0.2
_READY_S = 5.0  # a process that has lived for so long has started
_STOP_S = 25.0


def keep_several(arguments: list[str], settings: Settings, count: int, *, say: Callable[[str], None]) -> None:
    """Keeps so many processes of a command running until told to stop. Raises TweezerError when one dies at its start,
    or again and again."""
    given = {
        "redis.url": settings.redis.url,
        "namespace": settings.namespace,
        "project_id": settings.project_id,
        "data_dir": str(settings.data_dir.absolute()),
        "database.url": settings.locate_ledger().url,
        "webhook.allow": settings.webhook.allow,
    }
    environment = os.environ | environment_of(given)
    children = [Child(arguments, environment, stop_s=_STOP_S, log=None, say=say) for _ in range(count)]
    with Interrupts() as interrupts:
        try:
            for child in children:
                child.start()
            looked_s = 0.0
            while not interrupts.came.wait(_LOOK_S):
                looked_s += _LOOK_S
                for child in children:
                    child.ready = looked_s >= _READY_S
                    if child.failure is not None:
                        raise TweezerError(child.failure, code="child_died")
        finally:
            stopping = [threading.Thread(target=child.stop, args=(lambda: interrupts.count > 1,)) for child in children]
            for thread in stopping:
                thread.start()
            for thread in stopping:
                thread.join()
