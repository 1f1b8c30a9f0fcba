"""Every crash point of a commit, tried: after a kill or a failure the last committed generation or the new one is
there, whole, and never a mixture."""

import multiprocessing
import signal
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from engine import failpoints
from engine.errors import StoreFull, StoreUnavailable
from engine.stores import open_store
from engine.stores.base import Store
from engine.stores.succession import DEFAULT_NUM_KEPT
from tests.engine.commit_loop import commit_until_killed
from tests.engine.store_cases import KEY, generation_of, logged_generation_of, logged_numbers, whole_number

LOCAL_STEPS = (
    "commit.before_parts",
    "commit.part",
    "commit.before_sync",
    "commit.before_rename",
    "commit.before_directory_sync",
    "commit.before_flip",
    "commit.before_log",
    "commit.before_log_sync",
    "commit.in_flip",
    "commit.after_flip",
    "commit.before_drop",
    "commit.after_drop",
)
REDIS_STEPS = (
    "commit.before_parts",
    "commit.part",
    "commit.before_flip",
    "commit.after_flip",
    "redis.request",
    "redis.reply",
)
durable = pytest.mark.parametrize("store_url", ["local", pytest.param("redis", marks=pytest.mark.redis)], indirect=True)


# Children are forked from a server that has imported everything: a killed one costs milliseconds, not an interpreter.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.engine.commit_loop"])


def run_until_killed(url: str, spec: str, seconds: float | None = None) -> int:
    """The last version that a child acknowledged before a failpoint killed it, or we did `seconds` after its first."""
    reader, writer = PROCESSES.Pipe(duplex=False)
    child = PROCESSES.Process(target=commit_until_killed, args=(url, spec, writer))
    child.start()
    writer.close()
    acknowledged = [0]
    with suppress(EOFError):
        if seconds is not None:
            acknowledged.append(reader.recv())
            time.sleep(seconds)
            child.kill()
        while True:
            acknowledged.append(reader.recv())
    reader.close()
    child.join(timeout=60)
    assert child.exitcode == -signal.SIGKILL
    child.close()
    assert acknowledged == sorted(set(acknowledged))
    return acknowledged[-1]


def check_after_crash(url: str, acknowledged: int) -> None:
    store = open_store(url)
    try:
        head = store.read_head(KEY)
        version = head.version if head else 0
        assert version in (acknowledged, acknowledged + 1)
        if head is not None:
            assert whole_number(store) == head.version
            assert store.load_extra(KEY) == f"extra {head.version}".encode()
            assert logged_numbers(store) == list(range(1, head.version + 1))
        committed = store.commit(KEY, head, logged_generation_of(version + 1))
        assert whole_number(store) == committed.version == version + 1
        assert logged_numbers(store) == list(range(1, version + 2))
    finally:
        store.close()


@pytest.mark.parametrize("step", LOCAL_STEPS)
def test_a_server_killed_at_any_step_of_a_local_commit_leaves_one_whole_generation(
    step: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    url = f"local://{tmp_path_factory.mktemp('store')}"
    for crossing in (1, 4):
        check_after_crash(url, run_until_killed(url, f"{step}={crossing}:kill"))
        names = {path.name for path in _blob_directory(url).iterdir()}
        assert not [name for name in names if name.endswith(".tmp")]
        assert len(names) <= 1 + DEFAULT_NUM_KEPT


@pytest.mark.redis
@pytest.mark.parametrize("store_url", ["redis"], indirect=True)
@pytest.mark.parametrize("step", REDIS_STEPS)
def test_a_server_killed_at_any_step_of_a_redis_commit_leaves_one_whole_generation(step: str, store_url: str) -> None:
    for crossing in (1, 2, 5):
        store = open_store(store_url)
        store.delete(KEY)
        store.close()
        check_after_crash(store_url, run_until_killed(store_url, f"{step}={crossing}:kill"))


@durable
def test_a_server_killed_at_random_moments_loses_no_acknowledged_version(store_url: str) -> None:
    for round_number in range(12):
        acknowledged = run_until_killed(store_url, "", seconds=0.013 * round_number)
        store = open_store(store_url)
        head = store.read_head(KEY)
        assert head is not None
        assert head.version in (acknowledged, acknowledged + 1)
        assert whole_number(store) == head.version
        assert logged_numbers(store) == list(range(1, head.version + 1))
        store.close()


@pytest.mark.usefixtures("disarmed")
@pytest.mark.parametrize("step", LOCAL_STEPS)
@pytest.mark.parametrize("errno_name", ["ENOSPC", "EROFS", "EIO", "EACCES"])
def test_a_local_commit_that_fails_at_any_step_leaves_one_whole_generation_and_can_be_retried(
    step: str, errno_name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    url = f"local://{tmp_path_factory.mktemp('store')}"
    store = open_store(url)
    head = store.commit(KEY, None, logged_generation_of(1))
    new = logged_generation_of(2)
    failpoints.arm(f"{step}=1:{errno_name}")
    if step in ("commit.before_drop", "commit.after_drop"):
        assert store.commit(KEY, head, new).version == 2
    else:
        expected = StoreUnavailable if errno_name == "EACCES" else StoreFull
        with pytest.raises(expected):
            store.commit(KEY, head, new)
        assert whole_number(store) == (2 if step == "commit.after_flip" else 1)
        num_blobs = 2 if step == "commit.after_flip" else 1
        assert logged_numbers(store) == [1, 2][:num_blobs]
        assert len(list(_blob_directory(url).iterdir())) == num_blobs
    assert store.commit(KEY, head, new).version == 2
    assert whole_number(store) == 2
    assert logged_numbers(store) == [1, 2]
    store.close()


@pytest.mark.redis
@pytest.mark.usefixtures("disarmed")
@pytest.mark.parametrize("store_url", ["redis"], indirect=True)
@pytest.mark.parametrize("step", ["redis.request", "redis.reply"])
def test_whichever_redis_command_of_a_commit_fails_one_whole_generation_is_seen_and_a_retry_succeeds(
    step: str, store: Store
) -> None:
    head = store.commit(KEY, None, logged_generation_of(1))
    failed = 0
    for number in range(2, 40):
        new = logged_generation_of(number)
        failpoints.arm(f"{step}={number - 1}:error")
        try:
            committed = store.commit(KEY, head, new)
        except StoreUnavailable:
            failed += 1
            failpoints.disarm()
            assert whole_number(store) in (number - 1, number)
            committed = store.commit(KEY, head, new)
        else:
            failpoints.disarm()
            assert failed == number - 2
            break
        assert committed.version == number
        assert whole_number(store) == number
        assert logged_numbers(store) == list(range(1, number + 1))
        head = committed
    # The parts, the extra and the entry in the index in one round trip, and the flip in another.
    assert failed == 2


@pytest.mark.usefixtures("disarmed")
@durable
@pytest.mark.parametrize("step", ["commit.part", "commit.before_flip", "commit.after_flip"])
def test_readers_see_a_whole_generation_between_a_failure_and_its_retry(step: str, store: Store) -> None:
    head = store.create(KEY, replace(generation_of(0), log=b""))
    for number in range(1, 6):
        new = logged_generation_of(number)
        failpoints.arm(f"{step}=1:ETIMEDOUT")
        with pytest.raises(StoreUnavailable):
            store.commit(KEY, head, new)
        assert whole_number(store) == (number if step == "commit.after_flip" else number - 1)
        head = store.commit(KEY, head, new)
        assert (head.version, whole_number(store)) == (number, number)
        assert logged_numbers(store) == list(range(1, number + 1))


def test_a_failpoint_that_cannot_be_read_is_refused_by_name() -> None:
    for spec in ("commit.part", "commit.part=0:kill", "commit.part=x:kill", "commit.part=1:explode", "=1:kill"):
        with pytest.raises(ValueError, match="failpoint"):
            failpoints.arm(spec)


@pytest.mark.usefixtures("disarmed")
def test_a_failpoint_fires_at_its_own_pass_and_only_then() -> None:
    failpoints.arm("one=3:ENOSPC, two=1:error")
    failpoints.failpoint("one")
    failpoints.failpoint("one")
    with pytest.raises(OSError, match="No space left"):
        failpoints.failpoint("one")
    failpoints.failpoint("one")
    with pytest.raises(OSError, match="two"):
        failpoints.failpoint("two")
    failpoints.failpoint("three")


def _blob_directory(url: str) -> Path:
    return Path(url.removeprefix("local://")) / "blobs"
