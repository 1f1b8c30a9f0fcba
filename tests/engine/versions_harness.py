"""What the tests of versions share: each operation in one call, on `KEY` and beside it."""

from collections.abc import Sequence
from typing import Any

import pytest

from engine.sequence import SequenceState
from engine.sessions import RequestIdentity
from engine.stores.base import Buffer, Head, SessionKey
from tests.engine.harness import assert_same_session
from tests.engine.sessions_harness import (
    KEY,
    House,
    ingest,
    text_of,
)

OTHER = SessionKey(KEY.tenant, "other")


NOBODY = RequestIdentity()


async def fork(it: House, version: int | str | None = None, identity: RequestIdentity = NOBODY, **fields: Any) -> Head:
    wanted = {"source": KEY, "key": OTHER, "metadata": None, "ttl_seconds": None, **fields}
    with it.sessions.versions() as versions:
        return await versions.fork(version=version, identity=identity, **wanted)


async def rewind(it: House, version: int | str, identity: RequestIdentity = NOBODY, if_match: int | None = None) -> int:
    return (await it.sessions.rewind(KEY, version, if_match, identity)).version


async def exported(it: House, version: int | str | None = None) -> bytes:
    with it.sessions.versions() as versions:
        _, _, parts = await versions.export(KEY, version)
    return b"".join(parts)


async def imported(it: House, parts: Sequence[Buffer], key: SessionKey = OTHER) -> Head:
    with it.sessions.versions() as versions:
        return await versions.import_snapshot(key, parts, None, NOBODY)


async def kept_versions(it: House, key: SessionKey = KEY) -> list[int]:
    head = await it.storage.read_head(key)
    assert head is not None
    return [generation.version for generation in head.generations]


async def break_off_a_document(it: House) -> None:
    async def pieces() -> Any:
        yield text_of(20)
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await ingest(it.sessions, pieces())
    head = await it.storage.read_head(KEY)
    assert head is not None
    assert head.open_ingest is not None


def assert_same_bits(left: SequenceState, right: SequenceState) -> None:
    assert_same_session(left, right, tolerance=0)
