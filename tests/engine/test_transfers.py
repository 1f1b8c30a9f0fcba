import pytest
import torch

from atlas_model.state import State
from engine.config import EngineConfig
from engine.device.transfers import Transfers
from engine.sampling.sampling_params import SamplingParams
from engine.sequence import Sequence
from tests.engine.harness import assert_same_session, new_core, prompt, run, tiny_on_its_own
from tests.tiny import tiny_checkpoint, tiny_config

CONFIG = tiny_config()
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
ENOUGH = 2**30


def random_row(device: torch.device) -> State:
    generator = torch.Generator().manual_seed(0)
    return (
        tiny_checkpoint()
        .model.initial_state(1)
        .map(lambda tensor: torch.rand(tensor.shape, generator=generator).mul(9).to(device, tensor.dtype))
    )


def is_equal(a: State, b: State) -> bool:
    others = b.named_tensors()
    return all(torch.equal(tensor.cpu(), others[name].cpu()) for name, tensor in a.named_tensors().items())


def test_on_a_cpu_a_state_has_arrived_at_once() -> None:
    copy = Transfers(CONFIG, CPU, ENOUGH).to_host(random_row(CPU))
    assert copy.has_arrived
    assert is_equal(copy.state, random_row(CPU))
    assert copy.wait() is copy.state


@pytest.mark.gpu
@pytest.mark.parametrize("max_pinned_num_bytes", [ENOUGH, 0])
def test_a_state_arrives_whole_while_its_row_is_freed_and_the_device_goes_on(max_pinned_num_bytes: int) -> None:
    transfers = Transfers(CONFIG, CUDA, max_pinned_num_bytes)
    expected = random_row(CPU)
    work = torch.rand(2048, 2048, device=CUDA)
    for _ in range(50):
        copies = []
        for _ in range(4):
            copies.append(transfers.to_host(random_row(CUDA)))
            work = (work @ work).clamp(0, 1)
            # Takes the memory that the row had, were it free too early.
            random_row(CUDA).map(torch.zero_)
        assert all(is_equal(copy.wait(), expected) for copy in copies)
        assert all(copy.has_arrived for copy in copies)
        assert all(copy.state.position.is_pinned() == (max_pinned_num_bytes > 0) for copy in copies)


@pytest.mark.gpu
def test_sequences_on_a_gpu_leave_the_states_that_those_on_a_cpu_do() -> None:
    left = {}
    for device in ("cpu", "cuda"):
        core = new_core(EngineConfig(max_num_sequences=4, device=device), tiny_on_its_own())
        greedy = SamplingParams(max_tokens=11, temperature=0.0, ignore_eos=True)
        sequences = [Sequence(str(number), prompt("hello " * number), greedy) for number in range(1, 7)]
        left[device] = {name: answer.state for name, answer in run(core, *sequences).items()}
    for name, state in left["cpu"].items():
        assert_same_session(left["cuda"][name], state, tolerance=1e-7)
