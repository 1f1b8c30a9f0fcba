"""A turn that goes on from one version of a session, wherever the session stands by now.

While that version is the committed one, the turn is the session's next. When others have gone on from it, or are about
to, the turn begins a new session that has learned what that version had: a branch. Neither touches the other.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import replace

from engine.errors import SessionBusy, VersionConflict
from engine.sessions.beginnings import Branch, NewSession
from engine.sessions.storage import Storage
from engine.sessions.stored_turns import StoredTurn
from engine.sessions.turn import Turn, TurnRequest

OpenTurn = Callable[[TurnRequest], AbstractAsyncContextManager[Turn | StoredTurn]]


@asynccontextmanager
async def turn_or_branch(
    open_turn: OpenTurn, storage: Storage, request: TurnRequest, branch: Branch
) -> AsyncIterator[Turn | StoredTurn]:
    """The turn in its session, or in the branch's: a repeat whose key gives the same branch finds it in either.

    Raises what `open_turn` does, VersionNotFound when a branch is needed and the version is not kept.
    """
    begins = NewSession(ttl_seconds=branch.ttl_seconds, source=request.session, version=branch.version)
    branched = replace(request, session=branch.session, begins=begins)
    async with AsyncExitStack() as stack:
        if await _is_branch(storage, request, branch):
            turn = await stack.enter_async_context(open_turn(branched))
        else:
            try:
                turn = await stack.enter_async_context(open_turn(replace(request, if_match=branch.version)))
            except (SessionBusy, VersionConflict):
                turn = await stack.enter_async_context(open_turn(branched))
        yield turn


async def _is_branch(storage: Storage, request: TurnRequest, branch: Branch) -> bool:
    """Whether that is known already, without the session's lease and its state."""
    if request.idempotency_key is not None:
        return await storage.read_head(branch.session) is not None
    if request.is_retry:
        return False
    assert request.session is not None
    head = await storage.read_head(request.session)
    return head is not None and head.version > branch.version
