"""What can go wrong with the API of a QPU or another server, in the words that whoever submits decides by."""

from __future__ import annotations

from tweezer.model.errors import TweezerError


class RemoteError(TweezerError):
    """The root of what a remote API, or the way to it, does wrong."""

    code = "remote"


class RemoteUnreachable(RemoteError):
    """No usable answer: none, junk, a proxy's page, or one that asks to come back later (5xx, 429)."""

    code = "remote_unreachable"
    retryable = True


class RemoteRefused(RemoteError):
    """The API understood and refuses.

    status: of HTTP. remote_code: the API's own, '' if it has none. by_api: False if a proxy before the API, with a 404
    of its own, may have answered. field: the part of the request at fault, if the API names it.
    """

    code = "remote_refused"

    def __init__(
        self, message: str, *, status: int, remote_code: str = "", by_api: bool = True, field: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.remote_code = remote_code
        self.by_api = by_api
        self.field = field


class UnknownRemoteJob(RemoteRefused):
    """The API has no job of this id."""

    code = "remote_unknown_job"


class TooLate(RemoteRefused):
    """The job can no longer be stopped: poll it and take what it says."""

    code = "remote_too_late"


class SubmitRefused(RemoteRefused):
    """The submit was surely not executed, and the same one will be refused again."""

    code = "submit_refused"


class SubmitDeferred(RemoteError):
    """The submit was surely not executed, and may be sent again later: nothing was sent, no token, or 429."""

    code = "submit_deferred"
    retryable = True


class SubmitTurnedAway(SubmitDeferred):
    """Something other than the API, such as a proxy before it, turned the submit away."""

    code = "submit_turned_away"


class SubmitUncertain(RemoteError):
    """The submit may have been executed: it was sent, and no answer came that tells. Never send it again."""

    code = "submit_uncertain"


class NotSent(SubmitDeferred):
    """The submit was about to be sent, and was not: the lease was over, or the job's cancel requested."""

    code = "not_sent"
