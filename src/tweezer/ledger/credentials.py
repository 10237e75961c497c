"""Who may do what: projects, users and API keys."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Role(StrEnum):
    """What a credential is for.

    user: submits to and reads its own projects. operator: sees and touches everybody's work, and the service itself.
    worker: reports on work (the service side of the API), and reads it.
    """

    USER = "user"
    OPERATOR = "operator"
    WORKER = "worker"


class Principal(msgspec.Struct, frozen=True):
    """Who is behind a request.

    key: id of the key that came with it, which may be shown. projects: ids of the projects that it belongs to; of a
    key of one project, that one. An operator sees all projects whether or not it belongs to any.
    """

    key: str
    role: Role
    projects: frozenset[str] = frozenset()
    user: str | None = None

    @property
    def sees_all(self) -> bool:
        return self.role is not Role.USER

    def sees(self, project: str) -> bool:
        """Whether what belongs to the project exists for this caller."""
        return self.sees_all or project in self.projects
