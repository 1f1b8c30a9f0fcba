import pytest
import torch

from engine.device.model_runner import ModelRunner
from engine.device.state_pool import StatePool
from tests.tiny import tiny_checkpoint

CPU = torch.device("cpu")
PIECES = [[5, 6, 7, 8, 9, 10, 11], [12], [13, 14, 15, 16]]


def runner_with_pool(num_slots: int = 4) -> tuple[ModelRunner, StatePool]:
    """Every slot holds a session that was fed nothing."""
    model = tiny_checkpoint().model
    pool = StatePool(model.config, num_slots, CPU)
    for _ in range(num_slots):
        pool.load(pool.acquire(), model.initial_state(1))
    return ModelRunner(model, pool, CPU), pool


def test_a_piece_in_a_ragged_batch_gives_what_it_gives_alone() -> None:
    with torch.inference_mode():
        runner, pool = runner_with_pool()
        together = runner.prefill([2, 0, 3], PIECES).logits
        alone_runner, alone_pool = runner_with_pool()
        for row, (slot, piece) in enumerate(zip([2, 0, 3], PIECES, strict=True)):
            alone = alone_runner.prefill([slot], [piece]).logits
            torch.testing.assert_close(together[row], alone[0], rtol=1e-9, atol=1e-9)
        expected = alone_pool.read([0, 1, 2, 3]).named_tensors()
        for name, tensor in pool.read([0, 1, 2, 3]).named_tensors().items():
            torch.testing.assert_close(tensor, expected[name], rtol=1e-9, atol=1e-9)


def test_decoding_tokens_gives_what_prefilling_them_gives() -> None:
    with torch.inference_mode():
        runner, pool = runner_with_pool()
        expected = runner.prefill([1, 2], [PIECES[0], PIECES[2]]).logits
        for position in range(7):
            slots = [0, 3] if position < 4 else [0]
            ids = [PIECES[0][position], *PIECES[2][position : position + 1]]
            logits = runner.decode(slots, ids, [position] * len(slots))
            if position == 3:
                torch.testing.assert_close(logits[1], expected[1], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(logits[0], expected[0], rtol=1e-9, atol=1e-9)
        assert pool.read([0, 1, 2, 3]).position.tolist() == [7, 7, 4, 4]


def test_slots_that_are_no_neighbours_decode_in_their_place_and_in_the_order_they_are_asked() -> None:
    """Of any set, as sequences come and go: no state is copied, and logits and states are those of each slot alone."""
    ids = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        runner, pool = runner_with_pool(6)
        alone_runner, alone_pool = runner_with_pool(6)
        position = [0] * 6
        for slots in [[0, 1, 2, 3, 4, 5], [5, 0, 3], [3, 0], [4, 0, 3], [1, 5], [0, 1, 2, 3, 4, 5]]:
            for _ in range(7):
                token_ids = torch.randint(5, 200, (len(slots),), generator=ids).tolist()
                logits = runner.decode(slots, token_ids, [position[slot] for slot in slots])
                for row, (slot, token_id) in enumerate(zip(slots, token_ids, strict=True)):
                    alone = alone_runner.decode([slot], [token_id], [position[slot]])
                    torch.testing.assert_close(logits[row], alone[0], rtol=1e-9, atol=1e-9)
                    position[slot] += 1
            first = min(slots, key=pool.row)
            batch = pool.read(sorted(slots, key=pool.row)).named_tensors()
            row_tensors = pool.read([first]).named_tensors()
            assert all(tensor.data_ptr() == row_tensors[name].data_ptr() for name, tensor in batch.items())
        expected = alone_pool.read(range(6)).named_tensors()
        for name, tensor in pool.read(range(6)).named_tensors().items():
            torch.testing.assert_close(tensor, expected[name], rtol=1e-9, atol=1e-9)


def test_when_the_model_raises_no_slot_has_changed() -> None:
    with torch.inference_mode():
        runner, pool = runner_with_pool()
        runner.prefill([0, 1], [[5, 6], [7, 8]])
        before = pool.read([0, 1, 2, 3]).clone().named_tensors()
        with pytest.raises(IndexError):
            runner.prefill([0, 1], [[5], [10**6]])
        with pytest.raises(IndexError):
            runner.decode([0, 1], [5, 10**6], [2, 2])
        after = pool.read([0, 1, 2, 3]).named_tensors()
        assert all(torch.equal(before[name], after[name]) for name in before)
