"""Jobs on a machine that somebody else runs: what is known of their submit."""

from __future__ import annotations

import msgspec


class Intent(msgspec.Struct, frozen=True):
    """That a job is to be submitted, written before it is.

    name: its own, so that nobody takes it for another. after: a job of the machine's that is older than any submit of
    this one, where machines count their jobs; None if none is known. uid: the machine's id of the job, None while it is
    not known. may_be_sent: its holder said that it submits the job now, or that may be lost. timed_out: it was asked to
    stop, because it took longer than its limit. age_s: how long ago it was written.
    is_new: it was written right now. since_loss_s: for how long the queue's memory may have been without its last
    second, in which there may have been another intent; None if it is whole.
    """

    name: str
    after: int | None
    uid: str | None
    may_be_sent: bool = True
    timed_out: bool = False
    age_s: float = 0.0
    is_new: bool = False
    since_loss_s: float | None = None

    @classmethod
    def parse(cls, record: str, *, lost_ms: int, now_us: int, is_new: bool = False) -> Intent:
        """From its words in Redis; see ``intend.lua``. lost_ms: when the last writes may have been lost, or 0."""
        written_us, name, after, uid, sent = record.split()
        return cls(
            name,
            None if after == "-" else int(after),
            None if uid == "-" else uid,
            may_be_sent=sent != "0" or lost_ms * 1000 >= int(written_us),
            timed_out=sent == "T",
            age_s=max((now_us - int(written_us)) / 1e6, 0.0),
            is_new=is_new,
            since_loss_s=(now_us / 1e6 - lost_ms / 1e3) if lost_ms else None,
        )
