"""What can go wrong with a QPU's API, in the words that whoever submits decides by."""

from __future__ import annotations

from tweezer.model.errors import TweezerError


class QpuError(TweezerError):
    """The root of what the QPU's API, or the way to it, does wrong."""

    code = "qpu"


class QpuUnreachable(QpuError):
    """No answer, one that is none (junk, a proxy's page), or one that says to come back later (5xx, 429)."""

    code = "qpu_unreachable"
    retryable = True


class QpuRefused(QpuError):
    """The API understood and says no. status: of HTTP. remote_code: the API's own, else the status as text. by_api:
    whether it was surely the API, and not a proxy before it that has a 404 of its own: it said so in its envelope."""

    code = "qpu_refused"

    def __init__(self, message: str, *, status: int, remote_code: str, by_api: bool = True) -> None:
        super().__init__(message)
        self.status = status
        self.remote_code = remote_code
        self.by_api = by_api


class UnknownJob(QpuRefused):
    """The QPU has no job of this uid."""

    code = "qpu_unknown_job"


class TooLate(QpuRefused):
    """The program can no longer be aborted: poll the job and take what it says."""

    code = "qpu_too_late"


class SubmitRefused(QpuError):
    """The submit was surely not executed, and the same one will be refused again."""

    code = "qpu_submit_refused"


class SubmitDeferred(SubmitRefused):
    """The submit was surely not executed, and may be sent again later: nothing was sent, no token, or 429."""

    code = "qpu_submit_deferred"
    retryable = True


class SubmitTurnedAway(SubmitDeferred):
    """Something other than the API, such as a proxy before it, turned the submit away."""

    code = "qpu_submit_turned_away"


class SubmitUncertain(QpuError):
    """The submit may have been executed: it was sent, and no answer came that tells. Never send it again."""

    code = "qpu_submit_uncertain"
