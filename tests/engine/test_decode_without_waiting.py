"""A decode step waits for the device once, when it takes the ids that were sampled; on a CPU by what its calls are."""

import warnings

import pytest
import torch

from atlas_model.config import AtlasConfig
from engine.config import EngineConfig
from engine.core import EngineCore
from engine.device.model_runner import ModelRunner
from engine.device.state_pool import StatePool
from engine.sampling.ranking import SortedRanking
from engine.sampling.sampling_params import SamplingParams
from engine.sequence import Sequence
from tests.atlas_model.test_model import LAYOUTS
from tests.engine.harness import new_core, prompt, tiny_on_its_own
from tests.host_crossings import HostCrossings
from tests.tiny import TINY_MEMORY, tiny_model

CPU = torch.device("cpu")
# What draws on every device but the CPU.
pytestmark = pytest.mark.usefixtures("device_that_sorts")
GREEDY = SamplingParams(max_tokens=100, temperature=0.0, ignore_eos=True)
DRAWN = SamplingParams(max_tokens=100, top_k=20, top_p=0.9, seed=1, min_tokens=90)
TOLD = SamplingParams(max_tokens=100, min_p=0.01, seed=2, min_tokens=90, logprobs=5)
ADJUSTED = SamplingParams(
    max_tokens=100,
    temperature=0.0,
    ignore_eos=True,
    presence_penalty=0.5,
    frequency_penalty=0.1,
    repetition_penalty=1.1,
    logit_bias=((9, 1.0),),
    logprobs=0,
)
# More than a chunk, so that rows commit in some of them.
NUM_STEPS = TINY_MEMORY.memory_chunk_size + 1


@pytest.fixture
def device_that_sorts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.sampling.sampler.BinnedRanking", SortedRanking)


def decoding(core: EngineCore, *all_params: SamplingParams) -> EngineCore:
    """The core with an answer to each, all of them past their prompts."""
    for number, params in enumerate(all_params, start=1):
        core.add(Sequence(str(number), prompt("hello " * number), params))
    for _ in range(2 * len(all_params) + 2):
        core.step()
    assert core.stats().num_running == len(all_params)
    return core


def crossings_of_a_step(core: EngineCore) -> list[tuple[str, str]]:
    with HostCrossings() as crossings:
        core.step()
    return [(found.name, found.where.partition(":")[0]) for found in crossings.found]


@pytest.mark.parametrize(
    "all_params", [[GREEDY], [GREEDY] * 3, [DRAWN] * 3, [GREEDY, DRAWN, GREEDY, DRAWN], [TOLD, ADJUSTED, GREEDY]]
)
def test_a_decode_step_takes_the_sampled_ids_and_nothing_else_from_the_device(all_params: list[SamplingParams]) -> None:
    core = decoding(new_core(), *all_params)
    for _ in range(NUM_STEPS):
        assert crossings_of_a_step(core) == [("tolist", "engine/sampling/sampler.py")]


def test_answers_that_go_on_when_another_has_ended_wait_for_no_more() -> None:
    core = decoding(new_core(), GREEDY, DRAWN, GREEDY)
    core.abort("2")
    core.step()
    for _ in range(NUM_STEPS):
        assert crossings_of_a_step(core) == [("tolist", "engine/sampling/sampler.py")]


@pytest.mark.parametrize("config", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_no_layout_waits_for_the_device_while_it_steps(config: AtlasConfig) -> None:
    model = tiny_model(config)
    with torch.inference_mode():
        pool = StatePool(config, 4, CPU)
        slots = [pool.acquire() for _ in range(4)]
        for slot in slots:
            pool.load(slot, model.initial_state(1))
        runner = ModelRunner(model, pool, CPU)
        with HostCrossings() as crossings:
            for position in range(NUM_STEPS):
                runner.decode([3, 1], [7, 8], [position, position])
    assert crossings.found == []


@pytest.mark.gpu
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_torch_counts_one_synchronisation_in_a_decode_step(cuda_graphs: bool) -> None:
    config = EngineConfig(max_num_sequences=4, device="cuda", cuda_graphs=cuda_graphs)
    core = decoding(new_core(config, tiny_on_its_own()), GREEDY, DRAWN, TOLD, ADJUSTED)
    for _ in range(NUM_STEPS):
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            core.step()
            torch.cuda.set_sync_debug_mode("default")
        assert len([each for each in found if "synchroniz" in str(each.message)]) == 1
