"""Rows 3-5 of the correctness table on the whole model: prefill and steps agree, for any split and any neighbours."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Literal

import pytest
import torch
from torch import Tensor

from atlas_model.config import AtlasConfig, AttentionConfig
from atlas_model.convolution import convolve
from atlas_model.model import AtlasModel
from atlas_model.state import State, session_num_bytes, state_spec
from tests.atlas_model.memory_cases import largest_error
from tests.tiny import TINY_MEMORY, tiny_config, tiny_model

TOLERANCE = 1e-9
MAC_ATTENTION = AttentionConfig(num_heads=2, window=10, num_persistent=3)
LAYOUTS = {
    "lmm": tiny_config(layout="lmm", attention=None),
    "mag": tiny_config(),
    "mag-mlp": tiny_config(memory=replace(TINY_MEMORY, network="mlp")),
    "mag-chunk-read": tiny_config(memory=replace(TINY_MEMORY, read_granularity="chunk")),
    "mag-muon": tiny_config(memory=replace(TINY_MEMORY, rule="muon", read_granularity="chunk", step="free")),
    "mag-muon-per-token": tiny_config(
        memory=replace(TINY_MEMORY, rule="muon", muon_granularity="token", step="free"), num_layers=1
    ),
    "mag-gated-mlp": tiny_config(memory=replace(TINY_MEMORY, network="gated_mlp", retention="none")),
    "mag-decay-to-initial": tiny_config(memory=replace(TINY_MEMORY, network="mlp", retention_target="initial")),
    "mal": tiny_config(layout="mal"),
    "mal-chunk-read": tiny_config(layout="mal", memory=replace(TINY_MEMORY, read_granularity="chunk")),
    "mac": tiny_config(layout="mac", attention=MAC_ATTENTION),
    "mac-chunk-read": tiny_config(
        layout="mac", attention=MAC_ATTENTION, memory=replace(TINY_MEMORY, read_granularity="chunk")
    ),
    "mac-chunk-per-layer": tiny_config(layout="mac", attention=MAC_ATTENTION, memory_chunk_sizes=(1, 10)),
    "mac-no-persistent-tokens": tiny_config(layout="mac", attention=AttentionConfig(num_heads=2, window=5)),
    "mag-projected-queries": tiny_config(memory=replace(TINY_MEMORY, query_projection="keys")),
    "mac-projected-queries": tiny_config(
        layout="mac", attention=MAC_ATTENTION, memory=replace(TINY_MEMORY, query_projection="keys")
    ),
    "swa": tiny_config(layout="swa"),
    "mag-chunk-per-layer": tiny_config(memory_chunk_sizes=(1, 6)),
    "mag-window-1": tiny_config(attention=AttentionConfig(num_heads=2, window=1)),
    "mag-long-window": tiny_config(attention=AttentionConfig(num_heads=1, window=40)),
    "lmm-unequal-widths": tiny_config(layout="lmm", attention=None, memory=replace(TINY_MEMORY, value_width=6)),
    "lmm-no-convolution": tiny_config(layout="lmm", attention=None, conv_width=1),
}
every_layout = pytest.mark.parametrize("config", LAYOUTS.values(), ids=LAYOUTS.keys())


def tokens(config: AtlasConfig, rows: int, count: int, seed: int = 1) -> Tensor:
    return torch.randint(0, config.vocab_size, (rows, count), generator=torch.Generator().manual_seed(seed))


def assert_same_state(actual: State, expected: State, tolerance: float = TOLERANCE) -> None:
    assert torch.equal(actual.position, expected.position)
    others = expected.named_tensors()
    for name, tensor in actual.named_tensors().items():
        assert largest_error(tensor.double(), others[name].double()) <= tolerance, name


def feed_steps(model: AtlasModel, token_ids: Tensor, state: State) -> tuple[Tensor, State]:
    logits = []
    for at in range(token_ids.shape[1]):
        step_logits, state = model.step(token_ids[:, at], state)
        logits.append(step_logits)
    return torch.stack(logits, dim=1), state


@every_layout
@pytest.mark.parametrize("num_prefilled", [0, 1, 4, 5, 6, 11])
def test_prefill_then_teacher_forced_steps_equal_one_forward(config: AtlasConfig, num_prefilled: int) -> None:
    model = tiny_model(config)
    ids = tokens(config, 2, 17)
    whole = model(ids)
    state, parts = model.initial_state(2), []
    if num_prefilled:
        prefilled = model(ids[:, :num_prefilled])
        state, parts = prefilled.state, [prefilled.logits]
    stepped, state = feed_steps(model, ids[:, num_prefilled:], state)
    assert largest_error(torch.cat([*parts, stepped], dim=1), whole.logits) <= TOLERANCE
    assert_same_state(state, whole.state)


@every_layout
def test_any_split_equals_one_forward(config: AtlasConfig) -> None:
    model = tiny_model(config)
    ids = tokens(config, 1, 23)
    whole = model(ids)
    for cuts in [(0, 1, 23), (0, 7, 23), (0, 8, 22, 23), (0, 5, 10, 15, 20, 23), (0, 11, 12, 23)]:
        state, parts = model.initial_state(1), []
        for start, stop in pairwise(cuts):
            output = model(ids[:, start:stop], state)
            state = output.state
            parts.append(output.logits)
        assert largest_error(torch.cat(parts, dim=1), whole.logits) <= TOLERANCE
        assert_same_state(state, whole.state)


@every_layout
def test_rows_at_any_position_and_of_any_length_equal_each_row_alone(config: AtlasConfig) -> None:
    model = tiny_model(config)
    before, lengths = [0, 3, 10, 26], [13, 1, 9, 5]
    ids = tokens(config, 4, 60)
    states, expected = [], []
    for row in range(4):
        state = model.initial_state(1)
        if before[row]:
            state = model(ids[row : row + 1, : before[row]], state).state
        states.append(state)
        expected.append(model(ids[row : row + 1, before[row] : before[row] + lengths[row]], state, logits="last"))
    padded = torch.zeros(4, max(lengths), dtype=torch.int64)
    for row in range(4):
        padded[row, : lengths[row]] = ids[row, before[row] : before[row] + lengths[row]]
    joined = State.concatenate(states)
    output = model(padded, joined, torch.tensor(lengths), logits="last")
    steps, stepped_state = model.step(ids[:, 50], output.state)
    for row in range(4):
        pick = torch.tensor([row])
        assert largest_error(output.logits[pick], expected[row].logits) <= TOLERANCE
        assert_same_state(output.state.gather(pick), expected[row].state)
        alone, alone_state = model.step(ids[row : row + 1, 50], expected[row].state)
        assert largest_error(steps[pick], alone) <= TOLERANCE
        assert_same_state(stepped_state.gather(pick), alone_state)


def test_float32_prefill_stays_near_float64() -> None:
    exact, rough = tiny_model(tiny_config()), tiny_model(tiny_config(torch.float32))
    ids = tokens(exact.config, 1, 40)
    assert largest_error(rough(ids).logits.double(), exact(ids).logits) <= 1e-4
    stepped, _ = feed_steps(rough, ids, rough.initial_state(1))
    assert largest_error(stepped, rough(ids).logits) <= 1e-4


def test_bfloat16_buffers_do_not_depend_on_the_split() -> None:
    """What the state rounds is rounded when it is born, so a token is the same from the buffer or fresh."""
    model = tiny_model(tiny_config(torch.float32, state_dtype="bfloat16"))
    ids = tokens(model.config, 1, 19)
    whole = model(ids)
    first = model(ids[:, :8])
    second = model(ids[:, 8:], first.state)
    assert largest_error(second.logits, whole.logits[:, 8:]) <= 1e-4
    assert second.state.layers[0].memory.keys.dtype == torch.bfloat16


@every_layout
def test_no_token_sees_what_comes_after_it(config: AtlasConfig) -> None:
    model = tiny_model(config)
    ids = tokens(model.config, 1, 20)
    changed = ids.clone()
    changed[0, 12] = (changed[0, 12] + 1) % model.config.vocab_size
    before, after = model(ids).logits, model(changed).logits
    assert torch.equal(before[:, :12], after[:, :12])
    assert not torch.allclose(before[:, 12:], after[:, 12:])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-7), (torch.float32, 1e-4)])
def test_attention_at_position_ten_million_equals_attention_at_the_start(dtype: torch.dtype, tolerance: float) -> None:
    """In one layer, once the window is full: only distances count. A float32 angle would be off by a radian there."""
    model = tiny_model(tiny_config(dtype, num_layers=1))
    ids = tokens(model.config, 1, 30)
    start = model.initial_state(1)
    far = replace(start, position=start.position + 10_000_000)
    window = 7
    assert largest_error(model(ids, far).logits[:, window:], model(ids, start).logits[:, window:]) <= tolerance


def test_reading_never_changes_parameters_or_the_state_it_was_given() -> None:
    model = tiny_model(tiny_config())
    parameters = {name: each.clone() for name, each in model.state_dict().items()}
    state = model(tokens(model.config, 2, 9)).state
    copy = state.clone()
    model(tokens(model.config, 2, 9, seed=2), state)
    model.step(torch.tensor([1, 2]), state)
    assert_same_state(state, copy, 0.0)
    assert all(torch.equal(each, parameters[name]) for name, each in model.state_dict().items())


@every_layout
def test_state_has_the_size_that_the_configuration_computes_at_any_length(config: AtlasConfig) -> None:
    model = tiny_model(config)
    for count in (1, 50):
        named = model(tokens(config, 1, count)).state.named_tensors()
        assert {name: (t.shape[1:], t.dtype) for name, t in named.items()} == {
            name: (spec.shape, spec.dtype) for name, spec in state_spec(config).items()
        }
        assert sum(tensor.nbytes for tensor in named.values()) == session_num_bytes(config)


@pytest.mark.parametrize("retention", ["decay", "none"])
def test_a_memory_without_a_retention_gate_keeps_all(retention: Literal["decay", "none"]) -> None:
    config = tiny_config()
    model = AtlasModel(replace(config, memory=replace(config.memory, retention=retention)))
    with torch.no_grad():
        for block in model.blocks:
            block.mixer.gate_maps.linear.bias.zero_()  # type: ignore[union-attr, operator]
    gates = model(torch.arange(40)[None]).gates
    assert all(bool((each.retention == 1.0).all()) for each in gates) == (retention == "none")


def test_the_first_layers_gates_see_the_tokens_that_the_convolution_sees() -> None:
    config = tiny_config()
    model = tiny_model(config)
    ids = tokens(config, 1, 12)
    other = ids.clone()
    other[0, 3] = (ids[0, 3] + 1) % config.vocab_size
    changed = (model(ids).gates[0].token_gate != model(other).gates[0].token_gate).any(1)[0]
    seen = range(3, 3 + config.conv_width)
    assert [position for position in range(12) if bool(changed[position])] == list(seen)


def test_float32_convolution_stays_near_float64_in_values_and_gradients() -> None:
    """The two are computed in different ways."""
    torch.manual_seed(0)
    x, before, weight = torch.randn(3, 11, 6), torch.randn(3, 3, 6), torch.randn(4, 6)
    results = []
    for dtype in (torch.float32, torch.float64):
        leaves = [each.to(dtype).requires_grad_() for each in (x, before, weight)]
        mixed, tail = convolve(leaves[0], leaves[1], leaves[2], torch.tensor([11, 1, 4]))
        results.append([mixed, tail, *torch.autograd.grad(mixed.pow(3).sum(), leaves)])
    for rough, exact in zip(*results, strict=True):
        torch.testing.assert_close(rough.double(), exact, rtol=1e-4, atol=1e-4)


def test_queries_and_keys_begin_as_sums_of_tokens_and_values_as_the_token() -> None:
    config = tiny_config(conv_width=4)
    weight = AtlasModel(config).state_dict()["blocks.0.mixer.convolution.weight"]
    num_summing = 2 * config.key_inner_width
    assert torch.equal(weight[:, :num_summing], torch.full((4, num_summing), 0.5))
    assert weight[:, num_summing:].sum(0).eq(1).all()
    assert weight[-1, num_summing:].eq(1).all()


def test_keys_start_as_the_queries_do_and_both_as_sums_of_at_most_eight_tokens() -> None:
    config = tiny_config(conv_width=10)
    weights = AtlasModel(config).state_dict()
    width = config.key_inner_width
    queries, keys, values = weights["blocks.0.mixer.project.weight"].split(width)
    assert torch.equal(queries, keys)
    assert not torch.equal(queries, values)
    taps = weights["blocks.0.mixer.convolution.weight"]
    assert (taps[:2, : 2 * width] == 0).all()
    assert torch.allclose(taps[2:, : 2 * width], taps.new_tensor(8**-0.5))
    assert (taps[:-1, 2 * width :] == 0).all()
