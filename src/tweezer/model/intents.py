"""Intents: records of job submissions to a remote machine."""

from __future__ import annotations

import msgspec


class Intent(msgspec.Struct, frozen=True):
    """The intent to submit a job to a machine, written before the job is submitted.

    name: unique to this attempt, so that it is not mistaken for another intent. after: a job on the machine that is
    older than any submission of this one, where machines number their jobs; None if unknown. uid: the machine's id of
    the job; None while unknown. may_be_sent: whether the job may have been submitted: its holder announced the
    submission, or that announcement may have been lost. timed_out: the job was asked to stop because it exceeded its
    limit. written_us: when it was written, by Redis' clock; age_s: how long ago that was. is_new: it was written by
    this call. since_loss_s: seconds since Redis may have lost its last writes, and with them another intent; None if
    it lost nothing.
    """

    name: str
    after: int | None
    uid: str | None
    may_be_sent: bool = True
    timed_out: bool = False
    written_us: int = 0
    age_s: float = 0.0
    is_new: bool = False
    since_loss_s: float | None = None

    @classmethod
    def parse(cls, record: str, *, lost_ms: int, now_us: int, is_new: bool = False) -> Intent:
        """Parse a record of Redis, see ``intend.lua``. lost_ms: when the last writes may have been lost, or 0."""
        written_us, name, after, uid, sent = record.split()
        return cls(
            name,
            None if after == "-" else int(after),
            None if uid == "-" else uid,
            may_be_sent=sent != "0" or lost_ms * 1000 >= int(written_us),
            timed_out=sent == "T",
            written_us=int(written_us),
            age_s=max((now_us - int(written_us)) / 1e6, 0.0),
            is_new=is_new,
            since_loss_s=(now_us / 1e6 - lost_ms / 1e3) if lost_ms else None,
        )


class Mark(msgspec.Struct, frozen=True):
    """The last known job of a machine that numbers its jobs. It shows when the numbers restarted, a *set-back*.

    uid: its id on the machine; None if no job is known. job: the id that Tweezer gave it; None if unknown. has_names:
    the machine returns the ids that clients gave their jobs. set_back_us: when the last set-back was noticed, by
    Redis' clock, or 0. since: a job on the machine that is older than any that Tweezer submitted after that set-back.
    """

    uid: int | None = None
    job: str | None = None
    has_names: bool = False
    set_back_us: int = 0
    since: int = 0

    @classmethod
    def parse(cls, last_uid: str | None, last_job: str | None, has_names: str | None, set_back: str | None) -> Mark:
        """Parse the fields of a device's record in Redis; see ``note_remote.lua`` and ``note_set_back.lua``."""
        named_uid, _, job = (last_job or "").partition(" ")
        at_us, _, since = (set_back or "0 - 0").split()
        return cls(
            uid=None if last_uid is None else int(last_uid),
            job=job if job and named_uid == last_uid else None,
            has_names=has_names == "1",
            set_back_us=int(at_us),
            since=int(since),
        )

    def after(self, intent: Intent) -> int | None:
        """Return an id that the machine's id of the intent's job must exceed; None if unknown."""
        return self.since if intent.written_us < self.set_back_us else intent.after
