"""Misbehaviours of a simulated QPU. With the same seed it misbehaves in the same way."""

from __future__ import annotations

import functools
import math
import random
from typing import Annotated

import msgspec
from msgspec import Meta

from tweezer.model.errors import InvalidInput

Probability = Annotated[float, Meta(ge=0, le=1)]
_AtLeast0 = Annotated[float, Meta(ge=0)]


class Spread(msgspec.Struct, frozen=True):
    """A random duration: uniform from ``low_s`` to ``high_s``, or exponential with the mean ``mean_s``."""

    low_s: float = 0.0
    high_s: float = 0.0
    mean_s: float | None = None

    def draw_s(self, chance: random.Random) -> float:
        return chance.uniform(self.low_s, self.high_s) if self.mean_s is None else chance.expovariate(1 / self.mean_s)


class Misbehaviours(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The misbehaviours. All are off by default.

    job_seconds: How long jobs run, see :func:`read_spread`. shot_seconds: Added for each run. time_scale: Multiplies
    both.
    answer_seconds: How long answers are delayed after the request was executed. down: When the machine is ``DOWN``:
    pairs of begin and end, in seconds after its start. All others are probabilities:

    * of a job: fail (it ends in ``ERROR``), hang (it runs until it is cancelled), late_cancels (a cancel is refused
      with 3003, and the job continues);
    * of a submit or cancel: lose_replies (it is executed, but the connection is cut before the answer), submit_errors
      (500, not executed), turn_away (404 with a page as from a proxy, not executed);
    * of a read: read_errors (500).
    """

    seed: int = 0
    job_seconds: str = "0"
    shot_seconds: _AtLeast0 = 0.0
    time_scale: _AtLeast0 = 1.0
    answer_seconds: str = "0"
    down: tuple[tuple[float, float], ...] = ()
    fail: Probability = 0.0
    hang: Probability = 0.0
    lose_replies: Probability = 0.0
    submit_errors: Probability = 0.0
    turn_away: Probability = 0.0
    read_errors: Probability = 0.0
    late_cancels: Probability = 0.0

    def __post_init__(self) -> None:
        read_spread(self.job_seconds, "job_seconds")
        read_spread(self.answer_seconds, "answer_seconds")

    def happens(self, probability: float, kind: str, number: int) -> bool:
        """Return whether a misbehaviour affects the request or job with this number. It depends only on the seed."""
        return probability > 0 and self._chance(kind, number).random() < probability

    def lasts_s(self, runs: int, uid: int) -> float:
        """Return for how many seconds a job runs."""
        own_s = read_spread(self.job_seconds, "job_seconds").draw_s(self._chance("job", uid))
        return self.time_scale * (own_s + runs * self.shot_seconds)

    def answers_in_s(self, number: int) -> float:
        """Return by how many seconds the answer to a request is delayed."""
        if self.answer_seconds == "0":
            return 0.0
        return read_spread(self.answer_seconds, "answer_seconds").draw_s(self._chance("answer", number))

    def is_down(self, after_s: float) -> bool:
        """Return whether the machine is in a ``down`` window this many seconds after its start."""
        return any(begin <= after_s < end for begin, end in self.down)

    def _chance(self, kind: str, number: int) -> random.Random:
        return random.Random(f"{self.seed}:{kind}:{number}")


@functools.lru_cache(maxsize=64)
def read_spread(text: str, field: str) -> Spread:
    """Parse ``2`` (seconds), ``0.5:3`` (uniform) or ``exp:1.5`` (exponential, by its mean). Raises InvalidInput."""
    first, _, second = text.partition(":")
    try:
        if first == "exp" and 0 < float(second) < math.inf:
            return Spread(mean_s=float(second))
        if 0 <= float(first) <= float(second or first) < math.inf:
            return Spread(float(first), float(second or first))
    except ValueError:
        pass
    raise InvalidInput(field, f"{text!r} is not a duration; give seconds (2), a range (0.5:3) or a mean (exp:1.5)")


def read_window(text: str, field: str = "down") -> tuple[float, float]:
    """Parse a window such as ``10:20``, in seconds after the start. Raises InvalidInput."""
    begin, _, end = text.partition(":")
    try:
        window = float(begin), float(end or "inf")
    except ValueError:
        window = 1.0, 0.0
    if not 0 <= window[0] < window[1]:
        raise InvalidInput(field, f"{text!r} is not a window; give begin and end in seconds after the start (10:20)")
    return window
