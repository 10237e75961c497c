"""Errors of the API of a QPU or another server. Those of a submit state whether it may have been executed."""

from __future__ import annotations

from tweezer.model.errors import TweezerError


class RemoteError(TweezerError):
    """The base class of errors of a remote API or of the connection to it."""

    code = "remote"


class RemoteUnreachable(RemoteError):
    """No usable answer: no answer, an invalid one, a proxy's page, or a temporary error (5xx, 429)."""

    code = "remote_unreachable"
    retryable = True


class RemoteRefused(RemoteError):
    """The API refused the request.

    Args:
        message: The error's message.
        status: The HTTP status.
        remote_code: The API's own error code; empty if it has none.
        by_api: False if a proxy in front of the API may have sent the answer, such as a 404.
        field: The part of the request at fault, if the API names it.
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
    """The API knows no job with this id."""

    code = "remote_unknown_job"


class TooLate(RemoteRefused):
    """The job can no longer be stopped. Poll it for its outcome."""

    code = "remote_too_late"


class SubmitRefused(RemoteRefused):
    """The submit was definitely not executed, and would be refused again."""

    code = "submit_refused"


class SubmitDeferred(RemoteError):
    """The submit was definitely not executed and may be sent again: nothing was sent, no token, or 429."""

    code = "submit_deferred"
    retryable = True


class SubmitTurnedAway(SubmitDeferred):
    """Something in front of the API, such as a proxy, refused the submit."""

    code = "submit_turned_away"


class SubmitUncertain(RemoteError):
    """The submit was sent, but no answer shows whether it was executed. Never send it again."""

    code = "submit_uncertain"


class NotSent(SubmitDeferred):
    """The submit was not sent, because the lease had expired or the job's cancel was requested."""

    code = "not_sent"
