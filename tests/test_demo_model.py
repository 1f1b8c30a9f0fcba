"""Row 10 of the correctness table on the shipped model: what is answered comes out of the session's memory.

Documents of 400 tokens with six facts in generated prose, read by the engine; every question is asked of the document's
own session, of another document's, and of none. The margins stand well below the figures of the model card.
"""

from __future__ import annotations

import random
from functools import cache

import pytest

from atlas_model.checkpoint import Checkpoint, load_checkpoint
from atlas_model.presets import PRESETS
from atlas_model.state import session_num_bytes
from atlas_model.training.documents import Document, make_document
from atlas_model.training.synthetic_prose import SyntheticProse
from bench.report import SHIPPED_MODEL
from engine.config import EngineConfig
from engine.core import EngineCore
from engine.sampling.sampling_params import SamplingParams
from engine.sequence import Sequence, SequenceState

NUM_DOCUMENTS = 12
LEAST_WITH_MEMORY = 0.9
MOST_WITHOUT = 0.1


@cache
def shipped() -> Checkpoint:
    return load_checkpoint(SHIPPED_MODEL)


def run(core: EngineCore, sequences: list[Sequence]) -> dict[str, tuple[str, SequenceState]]:
    """Text and state of each sequence at its end."""
    for sequence in sequences:
        core.add(sequence)
    texts: dict[str, str] = {}
    ended: dict[str, tuple[str, SequenceState]] = {}
    while core.has_work:
        for output in core.step():
            texts[output.sequence_id] = texts.get(output.sequence_id, "") + output.text
            if output.finish_reason is not None:
                assert output.state is not None
                ended[output.sequence_id] = (texts[output.sequence_id], output.state)
    return ended


def ask(core: EngineCore, documents: list[Document], states: list[SequenceState | None]) -> float:
    """Share of the documents' questions that are answered exactly, each asked of the state of the same index."""
    checkpoint = shipped()
    tokenizer, chat_format = checkpoint.tokenizer, checkpoint.chat_format
    params = SamplingParams(max_tokens=12, temperature=0.0)
    sequences, expected = [], {}
    for index, (document, state) in enumerate(zip(documents, states, strict=True)):
        for number, question in enumerate(document.questions):
            token_ids = [] if state is not None else chat_format.session_start(tokenizer)
            token_ids += chat_format.message(tokenizer, "user", question.text)
            token_ids += chat_format.generation_prompt(tokenizer)
            name = f"{index}/{number}"
            sequences.append(Sequence(name, token_ids, params, state))
            expected[name] = question.answer
    ended = run(core, sequences)
    return sum(ended[name][0].strip() == answer for name, answer in expected.items()) / len(expected)


@pytest.mark.timeout(240)
def test_the_shipped_model_answers_from_its_own_sessions_memory_and_from_no_other() -> None:
    checkpoint = shipped()
    tokenizer, chat_format = checkpoint.tokenizer, checkpoint.chat_format
    documents = [
        make_document(random.Random(number), SyntheticProse(), tokenizer, num_tokens=400, num_facts=6)
        for number in range(NUM_DOCUMENTS)
    ]
    core = EngineCore(checkpoint, EngineConfig(max_num_sequences=16, num_threads=1))
    reading = []
    for index, document in enumerate(documents):
        token_ids = chat_format.session_start(tokenizer) + chat_format.document_start(tokenizer)
        token_ids += tokenizer.encode(document.text) + chat_format.document_end(tokenizer)
        reading.append(Sequence(str(index), token_ids))
    read = run(core, reading)
    states = [read[str(index)][1] for index in range(NUM_DOCUMENTS)]
    with_memory = ask(core, documents, list(states))
    swapped = ask(core, documents, [*states[1:], states[0]])
    without = ask(core, documents, [None] * NUM_DOCUMENTS)
    core.check_integrity()
    assert with_memory >= LEAST_WITH_MEMORY, (with_memory, swapped, without)
    assert swapped <= MOST_WITHOUT, (with_memory, swapped, without)
    assert without <= MOST_WITHOUT, (with_memory, swapped, without)


def test_the_shipped_model_is_the_preset_of_its_name() -> None:
    assert shipped().model.config == PRESETS["demo"]


def test_a_session_of_the_shipped_model_is_a_few_megabytes() -> None:
    assert session_num_bytes(shipped().model.config) <= 8 * 2**20
