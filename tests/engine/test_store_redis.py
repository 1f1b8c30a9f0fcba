"""What only Redis can do to a session. Every server here is real; those that are harmed are a test's own."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import redis
import torch

from engine import failpoints
from engine.errors import (
    CommitConflict,
    SessionNotFound,
    StateCorrupt,
    StateLost,
    StoreUnavailable,
)
from engine.snapshots.snapshot import decode_snapshot, encode_snapshot
from engine.stores import open_store
from engine.stores.base import IngestMark, SessionKey, Store, TenantUsage
from engine.stores.head import stored_num_bytes
from engine.stores.redis import GRACE_SECONDS, STAGING_SECONDS
from engine.stores.redis_client import SMALL_NUM_BYTES, RedisClient
from engine.stores.redis_parts import BATCH_NUM_BYTES
from engine.stores.succession import MAX_RECENT
from tests.engine.snapshot_cases import FINGERPRINT, equal_bits, full_record, tiny_config
from tests.engine.store_cases import (
    KEY,
    NUM_PARTS,
    commit_number,
    generation_of,
    whole_number,
)
from tests.redis_server import RedisServer, redis_is_installed

pytestmark = [
    pytest.mark.redis,
    pytest.mark.skipif(not redis_is_installed(), reason="redis-server is not installed"),
]
PREFIX = f"atlas:{{{KEY.tenant}/{KEY.session_id}}}:"


@pytest.fixture
def server(own: Callable[..., RedisServer]) -> RedisServer:
    return own()


@pytest.fixture
def store(server: RedisServer) -> Iterator[Store]:
    store = open_store(server.url, num_kept=1)
    store.check()
    yield store
    store.close()


@pytest.fixture
def raw(server: RedisServer) -> Iterator["redis.Redis"]:
    with redis.Redis(port=server.port, protocol=2) as client:
        yield client


def keys_of(raw: "redis.Redis") -> set[str]:
    return {key.decode() for key in raw.scan_iter("*")}


def test_a_script_that_is_sent_again_because_its_reply_was_lost_answers_as_if_it_were_sent_once(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_script = RedisClient.run_script

    def run_script_twice(client: RedisClient, *arguments: Any) -> Any:
        run_script(client, *arguments)
        return run_script(client, *arguments)

    monkeypatch.setattr(RedisClient, "run_script", run_script_twice)
    head = store.create(KEY, generation_of(0))
    head = commit_number(store, 1, head)
    assert (head.version, whole_number(store)) == (1, 1)
    assert store.name_version(KEY, 1, "one").find("one") is not None
    assert store.delete(KEY)
    assert not store.delete(KEY)


def test_every_key_of_a_session_has_the_same_cluster_hash_tag(store: Store, raw: "redis.Redis") -> None:
    head = commit_number(store, 1, base=None)
    store.acquire_lease(KEY, "me", 10)
    expected = {f"{PREFIX}head", f"{PREFIX}lease", f"{PREFIX}generations", f"{PREFIX}x:{head.generation}"}
    expected |= {f"{PREFIX}p:{head.generation}:{index}" for index in range(NUM_PARTS)}
    index = f"atlas:index:{KEY.tenant}"
    assert keys_of(raw) == {*expected, index, f"atlas:usage:{{{index}}}"}


def test_what_is_committed_never_expires_and_what_is_dropped_waits_for_its_readers(
    store: Store, raw: "redis.Redis"
) -> None:
    head = None
    generations = []
    for number in (1, 2, 3):
        head = commit_number(store, number, base=head)
        generations.append(head.generation)
    for key in keys_of(raw):
        if generations[0] in key:
            assert GRACE_SECONDS - 60 < raw.ttl(key) <= GRACE_SECONDS
        else:
            assert raw.ttl(key) == -1, key


@pytest.mark.usefixtures("disarmed")
def test_what_is_staged_and_never_flipped_to_goes_away_by_itself(store: Store, raw: "redis.Redis") -> None:
    head = commit_number(store, 1, base=None)
    new = generation_of(2)
    failpoints.arm("commit.before_flip=1:error")
    with pytest.raises(StoreUnavailable):
        store.commit(KEY, head, new)
    staged = [key for key in keys_of(raw) if new.generation in key]
    assert len(staged) == NUM_PARTS + 1
    assert all(STAGING_SECONDS - 60 < raw.ttl(key) <= STAGING_SECONDS for key in staged)


def test_a_retry_whose_first_try_was_applied_after_all_puts_no_time_to_live_on_living_parts(
    store: Store, raw: "redis.Redis", server: RedisServer
) -> None:
    """Every key is there when the retry stages, and would get a staging time-to-live from a plain SET."""
    head = commit_number(store, 1, base=None)
    new = generation_of(2)
    late = open_store(server.url)
    assert late.commit(KEY, head, new).version == 2
    late.close()
    assert store.commit(KEY, head, new).version == 2
    assert all(raw.ttl(key) == -1 for key in keys_of(raw))
    assert whole_number(store) == 2


def test_a_retry_that_lost_the_race_takes_nothing_from_what_its_first_try_had_committed(
    store: Store, raw: "redis.Redis"
) -> None:
    """An ingest of more commits than a head remembers keeps the generation before it; its writer then tries again."""
    head = commit_number(store, 1, base=None)
    new = generation_of(2)
    reading = store.commit(KEY, head, new)
    for number in range(3, 3 + MAX_RECENT):
        mark = IngestMark("document", number)
        reading = store.commit(KEY, reading, replace(generation_of(number), open_ingest=mark))
    assert new.generation not in reading.recent
    with pytest.raises(CommitConflict):
        store.commit(KEY, head, new)
    assert whole_number(store, version=2) == 2
    assert all(raw.ttl(key) == -1 for key in keys_of(raw) if new.generation in key)


def test_a_commit_that_lost_the_race_leaves_nothing_behind(store: Store, raw: "redis.Redis") -> None:
    head = commit_number(store, 1, base=None)
    commit_number(store, 2, base=head)
    loser = generation_of(3)
    with pytest.raises(CommitConflict):
        store.commit(KEY, head, loser)
    assert not [key for key in keys_of(raw) if loser.generation in key]


def test_a_large_commit_that_lost_the_race_before_it_began_sends_nothing(store: Store, raw: "redis.Redis") -> None:
    head = commit_number(store, 1, base=None)
    commit_number(store, 2, base=head)
    large = replace(generation_of(3), parts=[bytes(SMALL_NUM_BYTES), b"x"])
    before = raw.info("stats")["total_net_input_bytes"]
    with pytest.raises(CommitConflict):
        store.commit(KEY, head, large)
    assert raw.info("stats")["total_net_input_bytes"] - before < 10_000


@pytest.mark.usefixtures("disarmed")
def test_a_large_commit_that_failed_between_two_parts_is_finished_by_its_retry(
    store: Store, raw: "redis.Redis"
) -> None:
    head = commit_number(store, 1, base=None)
    parts = [bytes([index]) * BATCH_NUM_BYTES for index in range(2)]
    new = replace(generation_of(2), parts=[*parts, b"the rest"])
    failpoints.arm("commit.part=1:error")
    with pytest.raises(StoreUnavailable):
        store.commit(KEY, head, new)
    assert [key for key in keys_of(raw) if new.generation in key] == [f"{PREFIX}p:{new.generation}:0"]
    assert whole_number(store) == 1
    assert store.commit(KEY, head, new).version == 2
    [data] = store.load(KEY)[1]
    assert bytes(data) == b"".join(new.parts)
    assert all(raw.ttl(key) == -1 for key in keys_of(raw))


def test_the_parts_come_back_in_one_writable_buffer_that_decoding_uses_as_it_is(store: Store) -> None:
    config = tiny_config()
    record = full_record(config)
    snapshot = encode_snapshot(record, FINGERPRINT, 4096)
    assert len(snapshot.parts) > 2
    new = replace(generation_of(1), parts=snapshot.parts, digest=snapshot.digest)
    head = store.commit(KEY, None, new)
    assert (head.num_parts, head.num_bytes) == (len(snapshot.parts), snapshot.num_bytes)
    [data] = store.load(KEY)[1]
    loaded = decode_snapshot([data], config, FINGERPRINT, head.digest)
    keys = loaded.state.tensors.named_tensors()["layers.1.keys"]
    assert equal_bits(keys, record.state.tensors.named_tensors()["layers.1.keys"])
    assert memoryview(data).nbytes == snapshot.num_bytes
    memoryview(data)[:] = bytes(snapshot.num_bytes)
    assert torch.count_nonzero(keys) == 0


@pytest.mark.parametrize("index", range(NUM_PARTS))
@pytest.mark.parametrize("change", [lambda part: part[:-1], lambda part: part + b"x", lambda part: b""])
def test_a_part_that_was_cut_or_grew_is_corrupt(
    index: int, change: Callable[[bytes], bytes], store: Store, raw: "redis.Redis"
) -> None:
    head = commit_number(store, 1, base=None)
    name = f"{PREFIX}p:{head.generation}:{index}"
    part = raw.get(name)
    assert isinstance(part, bytes)
    raw.set(name, change(part))
    with pytest.raises(StateCorrupt, match="cut or grew"):
        store.load(KEY)


def test_a_lost_part_is_state_lost_and_names_the_version_that_is_still_whole(store: Store, raw: "redis.Redis") -> None:
    first = commit_number(store, 1, base=None)
    second = commit_number(store, 2, base=first)
    raw.delete(f"{PREFIX}p:{second.generation}:1")
    with pytest.raises(StateLost) as caught:
        store.load(KEY)
    assert caught.value.last_whole_version == 1
    assert whole_number(store, version=1) == 1
    raw.delete(f"{PREFIX}x:{first.generation}", f"{PREFIX}x:{second.generation}")
    with pytest.raises(StateLost) as caught:
        store.load_extra(KEY)
    assert caught.value.last_whole_version is None


def test_a_lost_head_is_an_absent_session_and_its_id_is_free(store: Store, raw: "redis.Redis") -> None:
    commit_number(store, 1, base=None)
    raw.delete(f"{PREFIX}head")
    with pytest.raises(SessionNotFound):
        store.load(KEY)
    assert store.list_sessions(KEY.tenant, 10) == []
    assert commit_number(store, 2, base=None).version == 1
    assert [session_id for session_id, _ in store.list_sessions(KEY.tenant, 10)] == [KEY.session_id]


def test_what_was_counted_wrongly_or_by_nobody_is_counted_again(store: Store, raw: "redis.Redis") -> None:
    usage = f"atlas:usage:{{atlas:index:{KEY.tenant}}}"
    others = [SessionKey(KEY.tenant, f"s{number}") for number in range(600)]
    heads = [commit_number(store, 1, base=None, key=key) for key in (KEY, *others[:2])]
    right = TenantUsage(3, sum(stored_num_bytes(head) for head in heads))
    assert store.usage(KEY.tenant) == right
    raw.delete(usage)
    assert store.usage(KEY.tenant) == TenantUsage(0, 0)
    assert store.recount(KEY.tenant) == store.usage(KEY.tenant) == right
    raw.hset(usage, KEY.session_id, 7)
    assert store.recount(KEY.tenant) == right
    # Entries that no session stands behind, more than are looked at in one go.
    for key in others[2:]:
        raw.zadd(f"atlas:index:{KEY.tenant}", {key.session_id: 0})
    raw.delete(usage)
    assert store.recount(KEY.tenant) == right
    assert raw.zcard(f"atlas:index:{KEY.tenant}") == 3


def test_a_head_that_is_no_head_is_corrupt(store: Store, raw: "redis.Redis") -> None:
    for broken in (b"", b"{", b"[]", b"{}", b'{"committed":[1]}', b"\xff", b"[" * 100_000):
        raw.hset(f"{PREFIX}head", "head", broken)
        with pytest.raises(StateCorrupt):
            store.read_head(KEY)


def test_an_altered_extra_is_corrupt(store: Store, raw: "redis.Redis") -> None:
    head = commit_number(store, 1, base=None)
    raw.set(f"{PREFIX}x:{head.generation}", b"extra 2")
    with pytest.raises(StateCorrupt):
        store.load_extra(KEY)


def test_flushall_under_us_is_an_absent_session_and_no_crash(store: Store, raw: "redis.Redis") -> None:
    head = commit_number(store, 1, base=None)
    raw.flushall()
    raw.script_flush()
    assert store.read_head(KEY) is None
    assert commit_number(store, 2, base=None).version == 1
    assert head.version == 1


def test_forgotten_scripts_are_sent_again(store: Store, raw: "redis.Redis") -> None:
    head = commit_number(store, 1, base=None)
    raw.script_flush()
    assert commit_number(store, 2, base=head).version == 2
    raw.script_flush()
    assert store.acquire_lease(KEY, "me", 10)


def test_a_quarantined_generation_keeps_a_copy_that_no_commit_drops(store: Store, raw: "redis.Redis") -> None:
    head = commit_number(store, 1, base=None)
    store.quarantine(KEY, head.committed)
    for number in (2, 3, 4):
        head = commit_number(store, number, base=head)
    copies = [key for key in keys_of(raw) if key.endswith(":quarantined")]
    assert len(copies) == NUM_PARTS + 1
    assert all(raw.ttl(key) > 24 * 3600 for key in copies)


def test_a_server_that_hangs_is_unavailable_soon_and_the_session_goes_on_when_it_wakes(
    store: Store, server: RedisServer
) -> None:
    head = commit_number(store, 1, base=None)
    new = generation_of(2)
    server.pause()
    for call in (lambda: store.read_head(KEY), lambda: store.commit(KEY, head, new), lambda: store.load(KEY)):
        begin = time.monotonic()
        with pytest.raises(StoreUnavailable):
            call()
        assert time.monotonic() - begin < 6
    server.resume()
    assert whole_number(store) == 1
    assert store.commit(KEY, head, new).version == 2
    assert whole_number(store) == 2
