"""`python -m bench chain`: one text of many tokens read in one go, what it does to the memory, and what is still known.

A document begins with facts among prose; prose follows, without end. At each mark the norms of all layers' memories are
taken and the facts are asked for, each question of the very state that has just been reached: a state is a value, so
asking changes nothing. The model runs in this process, as prefill does in the engine.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from atlas_model import AtlasForCausalLM, CheckpointError, State
from atlas_model.training.documents import Document, weave, woven_text
from bench import report
from bench.plot import draw_chain
from bench.summary import proportion
from bench.workload import is_right, make_items, open_prose, parse_length

MAX_NEW_TOKENS = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--marks", default="10k,100k,1m,10m", help="tokens read before each measurement; the last ends")
    parser.add_argument("--corpus", type=Path, metavar="DIR", help="folder of .txt books; without it, a grammar")
    parser.add_argument("--document-tokens", default="2k", help="length of the beginning, in which the facts are told")
    parser.add_argument("--facts", type=int, default=20, help="told and asked")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--call-tokens", type=int, default=512, help="tokens of one forward")
    parser.add_argument("--threads", type=parse_length, default=1, help="torch's threads")
    report.add_model_argument(parser)
    report.add_output_arguments(parser)


@torch.inference_mode()
def run(arguments: argparse.Namespace) -> None:
    """Raises SystemExit for marks that are not in order, or lie within the document that tells the facts."""
    torch.set_num_threads(arguments.threads)
    try:
        marks = [parse_length(text) for text in arguments.marks.split(",")]
        document_tokens = parse_length(arguments.document_tokens)
    except ValueError as error:
        raise SystemExit(f"bench chain: {error}") from error
    if marks != sorted(set(marks)) or marks[0] < 2 * document_tokens:
        raise SystemExit("bench chain: --marks must grow, and the first be twice --document-tokens at least")
    try:
        model = AtlasForCausalLM.from_pretrained(arguments.model)
    except CheckpointError as error:
        raise SystemExit(f"bench chain: --model: {error}") from error
    prose = open_prose(arguments.corpus)
    (item,) = make_items(
        model.tokenizer,
        prose,
        [document_tokens],
        1,
        arguments.facts,
        arguments.seed,
        num_facts=arguments.facts,
        overwrite_probability=0.0,
    )
    frame = model.chat_format.session_start(model.tokenizer) + model.chat_format.document_start(model.tokenizer)

    def tokens() -> Iterator[int]:
        yield from frame + model.tokenizer.encode(item.document.text + "\n")
        sentences = prose.passage(random.Random(arguments.seed))
        while True:
            yield from model.tokenizer.encode(woven_text(weave(random.Random(0), list(islice(sentences, 100)), [])))

    stream, state, num_read, seconds = tokens(), model.model.initial_state(1), 0, 0.0
    rows: list[report.Json] = []
    for mark in marks:
        while num_read < mark:
            ids = torch.tensor([list(islice(stream, min(arguments.call_tokens, mark - num_read)))])
            started = time.perf_counter()
            _, state, _ = model.model.hidden(ids, state)
            seconds += time.perf_counter() - started
            num_read += ids.shape[1]
        rows.append(_measure(model, state, item.document, num_read, seconds))
        _say(rows[-1])
    document = report.header("chain") | {
        "model": arguments.model.name,
        "threads": arguments.threads,
        "corpus": "grammar" if arguments.corpus is None else "books held out of training",
        "marks": rows,
    }
    if arguments.plot is not None:
        draw_chain(rows, arguments.plot)
    report.publish(document, {}, arguments.json)


def _say(row: report.Json) -> None:
    norms, recall = row["memory_norms"], row["recall"]
    assert isinstance(norms, list)
    assert isinstance(recall, dict)
    told = "  ".join(f"{norm:.1f}" for norm in norms)
    known = f"{recall['num_right']} of {recall['n']}"
    sys.stderr.write(f"{row['num_tokens']:>12,} tokens  norms {told}  recalled {known}\n")


def _measure(model: AtlasForCausalLM, state: State, document: Document, num_tokens: int, seconds: float) -> report.Json:
    """memory_norms: Frobenius, of all heads' matrices of a layer together."""
    memories = [layer.memory.memory.values() for layer in state.layers if layer.memory is not None]
    norms = [float(torch.stack([weights.norm() for weights in memory]).norm()) for memory in memories]
    end = model.chat_format.document_end(model.tokenizer)
    right = 0
    for question in document.questions:
        ids: Tensor = torch.cat([torch.tensor([end]), model.encode_turn(question.text)], dim=1)
        answer, _ = model.generate(ids, MAX_NEW_TOKENS, state)
        right += is_right(model.decode(answer), question)
    return {
        "num_tokens": num_tokens,
        "is_finite": all(bool(tensor.isfinite().all()) for tensor in state.named_tensors().values()),
        "memory_norms": norms,
        "recall": asdict(proportion(right, len(document.questions))),
        "seconds": round(seconds, 1),
    }
