"""What can go wrong with the other server, in the words that whoever forwards decides by."""

from __future__ import annotations

from tweezer.model.errors import TweezerError


class ForwardError(TweezerError):
    """The root of what the server, or the way to it, does wrong."""

    code = "forward"


class ServerUnreachable(ForwardError):
    """No answer, one that is none (junk, a proxy's page), or one that says to come back later (5xx, 429)."""

    code = "server_unreachable"
    retryable = True


class ServerRefused(ForwardError):
    """The server understood and says no. status: of HTTP. field: the part of the request at fault, if it says so."""

    code = "server_refused"

    def __init__(self, message: str, *, status: int, field: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.field = field


class UnknownBatch(ServerRefused):
    """The server has no batch of this id."""

    code = "server_unknown_batch"


class SubmitRefused(ServerRefused):
    """The submit was surely not executed, and the same one will be refused again."""

    code = "forward_refused"


class SubmitDeferred(ForwardError):
    """The submit was surely not executed, and may be sent again later: nothing was sent, no token, or 429."""

    code = "forward_deferred"
    retryable = True


class SubmitTurnedAway(SubmitDeferred):
    """Something other than the API, such as a proxy before it, turned the submit away."""

    code = "forward_turned_away"


class SubmitUncertain(ForwardError):
    """The submit may have been executed: it was sent, and no answer came that tells."""

    code = "forward_uncertain"
