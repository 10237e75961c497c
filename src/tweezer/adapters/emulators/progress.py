"""Where an evolution is, as its solver tells while it goes; imported in the processes of lanes only."""

from __future__ import annotations

from tweezer.adapters.lane.backend import Watch

_LOOKS = 100


class Course:
    """Where the present evolution is.

    length: of one evolution, in the solver's own unit of time. evolutions: how many the job is expected to take.
    """

    def __init__(self, watch: Watch, length: float, evolutions: int) -> None:
        self._watch = watch
        self._length = length
        self._evolutions = evolutions
        self._begun = 0
        self.step = length / _LOOKS
        """How far a solver that can choose goes between two looks."""

    def begin_evolution(self) -> None:
        self._begun += 1

    def reach(self, t: float) -> None:
        """The evolution got here. Raises ``Aborted`` when it is to stop."""
        done = max(self._begun - 1, 0) + min(t / self._length, 1.0)
        self._watch.advance(done / self._evolutions)
