"""`redis://` and `rediss://`: sessions that any replica can serve.

Parts are staged under a time-to-live, so what is never flipped to goes away by itself; a generation that is dropped
gets one long enough for any reader that is still loading it. Expiry follows Redis' own clock.
Should a head be lost (it never is without an eviction or a hand), its session is absent; whoever then lists or recounts
the tenant's sessions lets the parts that it named expire, as a deletion of that id deletes them at once.

`usage` is exact but for races: a quota is checked and the commit made in two steps, because no step of a Cluster spans
two sessions. N writers at once may overshoot by N sessions, and what a failed commit has counted stays counted until
the session's next commit or a recount.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import chain

from engine.errors import (
    CommitConflict,
    LogLost,
    SessionBusy,
    SessionExists,
    SessionNotFound,
    StateCorrupt,
    StateLost,
    StoreFull,
    StoreUnavailable,
    VersionNotFound,
)
from engine.failpoints import failpoint
from engine.snapshots.checksums import part_checksum
from engine.stores.base import Buffer, Generation, Head, NewGeneration, SessionKey, TenantUsage
from engine.stores.head import buffer_num_bytes, stored_num_bytes
from engine.stores.head_json import decode_head, encode_head
from engine.stores.redis_check import RedisCheck
from engine.stores.redis_client import SMALL_NUM_BYTES, RedisClient
from engine.stores.redis_errors import translated
from engine.stores.redis_generations import RedisGenerations, members
from engine.stores.redis_index import RedisIndex
from engine.stores.redis_keys import RedisKeys
from engine.stores.redis_log import check_log_fits, first_piece, read_log, stage_rest
from engine.stores.redis_parts import fetch, stage, unlink
from engine.stores.redis_scripts import (
    ACQUIRE_LEASE,
    CONFIRM,
    CONFIRM_ABSENCE,
    DELETE,
    FLIP,
    RELEASE_LEASE,
    RENEW,
    REPLACE_HEAD,
)
from engine.stores.redis_url import RedisUrl
from engine.stores.succession import (
    DEFAULT_NUM_KEPT,
    applied_head,
    described_head,
    generations_dropped,
    is_unchanged,
    next_head,
    renamed_head,
)

STAGING_SECONDS = 600
GRACE_SECONDS = 300
QUARANTINE_SECONDS = 30 * 24 * 3600
# A generation is remembered for longer than its staged keys can live: each of them is written a little later.
_REMEMBER_SECONDS = 2 * STAGING_SECONDS
_ATTEMPTS = 16
_PAGE = 500


class RedisStore:
    def __init__(self, url: str, num_kept: int = DEFAULT_NUM_KEPT) -> None:
        """Does not connect yet; `check` does."""
        self._url = RedisUrl.parse(url)
        self._client = RedisClient(self._url)
        self._keys = RedisKeys(self._url.prefix)
        self._index = RedisIndex(self._client, self._keys)
        self._generations = RedisGenerations(self._client, self._keys)
        self.num_kept = num_kept
        self._check = RedisCheck(self._url, self._client)
        self._durability = "unknown"
        self.name = self._url.without_secrets

    @property
    def durability(self) -> str:
        """`replicated:N` or `always` where the URL waits for that; else `none` without an append-only file, or its
        appendfsync; `unknown` when Redis does not tell."""
        return self._durability

    def check(self) -> None:
        self._durability = self._check.run()

    def read_head(self, key: SessionKey) -> Head | None:
        raw = self._client.control("HGET", self._keys.head(key), "head")
        return None if raw is None else decode_head(raw)

    def load(self, key: SessionKey, version: int | None = None) -> tuple[Head, list[Buffer]]:
        missing: Generation | None = None
        while True:
            head, generation = self._find(key, version)
            if generation == missing:
                raise StateLost("the session's state is gone", self._last_whole_version(key, head))
            data = fetch(self._client, self._keys.parts(key, generation), generation.num_bytes)
            if data is not None:
                self.touch(key, head)
                return head, [data]
            missing = generation

    def touch(self, key: SessionKey, head: Head) -> None:
        if head.ttl_seconds is not None:
            everything = [*self._keys.everything(key, head.generations), *self._keys.logs(key, head)]
            keys = [self._keys.head(key), self._keys.generations(key), *everything]
            arguments: list[bytes | int] = [_fence(head), _ttl_milliseconds(head), _REMEMBER_SECONDS * 1000]
            with suppress(StoreUnavailable):
                self._client.run_script(RENEW, keys, arguments)

    def load_extra(self, key: SessionKey, version: int | None = None) -> bytes:
        missing: Generation | None = None
        while True:
            head, generation = self._find(key, version)
            if generation == missing:
                raise StateLost("the session's stored answers are gone", self._last_whole_version(key, head))
            values = self._get_all(self._keys.extras(key, generation))
            if values is not None:
                extra = bytes(b"".join(values))
                if part_checksum(extra).hex() != generation.extra_digest:
                    raise StateCorrupt("the stored answers of a session were altered")
                return extra
            missing = generation

    def load_log(self, key: SessionKey, log_id: str, num_bytes: int) -> Buffer:
        return read_log(self._client, self._keys.log(key, log_id), num_bytes)

    def create(self, key: SessionKey, new: NewGeneration) -> Head:
        try:
            return self._commit(key, None, new, version=0)
        except CommitConflict as conflict:
            raise SessionExists("a session with this id exists") from conflict

    def commit(self, key: SessionKey, base: Head | None, new: NewGeneration) -> Head:
        return self._commit(key, base, new, version=base.version + 1 if base else 1)

    def confirm(self, key: SessionKey, head: Head) -> None:
        self._confirm(key, head.generation)

    def name_version(self, key: SessionKey, version: int, name: str | None) -> Head:
        return self._change_head(key, lambda head: renamed_head(head, version, name, self.num_kept))

    def set_metadata(self, key: SessionKey, metadata: Mapping[str, str]) -> Head:
        return self._change_head(key, lambda head: described_head(head, metadata))

    def delete(self, key: SessionKey) -> bool:
        for attempt in range(_ATTEMPTS):
            known = self._generations.known(key)
            head = self.read_head(key)
            if head is not None:
                logs = self._keys.logs(key, head)
                keys = [self._keys.head(key), *self._keys.everything(key, head.generations), *logs]
                if not self._client.run_script_durably(DELETE, keys, [_fence(head)]):
                    continue
            elif self._url.wait is not None:
                # A deletion that too few acknowledged is asked for again: it must not come back either.
                self._client.run_script_durably(CONFIRM_ABSENCE, [self._keys.absent(key)], [])
            self._generations.delete(key, known, _REMEMBER_SECONDS)
            self._unlist(key)
            # Gone since the first look: deleted by a script of ours whose reply was lost.
            return head is not None or attempt > 0
        raise SessionBusy("the session is being written to")

    def usage(self, tenant: str) -> TenantUsage:
        return self._index.usage(tenant)

    def recount(self, tenant: str) -> TenantUsage:
        after = None
        while session_ids := self._index.page(tenant, _PAGE, after):
            counted = self._index.counted(tenant, session_ids)
            for session_id, raw, num_bytes in zip(
                session_ids, self._read_heads(tenant, session_ids), counted, strict=True
            ):
                key = SessionKey(tenant, session_id)
                if raw is None:
                    self._forget_ghost(key)
                    continue
                with suppress(StateCorrupt):
                    if num_bytes != (found := stored_num_bytes(decode_head(raw))):
                        self._index.enlist(key, found)
            after = session_ids[-1]
        with suppress(StoreFull):
            self._index.sum_up(tenant)
        return self._index.usage(tenant)

    def list_sessions(self, tenant: str, limit: int, after: str | None = None) -> list[tuple[str, Head]]:
        page: list[tuple[str, Head]] = []
        while len(page) < limit:
            session_ids = self._index.page(tenant, limit, after)
            for session_id, raw in zip(session_ids, self._read_heads(tenant, session_ids), strict=True):
                if raw is None:
                    self._forget_ghost(SessionKey(tenant, session_id))
                    continue
                with suppress(StateCorrupt):
                    page.append((session_id, decode_head(raw)))
            if len(session_ids) < limit:
                break
            after = session_ids[-1]
        return page[:limit]

    def quarantine(self, key: SessionKey, generation: Generation) -> None:
        self._generations.quarantine(key, generation, QUARANTINE_SECONDS)

    def acquire_lease(self, key: SessionKey, owner: str, seconds: float) -> bool:
        arguments = (owner.encode(), max(1, int(seconds * 1000)))
        return bool(self._client.run_script(ACQUIRE_LEASE, [self._keys.lease(key)], arguments))

    def release_lease(self, key: SessionKey, owner: str) -> None:
        self._client.run_script(RELEASE_LEASE, [self._keys.lease(key)], [owner.encode()])

    def close(self) -> None:
        self._client.close()

    def _commit(self, key: SessionKey, base: Head | None, new: NewGeneration, version: int) -> Head:
        """The flip alone decides. Before a large transfer the head is read too: a race that is lost costs none."""
        head = next_head(base, new, version, self.num_kept)
        check_log_fits(head.log_num_bytes or 0)
        begun = self._keys.logs(key, head) if head.log_id == new.generation else []
        log = b"" if new.log is None else new.log
        if head.num_bytes > SMALL_NUM_BYTES:
            current = self.read_head(key)
            if current is not None and new.generation in current.recent:
                self._confirm(key, new.generation)
                return applied_head(current, head)
            if not is_unchanged(base, current):
                raise CommitConflict("another writer committed this session first")
        with translated():
            failpoint("commit.before_parts")
            names = [*self._keys.parts(key, head.committed), *self._keys.extras(key, head.committed)]
            values = zip(names, chain(new.parts, (new.extra,)), strict=False)
            pieces = [(name, first_piece(log)) for name in begun]
            entries = [
                self._index.entry(key, stored_num_bytes(head)),
                self._generations.entry(key, head.committed, _REMEMBER_SECONDS),
            ]
            if begun:
                entries.append(self._generations.log_entry(key, new.generation, _REMEMBER_SECONDS))
            staged = stage(self._client, chain(values, pieces), STAGING_SECONDS, entries)
            try:
                for name in begun:
                    stage_rest(self._client, name, log)
                failpoint("commit.before_flip")
                head = self._flip(key, base, head, b"" if begun else log)
                failpoint("commit.after_flip")
            except (CommitConflict, LogLost, StoreFull):
                unlink(self._client, staged)
                raise
        if base is None:
            # A listing may have taken the id for a ghost between the first entry and the flip.
            with suppress(StoreUnavailable):
                self._index.enlist(key, stored_num_bytes(head))
        return head

    def _flip(self, key: SessionKey, base: Head | None, head: Head, appended: Buffer) -> Head:
        logs = self._keys.logs(key, head)
        new = [*self._keys.everything(key, [head.committed]), *logs]
        kept = self._keys.everything(key, head.kept)
        dropped = generations_dropped(base, head) if base else []
        ended = [] if base is None or base.log_id in (None, head.log_id) else [base.log_id]
        arguments: list[bytes | int] = [
            _fence(base),
            _fence(head),
            head.generation.encode(),
            " ".join(head.recent).encode(),
            encode_head(head),
            _ttl_milliseconds(head),
            GRACE_SECONDS * 1000,
            len(new),
            len(kept),
            members([head.committed], [] if head.log_id is None else [head.log_id]),
            members(dropped, ended),
            _REMEMBER_SECONDS * 1000,
            -1 if head.log_num_bytes is None else head.log_num_bytes - buffer_num_bytes(appended),
            bytes(appended),
        ]
        gone = [*self._keys.everything(key, dropped), *(self._keys.log(key, log_id) for log_id in ended)]
        keys = [self._keys.head(key), self._keys.generations(key), *new, *kept, *gone]
        status, raw = self._client.run_script_durably(FLIP, keys, arguments, lambda reply: reply[0] == b"flipped")
        if status == b"conflict":
            raise CommitConflict("another writer committed this session first")
        if status == b"log lost":
            raise LogLost("the session's token log is gone")
        if status == b"missing":
            raise StoreUnavailable("parts that were just written are gone from Redis")
        if status == b"mine":
            self._confirm(key, head.generation)
        return head if status == b"flipped" else applied_head(decode_head(raw), head)

    def _confirm(self, key: SessionKey, generation: str) -> None:
        if self._url.wait is None:
            return
        if not self._client.run_script_durably(CONFIRM, [self._keys.head(key)], [generation.encode()]):
            raise StoreUnavailable("what was committed is not in Redis any more: a failover has lost it")

    def _change_head(self, key: SessionKey, change: Callable[[Head], Head]) -> Head:
        for _ in range(_ATTEMPTS):
            base, _ = self._find(key, None)
            head = change(base)
            dropped = generations_dropped(base, head)
            arguments: list[bytes | int] = [
                _fence(base),
                _fence(head),
                encode_head(head),
                GRACE_SECONDS * 1000,
                members(dropped, []),
            ]
            keys = [self._keys.head(key), self._keys.generations(key), *self._keys.everything(key, dropped)]
            if self._client.run_script_durably(REPLACE_HEAD, keys, arguments):
                with suppress(StoreFull, StoreUnavailable):
                    self._index.enlist(key, stored_num_bytes(head))
                return head
        raise SessionBusy("the session is being written to")

    def _find(self, key: SessionKey, version: int | None) -> tuple[Head, Generation]:
        head = self.read_head(key)
        if head is None:
            raise SessionNotFound("there is no session with this id")
        generation = head.find(version)
        if generation is None:
            raise VersionNotFound(f"version {version} of the session is not kept")
        return head, generation

    def _get_all(self, keys: Sequence[bytes]) -> list[Buffer] | None:
        """None when one of them is gone."""
        values: list[Buffer] = []
        for key in keys:
            value = self._client.bulk("GET", key)
            if value is None:
                return None
            values.append(value)
        return values

    def _last_whole_version(self, key: SessionKey, head: Head) -> int | None:
        for kept in head.kept:
            keys = self._keys.everything(key, [kept])
            if not keys or self._client.control("EXISTS", *keys) == len(keys):
                return kept.version
        return None

    def _read_heads(self, tenant: str, session_ids: Sequence[str]) -> list[bytes | None]:
        keys = [self._keys.head(SessionKey(tenant, session_id)) for session_id in session_ids]
        return self._client.control_many([("HGET", key, "head") for key in keys])

    def _forget_ghost(self, key: SessionKey) -> None:
        """An entry without a head: of a session that ended, or whose head was lost, or that is just being made."""
        self._generations.retire(key, STAGING_SECONDS)
        self._unlist(key)

    def _unlist(self, key: SessionKey) -> None:
        """Take the entry of a session away that was not there; not of one that was made while it was looked for."""
        self._index.unlist(key)
        with suppress(StateCorrupt, StoreFull):
            head = self.read_head(key)
            if head is not None:
                self._index.enlist(key, stored_num_bytes(head))


def _fence(head: Head | None) -> bytes:
    """Empty for a session that must not exist."""
    if head is None:
        return b""
    fence = f"{head.version}:{head.generation}"
    return (f"{fence}:{head.revision}" if head.revision else fence).encode()


def _ttl_milliseconds(head: Head) -> int:
    return 0 if head.ttl_seconds is None else head.ttl_seconds * 1000
