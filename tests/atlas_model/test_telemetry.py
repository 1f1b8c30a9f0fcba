"""A sample says what is in the memory and in the forward it is taken from, and leaves no trace in either."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch

from atlas_model.config import AtlasConfig, AttentionConfig
from atlas_model.inspection import HeadReport, inspect_memory
from atlas_model.model import AtlasModel
from atlas_model.state import State
from atlas_model.telemetry import LayerSample, MemoryRecording, sample_memory
from tests.tiny import TINY_MEMORY, tiny_config, tiny_model

SIZE = TINY_MEMORY.memory_chunk_size
READ = torch.arange(40) % 50
NEXT = torch.arange(100, 100 + 2 * SIZE)


def after_reading(config: AtlasConfig) -> tuple[AtlasModel, State]:
    model = tiny_model(config)
    return model, model(READ[None]).state


def sampled(model: AtlasModel, state: State, token_ids: torch.Tensor = NEXT) -> tuple[LayerSample, ...]:
    layers = sample_memory(model, state, token_ids)
    assert layers is not None
    return layers


def mean_root(heads: list[HeadReport], name: str) -> float:
    """Mean over heads of the root of the sum of squares over a head's matrices."""
    squares = [sum(getattr(matrix, name) ** 2 for matrix in head.matrices.values()) for head in heads]
    return float(sum(each**0.5 for each in squares) / len(squares))


@pytest.mark.parametrize("network", ["matrix", "mlp"])
def test_a_sample_is_the_mean_of_what_an_inspection_says_of_the_heads(network: str) -> None:
    model, state = after_reading(tiny_config(memory=replace(TINY_MEMORY, network=network)))
    heads = inspect_memory(model, state)
    for layer in sampled(model, state):
        own = [each for each in heads if each.layer == layer.layer]
        matrices = [matrix for head in own for matrix in head.matrices.values()]
        for name in ("norm", "momentum_norm", "distance_from_initial"):
            assert getattr(layer, name) == pytest.approx(mean_root(own, name), rel=1e-5)
            assert getattr(layer, name) > 0
        ranks = [each.effective_rank for each in matrices]
        assert layer.effective_rank == pytest.approx(sum(ranks) / len(ranks), rel=1e-5)
        tops = [each.singular_values[0] for each in matrices]
        assert layer.top_singular_value == pytest.approx(sum(tops) / len(tops), rel=1e-5)


def test_gates_are_means_over_the_tokens_and_the_update_is_what_they_change() -> None:
    model, state = after_reading(tiny_config())
    output = model(NEXT[None], state)
    for layer, gates, old, new in zip(
        sampled(model, state), output.gates, state.layers, output.state.layers, strict=True
    ):
        assert old.memory is not None
        assert new.memory is not None
        for name in ("token_gate", "retention", "inner_lr", "momentum_decay"):
            assert getattr(layer, name) == pytest.approx(float(getattr(gates, name).mean()), rel=1e-6)
        moved = (new.memory.memory["w"] - old.memory.memory["w"]).norm(dim=(-2, -1)).mean() / len(NEXT)
        assert layer.update_norm == pytest.approx(float(moved), rel=1e-5)
        assert layer.global_retention == pytest.approx(
            float(model.blocks[layer.layer].mixer.gate_maps.global_retention.mean())  # type: ignore[union-attr, operator]
        )


def test_tokens_that_complete_no_chunk_tell_no_update() -> None:
    model, state = after_reading(tiny_config())
    assert all(layer.update_norm is None for layer in sampled(model, state, NEXT[: SIZE - 1]))
    assert all(layer.update_norm is not None for layer in sampled(model, state, NEXT[:SIZE]))


def test_surprise_is_the_loss_before_the_tokens_are_learned_and_is_less_when_they_come_again() -> None:
    model = tiny_model(tiny_config(layout="lmm", attention=None, num_layers=1))
    state = model.initial_state(1)
    (first,) = sampled(model, state)
    for _ in range(4):
        state = model(NEXT[None], state).state
    (again,) = sampled(model, state)
    assert again.surprise < first.surprise
    (alone,) = sampled(model, model.initial_state(1), NEXT[:1])
    (memory,) = (layer.memory for layer in model(NEXT[None, :1], model.initial_state(1)).state.layers)
    assert memory is not None
    start = TINY_MEMORY.omega_window - 1
    # The initial memory answers nothing at all, so what it is surprised by is the value itself.
    expected = 0.5 * memory.values[0, :, start].square().sum(-1).mean()
    assert alone.surprise == pytest.approx(float(expected), rel=1e-6)


def test_the_memorys_share_is_all_without_attention_and_none_when_it_adds_nothing() -> None:
    model, state = after_reading(tiny_config(layout="lmm", attention=None))
    assert [layer.memory_share for layer in sampled(model, state)] == [1.0, 1.0]
    for layout in ("mag", "mal"):
        model, state = after_reading(tiny_config(layout=layout))
        shares = [layer.memory_share for layer in sampled(model, state)]
        assert all(share is not None and 0.01 < share < 0.99 for share in shares)
        for block in model.blocks:
            out = block.mixer.out.weight  # type: ignore[union-attr]
            out[:, -TINY_MEMORY.num_heads * TINY_MEMORY.value_width :] = 0.0  # type: ignore[operator]
        assert [layer.memory_share for layer in sampled(model, state)] == pytest.approx([0.0, 0.0], abs=1e-9)


def test_a_row_among_others_is_sampled_as_it_is_alone_and_the_forward_is_the_same_bits() -> None:
    model = tiny_model(tiny_config())
    state = model(torch.stack([READ, READ.flip(0)])).state
    token_ids, lengths = torch.stack([NEXT, NEXT + 7]), torch.tensor([len(NEXT), SIZE + 1])
    plain = model(token_ids, state, lengths=lengths)
    with MemoryRecording(model, {1: SIZE + 1}) as recording:
        output = model(token_ids, state, lengths=lengths)
    assert torch.equal(plain.logits, output.logits)
    for name, tensor in plain.state.named_tensors().items():
        assert torch.equal(tensor, output.state.named_tensors()[name]), name
    together = recording.sample(1, state, output)
    assert together is not None
    alone = sampled(model, state.gather(torch.tensor([1])), token_ids[1, : SIZE + 1])
    for left, right in zip(together, alone, strict=True):
        for field in fields(LayerSample):
            assert getattr(left, field.name) == pytest.approx(getattr(right, field.name), rel=1e-6), field.name
    assert not any(module._forward_hooks for module in model.modules())


def test_a_memory_that_is_not_finite_gives_no_sample() -> None:
    model, state = after_reading(tiny_config())
    memory = state.layers[1].memory
    assert memory is not None
    memory.memory["w"][0, 0, 0, 0] = float("inf")
    assert sample_memory(model, state, NEXT) is None


def test_a_memory_as_context_is_sampled_too_wherever_its_chunk_stands_and_no_memory_gives_no_sample() -> None:
    attention = AttentionConfig(num_heads=2, window=2 * SIZE, num_persistent=2)
    memory = replace(TINY_MEMORY, read_granularity="chunk")
    model = tiny_model(tiny_config(layout="mac", attention=attention, memory=memory))
    for num_read in (SIZE, SIZE + 2):
        state = model(READ[None, :num_read]).state
        whole, first = sampled(model, state), sampled(model, state, NEXT[: SIZE - num_read % SIZE])
        for layer, other in zip(whole, first, strict=True):
            assert layer.memory_share is None
            assert layer.surprise == pytest.approx(other.surprise, rel=1e-6)
            assert layer.surprise > 0
            assert layer.update_norm is not None
    model, state = after_reading(tiny_config(layout="swa"))
    assert sample_memory(model, state, NEXT) is None
