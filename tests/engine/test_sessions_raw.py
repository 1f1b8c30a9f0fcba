"""Turns that read raw texts: what they feed, what they leave, and that they are no entries of the ledger."""

from pathlib import Path

import pytest

from engine.errors import EmptyPrompt
from engine.sampling.sampling_params import SamplingParams
from engine.sequence import Sequence
from engine.sessions import TurnRequest
from engine.snapshots.tokens_digest import INITIAL_DIGEST, extend_digest
from engine.stores.local import LocalStore
from tests.engine.harness import answer, assert_same_session, new_core, tiny
from tests.engine.replay_harness import LOGGING, log_of, record_of, replay
from tests.engine.sessions_harness import GREEDY, KEY, asked, house, in_loop, run

TEXT = "Mary went to the garden."


def raw(*prompts: str | tuple[int, ...], **fields: object) -> TurnRequest:
    request = asked("", messages=(), prompts=prompts, digest=repr(prompts), **fields)
    assert request.num_prompts == len(prompts)
    return request


def encode(text: str) -> list[int]:
    return tiny().tokenizer.encode(text)


def test_a_raw_text_is_fed_after_the_sessions_start_and_its_answer_is_closed() -> None:
    async def test() -> None:
        special = tiny().tokenizer.special
        fed = [special.bos, *encode(TEXT)]
        alone = answer(new_core(), Sequence("a", fed, GREEDY))
        async with house() as it:
            text, turn = await run(it.sessions, raw(TEXT))
            assert text == alone.text
            state = await it.state()
            assert_same_session(state, alone.state)
            assert state.pending_token_ids[-1] == special.end
            more = encode(" and then")
            _, turn = await run(it.sessions, raw(tuple(more)))
            fed += [*alone.token_ids, special.end, *more]
            assert turn.usage.num_prompt_tokens == len(fed)
            generated = answer(new_core(), Sequence("b", fed, GREEDY))
            assert (await it.state()).tokens_digest == generated.state.tokens_digest
            assert (await record_of(it)).ledger == ()

    in_loop(test)


def test_ids_that_bring_the_sessions_start_are_not_given_another() -> None:
    async def test() -> None:
        bos = tiny().tokenizer.special.bos
        ids = (bos, *encode(TEXT))
        async with house() as it:
            nothing = SamplingParams(max_tokens=0)
            await run(it.sessions, raw(ids, sampling=nothing))
            assert (await it.state()).tokens_digest == extend_digest(INITIAL_DIGEST, list(ids))
            # Later they are ids like any others.
            await run(it.sessions, raw(ids, sampling=nothing))
            end = tiny().tokenizer.special.end
            assert (await it.state()).tokens_digest == extend_digest(INITIAL_DIGEST, [*ids, end, *ids])

    in_loop(test)


@pytest.mark.parametrize("prompt", ["", (), (tiny().tokenizer.special.bos,)])
def test_a_text_of_nothing_is_refused_and_leaves_the_session_as_it_was(prompt: str | tuple[int, ...]) -> None:
    async def test() -> None:
        async with house() as it:
            with pytest.raises(EmptyPrompt):
                await run(it.sessions, raw(prompt))
            assert await it.head_version() is None

    in_loop(test)


def test_raw_and_spoken_turns_share_a_session_and_its_token_log(tmp_path: Path) -> None:
    async def test() -> None:
        async with house(LocalStore(tmp_path), LOGGING) as it:
            said, _ = await run(it.sessions, asked("one"))
            await run(it.sessions, raw(TEXT))
            await run(it.sessions, asked("one", said, "two"))
            before, log = await record_of(it), await log_of(it)
            assert len(before.ledger) == 4
            await replay(it)
            after = await record_of(it)
            assert after.ledger == before.ledger
            assert_same_session(after.state, before.state)
            assert await log_of(it) == log
            assert await it.head_version(KEY) == 4

    in_loop(test)
