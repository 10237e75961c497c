"""Being heard by QuTiP while it solves, and seeding what it draws.

QuTiP's integrator is replaced (by its own registry) by one that goes to each evaluation time in small
steps and looks up between them. The solver behind it chooses its first step by how far it is asked to go, and its
later ones by the error alone; so it makes the first one towards the evaluation time. Between its own steps it
interpolates, so the states are exactly the same. The Monte Carlo solver, which takes fresh entropy from the system, is
handed seeds from numpy's generator instead.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import qutip
from qutip.solver.integrator.scipy_integrator import IntegratorScipyAdams
from qutip.solver.solver_base import Solver

from tweezer.adapters.emulators.progress import Course


class WatchedAdams(IntegratorScipyAdams):  # type: ignore[misc]  # QuTiP has no types
    """QuTiP's default integrator, looking up as it goes."""

    course: Course | None = None
    """Of the running job, in microseconds as in Pulser; there is one job at a time in a process."""

    def set_state(self, t: float, state0: Any) -> None:
        if t == 0 and self.course is not None:
            self.course.begin_evolution()
        super().set_state(t, state0)
        self._is_at_start = True

    def integrate(self, t: float, copy: bool = True) -> Any:
        if self.course is not None:
            start = self.get_state(copy=False)[0]
            looks = math.ceil((t - start) / self.course.step)
            if self._is_at_start and looks > 1:
                super().mcstep(t, copy=False)  # one step of its own, as long as it would be without us
            for look in range(1, looks):
                super().integrate(start + (t - start) * look / looks, copy=False)
                self.course.reach(start + (t - start) * look / looks)
        self._is_at_start = False
        return super().integrate(t, copy)

    def mcstep(self, t: float, copy: bool = True) -> Any:
        if self.course is not None:
            self.course.reach(self.get_state(copy=False)[0])
        return super().mcstep(t, copy)


_unseeded_mcsolve = qutip.mcsolve


def _seeded_mcsolve(*arguments: Any, **options: Any) -> Any:
    options.setdefault("seeds", int(np.random.randint(1 << 32, dtype=np.uint64)))
    return _unseeded_mcsolve(*arguments, **options)


def install() -> None:
    """Have QuTiP use all of this, in this process."""
    Solver.add_integrator(WatchedAdams, "adams")
    qutip.mcsolve = _seeded_mcsolve
