"""What the account's routes answer with."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from tweezer.ledger.access.credentials import Role
from tweezer.ledger.access.keys import ApiKey
from tweezer.ledger.access.projects import Project


class Token(BaseModel):
    """A session, as RFC 6749 (5.1) has it."""

    model_config = ConfigDict(frozen=True)

    access_token: str = Field(description="To be sent as `Authorization: Bearer …`.", examples=["twz_…"])
    token_type: Literal["Bearer"] = Field(examples=["Bearer"])
    expires_in: int = Field(description="How long it is valid, in seconds.", examples=[86_400])
    scope: Literal["read"] | None = Field(
        None, description="`read` where it only reads; else absent.", examples=["read"]
    )


class OAuthError(BaseModel):
    """Why there is no session, as RFC 6749 (5.2) has it."""

    error: str = Field(description="A word for programs.", examples=["invalid_grant"])
    error_description: str = Field(examples=["name or password are wrong, or the user is disabled"])


class AccountSession(BaseModel):
    """A log-in that is still valid."""

    model_config = ConfigDict(frozen=True)

    id: str = Field(description="What stands in the middle of its token.", examples=["abcdefgh2345"])
    created_at: datetime = Field(examples=["2026-11-22T10:00:00Z"])
    expires_at: datetime = Field(examples=["2026-11-23T10:00:00Z"])
    last_used_at: datetime | None = Field(description="To within two minutes.", examples=["2026-11-22T17:30:00Z"])
    role: Role = Field(description="`read` where it only reads.", examples=["user"])
    current: bool = Field(description="Whether it is the one of this request.", examples=[True])

    @classmethod
    def of(cls, session: ApiKey, current: str) -> AccountSession:
        """current: id of the session that asks."""
        assert session.expires is not None
        return cls(
            id=session.id,
            created_at=session.created,
            expires_at=session.expires,
            last_used_at=session.used,
            role=session.role,
            current=session.id == current,
        )


class AccountProject(BaseModel):
    """A project of the caller's."""

    model_config = ConfigDict(frozen=True)

    id: str = Field(examples=["6e4e6f0c-7e0e-4b4c-9a6f-0d6f2b8f3f11"])
    name: str = Field(examples=["Spin models"])
    status: Literal["ACTIVE"] = Field("ACTIVE", examples=["ACTIVE"])
    created_at: datetime = Field(examples=["2026-11-22T10:00:00Z"])

    @classmethod
    def of(cls, project: Project) -> AccountProject:
        return cls(id=project.id, name=project.name, created_at=project.created)
