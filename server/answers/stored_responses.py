"""Responses that are found by their ids, among the caller's own sessions."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.errors import SessionNotFound
from engine.sessions import Versions
from engine.stores.base import SessionKey
from server.answers.response_ids import ResponseId
from server.errors import ResponseNotFound


@dataclass(frozen=True, slots=True)
class StoredResponse:
    session: SessionKey
    version: int
    body: Mapping[str, Any]


async def find_response(versions: Versions, tenant: str, text: str) -> StoredResponse:
    """Raises ResponseNotFound."""
    response_id = ResponseId.parse(text)
    session = SessionKey(tenant, response_id.session_id)
    try:
        turn = await versions.stored_turn(session, response_id.version)
    except SessionNotFound as error:
        raise ResponseNotFound from error
    if turn is None or turn.response.get("id") != text:
        raise ResponseNotFound
    return StoredResponse(session, response_id.version, turn.response)


async def check_version(versions: Versions, tenant: str, response_id: ResponseId) -> None:
    """That the response is the version that its id says, as far as the session remembers.

    Raises ResponseNotFound, and VersionNotFound, which says what is kept, when the session has gone on too far.
    """
    try:
        await find_response(versions, tenant, str(response_id))
    except ResponseNotFound as not_found:
        session = SessionKey(tenant, response_id.session_id)
        try:
            head, _ = await versions.find(session, None)
        except SessionNotFound:
            raise not_found from None
        if response_id.version < head.version:
            await versions.find(session, response_id.version)
        raise
