"""A decode step waits for the device once, when it takes the ids that were sampled; on a CPU by what its calls are."""

import pytest

from engine.core import EngineCore
from engine.sampling_params import SamplingParams
from engine.sequence import Sequence
from tests.engine.harness import new_core, prompt
from tests.host_crossings import HostCrossings
from tests.tiny import TINY_MEMORY

GREEDY = SamplingParams(max_tokens=100, temperature=0.0, ignore_eos=True)
DRAWN = SamplingParams(max_tokens=100, top_k=20, top_p=0.9, seed=1, min_tokens=90)
# More than a chunk, so that rows commit in some of them.
NUM_STEPS = TINY_MEMORY.memory_chunk_size + 1


def decoding(core: EngineCore, *all_params: SamplingParams) -> EngineCore:
    """The core with an answer to each, all of them past their prompts."""
    for number, params in enumerate(all_params, start=1):
        core.add(Sequence(str(number), prompt("hello " * number), params))
    for _ in range(2 * len(all_params) + 2):
        core.step()
    assert core.stats().num_running == len(all_params)
    return core


@pytest.mark.parametrize("all_params", [[GREEDY], [GREEDY] * 3, [DRAWN] * 3, [GREEDY, DRAWN, GREEDY, DRAWN]])
def test_a_decode_step_takes_the_sampled_ids_and_nothing_else_from_the_device(all_params: list[SamplingParams]) -> None:
    core = decoding(new_core(), *all_params)
    for _ in range(NUM_STEPS):
        with HostCrossings() as crossings:
            core.step()
        assert [(found.name, found.where.partition(":")[0]) for found in crossings.found] == [
            ("tolist", "engine/sampler.py")
        ]


def test_answers_that_go_on_while_others_end_wait_for_no_more() -> None:
    core = decoding(new_core(), GREEDY, DRAWN, GREEDY)
    core.abort("2")
    core.step()
    for _ in range(NUM_STEPS):
        with HostCrossings() as crossings:
            core.step()
        assert [found.name for found in crossings.found] == ["tolist"]
