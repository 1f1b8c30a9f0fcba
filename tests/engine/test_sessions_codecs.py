"""Sessions under a codec that rounds: a server goes on from the bits that another one would load."""

from collections.abc import AsyncIterator

import pytest

from engine.sampling.sampling_params import SamplingParams
from engine.sequence import SequenceState
from engine.sessions import SessionConfig
from engine.snapshots.codecs import Codec
from engine.stores.base import SessionKey
from engine.stores.memory import MemoryStore
from tests.engine.engines import until
from tests.engine.harness import assert_same_session
from tests.engine.sessions_harness import KEY, House, asked, house, in_loop, in_pieces, ingest, run, text_of
from tests.engine.versions_harness import OTHER, exported, fork, imported, rewind

SAMPLED = SamplingParams(temperature=1.0, seed=3, max_tokens=10)
ROUNDING = [Codec.BF16, Codec.INT8]
QUESTIONS = ("one", "two", "three")


async def version_of(it: House, version: int) -> SequenceState:
    _, record = await it.storage.load(KEY, version)
    assert record is not None
    return record.state


@pytest.mark.parametrize("codec", Codec)
def test_a_restart_between_any_two_turns_changes_nothing(codec: Codec) -> None:
    """Row 6, for each codec."""

    async def test() -> None:
        store = MemoryStore()
        restarted = []
        for question in QUESTIONS:
            async with house(store, codec=codec) as it:
                restarted.append((await run(it.sessions, asked(question, sampling=SAMPLED)))[0])
                expected = await it.state()
        async with house(codec=codec) as it:
            uninterrupted = [(await run(it.sessions, asked(question, sampling=SAMPLED)))[0] for question in QUESTIONS]
            assert restarted == uninterrupted
            assert_same_session(await it.state(), expected, tolerance=0)
            _, committed = await it.committed(KEY)
            assert committed is not None
            assert_same_session(committed, expected, tolerance=0)

    in_loop(test)


@pytest.mark.parametrize("codec", Codec)
def test_a_restart_in_the_middle_of_a_document_changes_nothing(codec: Codec) -> None:
    raw = text_of(14)

    async def broken_off() -> AsyncIterator[bytes]:
        async for piece in in_pieces(raw[: len(raw) * 2 // 3], 50):
            yield piece
        raise ConnectionError

    async def test() -> None:
        async with house(codec=codec) as it:
            progress, _ = await ingest(it.sessions, in_pieces(raw, 333), document_id="book")
            assert len(progress) > 2
            uninterrupted = await it.state()
        store = MemoryStore()
        async with house(store, codec=codec) as it:
            with pytest.raises(ConnectionError):
                await ingest(it.sessions, broken_off(), document_id="book")
            head, _ = await it.sessions.describe(KEY)
            assert head.open_ingest is not None
        async with house(store, codec=codec) as it:
            offset = head.open_ingest.offset
            assert offset > 0
            await ingest(it.sessions, in_pieces(raw[offset:], 99), document_id="book", offset=offset)
            assert_same_session(await it.state(), uninterrupted, tolerance=0)

    in_loop(test)


@pytest.mark.parametrize("codec", ROUNDING)
def test_nobody_goes_on_from_the_row_of_the_unrounded_state(codec: Codec) -> None:
    async def test() -> None:
        async with house(codec=codec) as it, house() as exact:
            for question in QUESTIONS:
                await run(it.sessions, asked(question))
                await run(exact.sessions, asked(question))
            assert it.observed.tiers == ["host", "host"]
            assert exact.observed.tiers == ["device", "device"]
            with pytest.raises(AssertionError):
                assert_same_session(await it.state(), await exact.state(), tolerance=0)
            assert_same_session(await it.state(), await exact.state(), tolerance=0.1)
            await until(lambda: it.engine.stats().num_resident_states == 0)

    in_loop(test)


@pytest.mark.parametrize("codec", ROUNDING)
def test_nobody_can_start_from_the_unrounded_row_that_a_document_leaves(codec: Codec) -> None:
    async def test() -> None:
        async with house(codec=codec) as it:
            await ingest(it.sessions, in_pieces(text_of(14), 333))
            await until(lambda: it.engine.stats().num_resident_states == 0)
            assert it.observed.tiers == []

    in_loop(test)


@pytest.mark.parametrize("codec", ROUNDING)
def test_rewinds_forks_and_imports_over_and_over_do_not_move_a_number(codec: Codec) -> None:
    async def test() -> None:
        async with house(codec=codec) as it:
            await run(it.sessions, asked("one"))
            expected = await it.state()
            raw = await exported(it)
            for version in (1, 3, 5):
                await run(it.sessions, asked("two"))
                assert await rewind(it, version) == version + 2
                assert_same_session(await it.state(), expected, tolerance=0)
            assert await exported(it) == raw
            await fork(it)
            assert_same_session(await it.state(OTHER), expected, tolerance=0)
        for server in Codec:
            async with house(codec=server) as there:
                key = SessionKey(KEY.tenant, server)
                await imported(there, [raw], key)
                if server in (codec, Codec.NONE):
                    assert_same_session(await there.state(key), expected, tolerance=0)

    in_loop(test)


@pytest.mark.parametrize("before", Codec)
@pytest.mark.parametrize("after", Codec)
def test_the_setting_may_be_changed_at_any_time_and_the_next_commit_follows_it(before: Codec, after: Codec) -> None:
    async def test() -> None:
        store = MemoryStore()
        async with house(store, codec=before) as it:
            await run(it.sessions, asked("one"))
            expected = await it.state()
        async with house(store, codec=after) as it, house(codec=after) as fresh:
            assert_same_session(await it.state(), expected, tolerance=0)
            await run(it.sessions, asked("two"))
            for question in QUESTIONS[:2]:
                await run(fresh.sessions, asked(question))
            sizes = [(await each.sessions.describe(KEY))[0].num_bytes for each in (it, fresh)]
            assert sizes[0] == sizes[1]
            assert_same_session(await version_of(it, 1), expected, tolerance=0)

    in_loop(test)


def test_copies_on_the_host_are_counted_by_what_they_take_there_and_not_in_the_store() -> None:
    async def test() -> None:
        async with house() as exact:
            await run(exact.sessions, asked("one"))
            num_bytes = sum(tensor.nbytes for tensor in (await exact.state()).tensors.named_tensors().values())
        # Room for two as the store has them, and for one as it is here.
        config = SessionConfig(max_host_num_bytes=2 * num_bytes - 1)
        async with house(config=config, codec=Codec.INT8) as it:
            for name in ("a", "b"):
                await run(it.sessions, asked("one", session=SessionKey(KEY.tenant, name)))
                assert it.sessions.num_host_copies == 1
            head, _ = await it.sessions.describe(SessionKey(KEY.tenant, "b"))
            assert 2 * (head.num_bytes + head.committed.extra_num_bytes) < config.max_host_num_bytes

    in_loop(test)
