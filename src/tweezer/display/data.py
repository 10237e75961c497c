"""Jobs as a list that notebooks show as a table, and as a data frame; counters as arrays.

pandas and numpy are optional: only the calls that return their types need them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from tweezer.display.html import draw_jobs, read_parts
from tweezer.model.errors import TweezerError
from tweezer.model.summaries import rank

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from tweezer.client import Finished
    from tweezer.store.records import JobRecord

J = TypeVar("J", bound="JobRecord | Finished")

_COLUMNS: Mapping[str, Callable[[JobRecord, Mapping[str, int] | None, str | None], Any]] = {
    "status": lambda job, counter, error: job.status.value,
    "runs": lambda job, counter, error: job.spec.runs or job.spec.runs_shown,
    "shots": lambda job, counter, error: None if counter is None else sum(counter.values()),
    "top": lambda job, counter, error: rank(counter)[0][0] if counter else None,
    "share": lambda job, counter, error: rank(counter)[0][1] / sum(counter.values()) if counter else None,
    "counter": lambda job, counter, error: counter,
    "error": lambda job, counter, error: error,
    "attempt": lambda job, counter, error: job.attempt,
    "created": lambda job, counter, error: job.created,
    "started": lambda job, counter, error: job.started,
    "ended": lambda job, counter, error: job.ended,
    "queue_s": lambda job, counter, error: job.queue_s,
    "preparation_s": lambda job, counter, error: job.preparation_s,
    "device_s": lambda job, counter, error: job.device_s,
}
_TIMES = ("created", "started", "ended")
_WHOLE_NUMBERS = ("runs", "shots")
_NUMBERS = ("share", "queue_s", "preparation_s", "device_s")


class JobList(list[J]):
    """A list of jobs, which notebooks show as a table."""

    def _repr_html_(self) -> str:
        return draw_jobs(self)

    def to_dataframe(self) -> pd.DataFrame:
        """Return the jobs as a data frame of pandas, one row per job.

        The index ``job`` is the index of the job in its batch. The columns are ``status``; the variables, each by its
        name (``variables.NAME`` if another column has this name), with a list in the cell for a variable of several
        values; ``runs``, the requested number of shots; ``shots``, the measured number; ``top``, the most frequent
        bitstring, and ``share``, its part of the shots, 0 to 1; ``counter``, a dictionary; ``error``; ``attempt``; the
        times ``created``, ``started`` and ``ended`` in UTC; and the durations ``queue_s``, ``preparation_s`` and
        ``device_s`` in seconds. ``runs`` and ``shots`` have pandas' type Int64, the other numbers float64. Missing
        values are those of the type: ``NA``, ``NaN`` or ``NaT``.

        Raises:
            TweezerError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ModuleNotFoundError as error:
            raise _missing("to_dataframe()", "pandas") from error
        index = pd.Index([job.index for job in self], name="job", dtype="int64")
        frame = pd.DataFrame(list_columns(self), index=index)
        for name in _TIMES:
            frame[name] = pd.to_datetime(frame[name], utc=True)
        types = dict.fromkeys(_WHOLE_NUMBERS, "Int64") | dict.fromkeys(_NUMBERS, "float64")
        return frame.astype(types)


def list_columns(jobs: Sequence[JobRecord | Finished]) -> dict[str, list[Any]]:
    """Return the columns of the data frame of the jobs."""
    parts = [read_parts(job) for job in jobs]
    rows = [(job, None if result is None else result.counter, error) for job, result, error in parts]
    columns = {name: [value(*row) for row in rows] for name, value in _COLUMNS.items()}
    variables = {
        f"variables.{name}" if name in columns else name: [job.spec.variables.get(name) for job, _, _ in parts]
        for name in dict.fromkeys(name for job, _, _ in parts for name in job.spec.variables)
    }
    return {"status": columns["status"]} | variables | columns


def to_arrays(counter: Mapping[str, int]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return a counter as arrays, the most frequent bitstring first.

    Returns:
        The bits, of shape (bitstrings, atoms) and type uint8, and the shots of each bitstring, of shape (bitstrings,)
        and type int64.

    Raises:
        TweezerError: numpy is not installed, or the counter has other keys than bitstrings of one length.
    """
    try:
        import numpy as np
    except ModuleNotFoundError as error:
        raise _missing("to_arrays()", "numpy") from error
    order = rank(counter)
    atoms = len(order[0][0]) if order else 0
    cells = np.frombuffer("".join(bits for bits, _ in order).encode("ascii", "replace"), np.uint8) - np.uint8(ord("0"))
    if any(len(bits) != atoms for bits, _ in order) or cells.max(initial=0) > 1:
        raise TweezerError("the keys of the counter are not bitstrings of one length; use the counter itself")
    return cells.reshape(len(order), atoms), np.array([count for _, count in order], np.int64)


def _missing(call: str, library: str) -> TweezerError:
    return TweezerError(f"{call} needs {library}; run `pip install {library}`", code="missing_extra")
