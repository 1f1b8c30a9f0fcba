"""How a session begins that its first turn makes: with what metadata, and from what another has learned."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from engine.stores.base import SessionKey


@dataclass(frozen=True, slots=True)
class NewSession:
    """A session that its first commit makes.

    source, version: it has learned what that session had at a kept version, by number; None is nothing.
    """

    metadata: Mapping[str, str] = field(default_factory=dict)
    ttl_seconds: int | None = None
    source: SessionKey | None = None
    version: int | None = None


@dataclass(frozen=True, slots=True)
class Branch:
    """For a turn that goes on from one version of its session, wherever that stands by now.

    session: the new one that the turn begins, with that version learned, when others have gone on from it.
    """

    version: int
    session: SessionKey
    ttl_seconds: int | None = None
