"""Recall under teacher forcing: documents with facts, then questions, in prose that training never saw.

`python -m atlas_model.training.evaluate --model DIR --corpus DIR --lengths 512,4096` prints one JSON line per length.
It runs the model alone, so it is quick; the product's figure, through HTTP and a restart, is `python -m bench recall`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from atlas_model.checkpoint import load_checkpoint
from atlas_model.inspection import memory_rms
from atlas_model.model import AtlasModel
from atlas_model.state import State
from atlas_model.training.data import AnswerScores, EpisodeStream, score_answers
from atlas_model.training.episode_plan import EpisodeConfig
from atlas_model.training.loop import Corpus
from atlas_model.training.prose import HELD_OUT, Prose
from atlas_model.training.tasks import Kind

_SEGMENT_NUM_TOKENS = 512


@dataclass(frozen=True, slots=True)
class Evaluation:
    """scores: answers exactly right, by kind. prose_perplexity: of the held-out filler's tokens, per token.

    open_on_prose: share of layers, heads and filler tokens that write anything. memory_rms: of all memories' entries
    at the end.
    """

    scores: AnswerScores
    prose_perplexity: float
    open_on_prose: float
    memory_rms: float


@torch.inference_mode()
def evaluate(
    model: AtlasModel, corpus: Corpus, episodes: EpisodeConfig, num_episodes: int, seed: int = 0
) -> Evaluation:
    """Read `num_episodes` episodes of the configured length side by side, in segments, with carried state."""
    num_tokens = episodes.num_tokens
    segment = math.gcd(num_tokens, _SEGMENT_NUM_TOKENS)
    stream = EpisodeStream(
        episodes,
        corpus.prose,
        corpus.tokenizer,
        corpus.chat_format,
        batch_size=num_episodes,
        segment_num_tokens=segment,
        seed=seed,
    )
    scores = AnswerScores(dict.fromkeys(Kind, 0), dict.fromkeys(Kind, 0))
    device = model.embedding.weight.device
    state: State | None = None
    prose_loss, num_prose, num_open, num_gates = 0.0, 0, 0.0, 0
    for _ in range(num_tokens // segment):
        batch = stream.next_batch().to(device)
        output = model(batch.token_ids, state)
        state = output.state
        scores = scores + score_answers(batch, output.logits.argmax(-1))
        prose_loss += float(
            cross_entropy(output.logits[batch.prose_mask], batch.targets[batch.prose_mask], reduction="sum")
        )
        num_prose += int(batch.prose_mask.sum())
        for gates in output.gates:
            is_open = (gates.token_gate * gates.inner_lr > 0).transpose(1, 2)[batch.prose_mask]
            num_open, num_gates = num_open + float(is_open.sum()), num_gates + is_open.numel()
    assert state is not None
    return Evaluation(
        scores,
        math.exp(prose_loss / max(1, num_prose)),
        num_open / max(1, num_gates),
        memory_rms(state),
    )


def held_out_episodes(num_tokens: int) -> EpisodeConfig:
    """A document of about num_tokens with up to 20 facts, some overwritten, all questions at its end."""
    return EpisodeConfig(
        num_tokens=num_tokens,
        num_facts=(20, 20),
        num_questions=(20, 20),
        question_placement="end",
        max_num_rounds=1,
        turn_fact_share=0.0,
    )


def main() -> None:
    """Evaluate a checkpoint folder at the given lengths."""
    parser = argparse.ArgumentParser(prog="python -m atlas_model.training.evaluate", description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--corpus", type=Path, required=True, help="folder that holds the held-out books")
    parser.add_argument(
        "--held-out", action="append", metavar="FILE", help=f"name of a held-out book (default {', '.join(HELD_OUT)})"
    )
    parser.add_argument("--lengths", default="512,2048,8192", help="tokens, multiples of 16")
    parser.add_argument("--episodes", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    checkpoint = load_checkpoint(arguments.model)
    corpus = Corpus(
        Prose(arguments.corpus, arguments.held_out or HELD_OUT, True), checkpoint.tokenizer, checkpoint.chat_format
    )
    for length in map(int, arguments.lengths.split(",")):
        result = evaluate(checkpoint.model, corpus, held_out_episodes(length), arguments.episodes, arguments.seed)
        line = {
            "num_tokens": length,
            "num_questions": sum(result.scores.num_asked.values()),
            "accuracy": round(result.scores.accuracy, 4),
            "by_kind": {kind: f"{result.scores.num_right[kind]}/{result.scores.num_asked[kind]}" for kind in Kind},
            "prose_perplexity": round(result.prose_perplexity, 2),
            "open_on_prose": round(result.open_on_prose, 4),
            "memory_rms": round(result.memory_rms, 4),
        }
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
