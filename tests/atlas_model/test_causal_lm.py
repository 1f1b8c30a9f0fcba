"""The Python interface: what it answers is what the model computes, and a state goes on wherever it was saved."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from atlas_model.causal_lm import IGNORED_LABEL, AtlasForCausalLM, load_state, save_state
from atlas_model.checkpoint import CheckpointError
from atlas_model.config import AttentionConfig
from atlas_model.gates import Gates
from atlas_model.memory import MemoryInputs
from atlas_model.model import AtlasModel
from atlas_model.neural_memory import NeuralMemory
from tests.atlas_model.memory_cases import BASE, largest_error, make_case
from tests.tiny import save_tiny_checkpoint, tiny_config


@pytest.fixture
def model(tmp_path: Path) -> AtlasForCausalLM:
    save_tiny_checkpoint(tmp_path / "tiny", tiny_config())
    return AtlasForCausalLM.from_pretrained(tmp_path / "tiny")


def test_a_saved_state_goes_on_bit_for_bit(model: AtlasForCausalLM, tmp_path: Path) -> None:
    _, state = model(model.encode("The merchant went to the garden."))
    save_state(tmp_path / "state.safetensors", state)
    restored = load_state(tmp_path / "state.safetensors", model.config)
    turn = model.encode_turn("Where is the merchant?")
    assert torch.equal(model(turn, restored)[0], model(turn, state)[0])


def test_a_state_of_another_model_is_refused(model: AtlasForCausalLM, tmp_path: Path) -> None:
    _, state = model(model.encode("Nothing."))
    save_state(tmp_path / "state.safetensors", state)
    with pytest.raises(ValueError, match=r"state\.safetensors"):
        load_state(tmp_path / "state.safetensors", tiny_config(num_layers=1))
    (tmp_path / "state.safetensors").write_bytes(b"no state at all")
    with pytest.raises(ValueError, match=r"state\.safetensors"):
        load_state(tmp_path / "state.safetensors", model.config)
    with pytest.raises(CheckpointError, match="has no"):
        AtlasForCausalLM.from_pretrained(tmp_path)


def test_a_state_that_was_saved_before_windows_were_rings_goes_on_as_it_would_have(tmp_path: Path) -> None:
    """Also where as many heads as tokens in the window make both kinds of one shape; rows stand at any position."""
    for layout, heads in (("mag", 2), ("mag", 4), ("mal", 4), ("lmm", 0), ("mac", 4)):
        attention = AttentionConfig(num_heads=heads, window=5) if heads else None
        config = tiny_config(layout=layout, attention=attention)
        model = AtlasModel(config).requires_grad_(False)
        for lengths in ([3, 1], [4, 9]):
            state = model(torch.arange(18).view(2, 9), lengths=torch.tensor(lengths)).state
            tensors = {name: tensor.clone() for name, tensor in state.named_tensors().items()}
            for name in tensors if layout != "mac" else ():
                if ".attention." in name:
                    rows = [row.roll(-length, 1) for row, length in zip(tensors[name], lengths, strict=True)]
                    tensors[name] = torch.stack(rows).transpose(1, 2).contiguous()
            save_file(tensors, tmp_path / "old.safetensors")
            restored = load_state(tmp_path / "old.safetensors", config).named_tensors()
            assert all(restored[name].equal(tensor) for name, tensor in state.named_tensors().items())


def test_a_state_of_a_version_to_come_or_of_another_shape_is_refused(model: AtlasForCausalLM, tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    _, state = model(model.encode("Nothing."))
    tensors = state.named_tensors()
    save_file(tensors, path, metadata={"atlas_state_version": "3"})
    with pytest.raises(ValueError, match="version 3"):
        load_state(path, model.config)
    name = "layers.0.memory.w"
    save_file(tensors | {name: tensors[name][:, :, 1:].contiguous()}, path)
    with pytest.raises(ValueError, match=rf"state\.safetensors: {name}"):
        load_state(path, model.config)


def test_what_is_generated_is_what_one_pass_over_it_finds_likeliest(model: AtlasForCausalLM) -> None:
    turn = model.encode_turn("Where?")
    new, state = model.generate(turn, max_new_tokens=6)
    assert new.shape == (1, 6)
    logits, expected = model(torch.cat([turn, new], dim=1))
    assert torch.equal(logits[:, turn.shape[1] - 1 : -1].argmax(-1), new)
    assert int(state.position) == int(expected.position)
    for name, tensor in expected.named_tensors().items():
        assert largest_error(state.named_tensors()[name], tensor) <= 1e-9, name


def test_generation_stops_at_the_end_of_a_message_and_feeds_none_of_it(model: AtlasForCausalLM) -> None:
    turn = model.encode_turn("Where?")
    first, _ = model.generate(turn, max_new_tokens=1)
    with torch.no_grad():
        rows = model.model.embedding.weight
        rows[model.tokenizer.special.end] = rows[int(first)] * 1.001
    new, state = model.generate(turn, max_new_tokens=5)
    assert new.shape == (1, 0)
    assert int(state.position) == turn.shape[1]
    assert model.encode_turn("Where?", after_answer=True)[0, 0] == model.tokenizer.special.end


def test_sampling_follows_its_generator(model: AtlasForCausalLM) -> None:
    turn = model.encode_turn("Where?")
    first, again, other = (
        model.generate(turn, 8, temperature=2.0, generator=torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("shape", [(2, 3), (1, 0), (3,)])
def test_ids_that_are_not_one_row_are_refused(model: AtlasForCausalLM, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"ids must be|one row"):
        model.generate(torch.zeros(shape, dtype=torch.int64), 1)


def test_the_loss_counts_the_labels_that_are_not_ignored_and_reaches_the_memorys_gates(model: AtlasForCausalLM) -> None:
    ids = model.encode("The merchant went to the garden. The merchant went home.")
    labels = ids.roll(-1, dims=1)
    labels[:, :-4] = IGNORED_LABEL
    logits, _ = model(ids)
    expected = -logits.log_softmax(-1)[0, -4:].gather(1, labels[0, -4:, None]).mean()
    assert largest_error(model.loss(ids, labels), expected.float()) <= 1e-6
    model.requires_grad_(True)
    model.loss(ids, labels).backward()
    gates = model.model.get_parameter("blocks.0.mixer.gate_maps.linear.weight").grad
    assert gates is not None
    assert float(gates.abs().max()) > 0


def test_the_backbone_takes_vectors_of_any_origin(model: AtlasForCausalLM) -> None:
    ids = model.encode("The merchant.")
    hidden, _, _ = model.model.backbone(model.model.embedding(ids))
    assert torch.equal(model.model.logits(hidden), model(ids)[0])


def test_a_memory_by_itself_learns_what_it_reads() -> None:
    """A key that was written with a value reads it back, from a state of its own and whichever form reads."""
    case = make_case(BASE, 1)
    memory = NeuralMemory(BASE).double().requires_grad_(False)
    ones = torch.ones(2, BASE.num_heads, 1, dtype=torch.float64)
    open_gates = Gates(ones, ones, ones, 0 * ones)
    inputs = MemoryInputs(case.inputs.keys, case.inputs.keys, case.inputs.values, open_gates)
    start = memory.initial_state(2)
    read, state = memory(inputs, start, case.position)
    direction = torch.nn.functional.normalize(read.unflatten(-1, (BASE.num_heads, -1)), dim=-1)
    wanted = torch.nn.functional.normalize(case.inputs.values.transpose(1, 2), dim=-1)
    assert largest_error(direction, wanted) <= 1e-5
    assert largest_error(memory(inputs, start, case.position, is_step=True)[0], read) <= 1e-9
    assert not torch.equal(state.keys, start.keys)


def test_a_model_is_trained_through_a_state_that_generate_left(model: AtlasForCausalLM) -> None:
    ids = model.encode("Anna went to the garden. Then she sat there for a long while and read a book of poems.")
    _, state = model.generate(ids, max_new_tokens=20)
    model.requires_grad_(True)
    model.loss(ids, ids, state).backward()
    gradients = [each.grad for each in model.parameters() if each.grad is not None]
    assert gradients
    assert all(bool(each.isfinite().all()) for each in gradients)


@pytest.mark.parametrize(
    ("ids", "reason"),
    [
        (torch.tensor([1, 2]), "must be .B, T."),
        (torch.zeros(1, 0, dtype=torch.int64), "at least 1"),
        (torch.tensor([[10**6]]), "from 0 to"),
        (torch.tensor([[1], [2]]), "1 rows, ids 2"),
    ],
)
def test_ids_that_cannot_be_read_are_refused_in_words(model: AtlasForCausalLM, ids: torch.Tensor, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        model(ids, model.model.initial_state(1))


def test_a_state_says_what_it_is_in_a_line(model: AtlasForCausalLM) -> None:
    assert repr(model.model.initial_state(2)).startswith("State(position=[0, 0], 2 layers, ")
