import torch

from atlas_model.state import State
from engine.device.pinned_states import PinnedStates
from tests.tiny import tiny_config

CONFIG = tiny_config()
LARGE = 2**30


def first_states(max_num_bytes: int) -> tuple[PinnedStates, list[State]]:
    """As many as there is room for."""
    states = PinnedStates(CONFIG, max_num_bytes, pin_memory=False)
    taken: list[State] = []
    while len(taken) < 5 and (state := states.allocate()) is not None:
        taken.append(state)
    return states, taken


def test_the_tensors_of_a_state_lie_apart_in_one_piece() -> None:
    _, (state, *_) = first_states(LARGE)
    tensors = state.named_tensors()
    for value, tensor in enumerate(tensors.values()):
        tensor.fill_(value)
    assert [float(tensor.double().min()) for tensor in tensors.values()] == list(range(len(tensors)))
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors.values()}) == 1
    assert all(tensor.is_contiguous() for tensor in tensors.values())


def test_states_are_bounded_with_the_rounding_of_their_pieces() -> None:
    _, (state, *_) = first_states(LARGE)
    num_bytes = state.position.untyped_storage().nbytes()
    rounded = 1 << (num_bytes - 1).bit_length()
    assert rounded > num_bytes
    assert len(first_states(3 * rounded)[1]) == 3
    assert len(first_states(3 * rounded - 1)[1]) == 2
    assert first_states(0)[1] == []


def test_there_is_room_again_when_the_last_tensor_of_a_state_is_gone() -> None:
    _, (state, *_) = first_states(LARGE)
    rounded = 1 << (state.position.untyped_storage().nbytes() - 1).bit_length()
    states, taken = first_states(rounded)
    position = taken.pop().position
    assert states.allocate() is None
    assert torch.equal(position, position)
    del position
    assert states.allocate() is not None
