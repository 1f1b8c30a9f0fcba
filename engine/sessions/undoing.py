"""Taking the last turn of a session back with every byte: what was learned by it, and what it answered.

A memory cannot forget one text, but the version from before it is kept: the session goes on from there, and no version
that knows the turn stays. So the last turn can be taken back, then the one before it, as far as versions are kept.
"""

from array import array
from dataclasses import asdict

from engine.errors import SessionNotFound, TurnStays
from engine.sessions.committed import CommittedSessions
from engine.sessions.shielding import finish_even_if_cancelled
from engine.sessions.storage import Storage
from engine.sessions.stored_turns import RequestIdentity, StoredTurns, stored_change
from engine.sessions.token_logs import Fed
from engine.sessions.turn import CommittedSession
from engine.stores.base import SessionKey


async def undo_turn(
    storage: Storage, committed: CommittedSessions, key: SessionKey, version: int, *, may_delete: bool
) -> None:
    """To be called inside the session's lease, with room for a state that is loaded and committed.

    may_delete: a session that has nothing from before the turn is deleted.
    Raises SessionNotFound, TurnStays, CommitConflict, StoreFull.
    """
    head = await storage.read_head(key)
    if head is None:
        raise SessionNotFound("there is no session with this id")
    if head.log_id is not None:
        raise TurnStays("the session's token log keeps what was read")
    if head.open_ingest is not None or _known_version(await storage.load_stored(key), head.version) != version:
        raise TurnStays("the session has read more since")
    earlier = next((generation for generation in head.kept if generation.version < version), None)
    if earlier is None:
        if not may_delete:
            raise TurnStays("no version from before it is kept")
        await finish_even_if_cancelled(committed.delete(key))
        return
    loaded = await committed.load_version(key, earlier.version)
    assert loaded.stored is not None
    session = CommittedSession(
        session_id=key.session_id,
        version=loaded.head.version + 1,
        committed=True,
        durability=committed.durability,
        position=earlier.position,
        rewound_to=earlier.version,
    )
    change = stored_change(session.version, RequestIdentity("undo"), asdict(session))
    stored, fed = loaded.stored.with_turn(change), Fed(array("I"), since=earlier)
    commit = committed.commit(key, head, loaded.record, stored, fed, drops_since=version)
    await finish_even_if_cancelled(commit)


def _known_version(stored: StoredTurns, version: int) -> int:
    """The version whose state this one has: going back makes no other."""
    changes = {turn.version: turn.response.get("rewound_to") for turn in stored.turns}
    while (earlier := changes.get(version)) is not None:
        version = earlier
    return version
