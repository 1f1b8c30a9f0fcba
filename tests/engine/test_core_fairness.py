"""The core with those who read beside those who write: what a document adds between two tokens, and what is counted."""

import dataclasses

from engine.choices import choices_from, shared_part
from engine.config import EngineConfig
from engine.core import EngineCore
from engine.sampling.sampling_params import SamplingParams
from engine.scheduling.pace import INITIAL_NUM_TOKENS, MIN_NUM_TOKENS
from engine.sequence import Priority, Sequence, SequenceState
from tests.engine.harness import new_core, prompt, run, tiny

NUM_WRITERS = 16
MAX_NUM_TOKENS = 40
# So much time that the bound in tokens is the one that counts.
CONFIG = EngineConfig(
    max_num_sequences=NUM_WRITERS + 2, max_added_itl_seconds=3600.0, max_num_interleaved_tokens=MAX_NUM_TOKENS
)
WRITING = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)


def core_with_writers(config: EngineConfig) -> EngineCore:
    """Sixteen sequences that have written one token each."""
    core = new_core(config)
    for number in range(NUM_WRITERS):
        core.add(Sequence(f"writer {number}", prompt(f"hello {number:2}"), WRITING))
    while any(sequence.is_prefilling for sequence in (*core._scheduler.running, *core._scheduler.waiting)):
        core.step()
    return core


def book(num_tokens: int, name: str = "book") -> Sequence:
    return Sequence(name, [20] * num_tokens, priority=Priority.BACKGROUND)


def test_a_million_tokens_beside_sixteen_writers_add_one_bounded_step_to_each_of_their_tokens() -> None:
    core = core_with_writers(CONFIG)
    core.add(book(1_000_000))
    num_steps, num_read_before = 0, core.stats().prompt_tokens_total
    while core.stats().num_running > 1 or not num_steps:
        before = core.stats()
        outputs = core.step()
        after, num_steps = core.stats(), num_steps + 1
        num_fed = after.iteration_tokens.total - before.iteration_tokens.total
        if num_steps % 2:
            assert (len(outputs), num_fed) == (NUM_WRITERS, NUM_WRITERS)
        else:
            assert (len(outputs), after.prompt_tokens_total - before.prompt_tokens_total) == (0, num_fed)
            assert MAX_NUM_TOKENS - tiny().model.config.memory.memory_chunk_size < num_fed <= MAX_NUM_TOKENS
    # The first tokens came before.
    assert num_steps == 2 * (WRITING.max_tokens - 1) - 1
    assert core.stats().prompt_tokens_total - num_read_before >= 35 * (WRITING.max_tokens - 2)
    core.abort("book")
    run(core)


def test_steps_that_take_longer_than_they_may_become_shorter_down_to_the_least() -> None:
    config = dataclasses.replace(CONFIG, max_added_itl_seconds=1e-9, max_num_interleaved_tokens=512)
    core = core_with_writers(config)
    assert core.stats().max_num_paced_tokens == INITIAL_NUM_TOKENS
    core.add(book(1000))
    for _ in range(10):
        core.step()
    assert core.stats().max_num_paced_tokens == MIN_NUM_TOKENS
    before = core.stats().prompt_tokens_total
    core.step()
    core.step()
    assert 0 < core.stats().prompt_tokens_total - before <= MIN_NUM_TOKENS
    run(core)


def test_documents_are_counted_apart_and_so_is_their_time_in_the_queue() -> None:
    core = new_core(EngineConfig(max_num_sequences=2))
    for number in range(3):
        core.add(book(5, f"book {number}"))
    core.add(Sequence("question", prompt("hello"), WRITING))
    stats = core.stats()
    assert (stats.num_waiting, stats.num_background_waiting, stats.num_background_running) == (4, 3, 0)
    core.step()
    stats = core.stats()
    assert (stats.num_waiting, stats.num_background_waiting) == (2, 2)
    run(core)
    stats = core.stats()
    assert sum(stats.queue_seconds[Priority.BACKGROUND].counts) == 3
    assert sum(stats.queue_seconds[Priority.INTERACTIVE].counts) == 1
    assert stats.num_background_waiting == stats.num_background_running == 0


def test_choices_belong_to_the_tenant_and_the_kind_of_their_prompt() -> None:
    state = SequenceState(tiny().model.initial_state(1), b"")
    asked = Sequence("n", [5, 6, 7], WRITING, tenant="acme", priority=Priority.BACKGROUND)
    for sequence in (shared_part(asked), *choices_from(asked, state, 3)):
        assert (sequence.tenant, sequence.priority) == ("acme", Priority.BACKGROUND)
