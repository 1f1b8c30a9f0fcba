"""The engine's core end to end: are its greedy answers on the device those on the CPU?

Prompts of ragged lengths are answered at once, and then each goes on for a second turn from the state that the first
has left, so that states leave the device and come back.
"""

from __future__ import annotations

import torch

from atlas_model.checkpoint import Checkpoint, load_checkpoint
from bench.gpu.driver import Heard, drive
from bench.gpu.equality import LIMITS, worst_difference
from bench.gpu.parts import Notes, Settings
from engine.config import EngineConfig
from engine.core import EngineCore
from engine.sampling.sampling_params import SamplingParams
from engine.sequence import Sequence

PROMPT_NUM_TOKENS = (5, 130, 64, 300, 17)
ANSWER = SamplingParams(max_tokens=48, temperature=0.0, ignore_eos=True)


def measure(settings: Settings, notes: Notes) -> None:
    generator = torch.Generator().manual_seed(settings.seed)
    checkpoint = load_checkpoint(settings.model)
    turns = [
        [torch.randint(checkpoint.tokenizer.vocab_size, (size,), generator=generator).tolist() for size in sizes]
        for sizes in (PROMPT_NUM_TOKENS, PROMPT_NUM_TOKENS[::-1])
    ]
    expected = _answer(checkpoint, "cpu", turns)
    actual = _answer(load_checkpoint(settings.model, settings.device), settings.device, turns)
    for number, (theirs, ours) in enumerate(zip(expected, actual, strict=True), start=1):
        others = sum(ours[name].token_ids != theirs[name].token_ids for name in theirs)
        notes.check(f"turn {number}: answers that differ", others, 0)
        notes.check(f"turn {number}: state, worst tensor", _worst_state(ours, theirs), LIMITS["float32"])


def _answer(checkpoint: Checkpoint, device: str, turns: list[list[list[int]]]) -> list[dict[str, Heard]]:
    """Every turn's answers, by the sequence's name."""
    # However fast the device is, documents are cut into the same pieces.
    config = EngineConfig(max_num_sequences=8, max_added_itl_seconds=1e9, device=device)
    core = EngineCore(checkpoint, config)
    heard: dict[str, Heard] = {}
    answers = []
    for prompts in turns:
        sequences = []
        for number, prompt in enumerate(prompts):
            before = heard.get(str(number))
            sequences.append(Sequence(str(number), prompt, ANSWER, None if before is None else before.state))
        heard = drive(core, sequences)
        answers.append(heard)
    return answers


def _worst_state(ours: dict[str, Heard], theirs: dict[str, Heard]) -> float:
    differences = []
    for name, heard in theirs.items():
        state, other = heard.state, ours[name].state
        assert state is not None
        assert other is not None
        differences.append(worst_difference(other.tensors, state.tensors))
    return max(differences)
