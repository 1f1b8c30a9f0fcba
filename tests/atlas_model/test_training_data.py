"""Documents, episodes and the stream: the ids are what serving would feed, and the expected answers are right."""

import random
import re
from dataclasses import fields
from itertools import islice, pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from atlas_model.text import ChatFormat
from atlas_model.training.data import Batch, EpisodeStream, score_answers
from atlas_model.training.documents import make_document
from atlas_model.training.episode_plan import EpisodeConfig
from atlas_model.training.episodes import NOT_AN_ANSWER, Episode, EpisodeMaker
from atlas_model.training.prose import Sentence
from atlas_model.training.synthetic_prose import SyntheticProse
from atlas_model.training.tasks import ALL_KINDS, Kind
from atlas_model.training.vocabulary import MOVES, NAMES, OBJECTS, PLACES
from tests.atlas_model.tokenizers import task_tokenizer

CONFIGS = [
    (EpisodeConfig(), 255),
    (EpisodeConfig(num_facts=(8, 8), num_questions=(8, 8), question_placement="end", max_num_rounds=1), 257),
    (EpisodeConfig(num_facts=(3, 9), turn_fact_share=1.0, overwrite_probability=0.7), 601),
    (EpisodeConfig(num_facts=(0, 0), num_questions=(0, 0)), 100),
    (EpisodeConfig(num_facts=(50, 50), num_questions=(50, 50)), 131),
    (EpisodeConfig(num_facts=(20, 30), num_questions=(20, 30), max_num_rounds=6), 2001),
]


def make_episode(config: EpisodeConfig, num_tokens: int, seed: int) -> Episode:
    return EpisodeMaker(config, SyntheticProse(), task_tokenizer(), ChatFormat()).make(random.Random(seed), num_tokens)


def frames_of(episode: Episode) -> list[tuple[str, str]]:
    """Role and text of every message and document; fails where the tokens are no frame."""
    tokenizer, special = task_tokenizer(), task_tokenizer().special
    names = {special.user: "user", special.assistant: "assistant", special.document: "document"}
    token_ids = episode.token_ids[episode.weights > 0].tolist()
    assert token_ids.pop(0) == special.bos
    frames = []
    while token_ids:
        end = token_ids.index(special.end)
        role, text = names[token_ids[0]], tokenizer.decode(token_ids[1:end])
        if role != "document":
            assert text.startswith(" ")
            text = text[1:]
        frames.append((role, text))
        token_ids = token_ids[end + 1 :]
    return frames


def serve(frames: list[tuple[str, str]]) -> list[int]:
    """What a server feeds for the same texts."""
    chat_format, tokenizer = ChatFormat(), task_tokenizer()
    token_ids = chat_format.session_start(tokenizer)
    for role, text in frames:
        if role == "document":
            token_ids += chat_format.document_start(tokenizer) + tokenizer.encode(text)
            token_ids += chat_format.document_end(tokenizer)
        else:
            token_ids += chat_format.message(tokenizer, role, text)
    return token_ids


@pytest.mark.parametrize(("config", "num_tokens"), CONFIGS)
def test_an_episode_has_its_length_and_the_ids_that_serving_its_texts_would_feed(
    config: EpisodeConfig, num_tokens: int
) -> None:
    for seed in range(12):
        episode = make_episode(config, num_tokens, seed)
        assert len(episode.token_ids) == num_tokens
        served = serve(frames_of(episode))
        assert episode.token_ids[: len(served)].tolist() == served
        assert num_tokens - len(served) <= 8 + num_tokens // 50
        assert not episode.weights[len(served) :].any()


@pytest.mark.parametrize("placement", ["spread", "end"])
def test_every_answer_is_the_latest_place_told_before_its_question(placement: str) -> None:
    config = EpisodeConfig(
        num_facts=(6, 14),
        num_questions=(4, 10),
        overwrite_probability=0.6,
        turn_fact_share=0.5,
        kinds=(Kind.LOCATION,),
        question_placement="end" if placement == "end" else "spread",
    )
    told = re.compile(rf"({'|'.join(NAMES)}) (?:{'|'.join(MOVES)}|is in|walked to) the ({'|'.join(PLACES)})\.")
    num_asked = 0
    for seed in range(40):
        where: dict[str, str] = {}
        messages = frames_of(make_episode(config, 800, seed))
        for (_, text), (_, reply) in zip(messages, [*messages[1:], ("", "")], strict=True):
            where.update(told.findall(text))
            if text.startswith("Where is "):
                num_asked += 1
                assert reply == where[text.removeprefix("Where is ").removesuffix("?")]
    assert num_asked > 120


def test_answers_and_replies_weigh_one_and_answers_are_numbered_in_order() -> None:
    config = EpisodeConfig(text_weight=0.25, turn_fact_share=1.0, num_facts=(6, 6), num_questions=(5, 5))
    episode = make_episode(config, 500, seed=3)
    is_answer = episode.answer_ids != NOT_AN_ANSWER
    assert set(episode.weights.tolist()) <= {0.0, 0.25, 1.0}
    assert (episode.weights[is_answer] == 1).all()
    numbers = episode.answer_ids[is_answer]
    assert (np.diff(numbers) >= 0).all()
    assert set(numbers.tolist()) == set(range(len(episode.question_kinds)))
    assert len(episode.question_kinds) > 0
    for number in range(len(episode.question_kinds)):
        assert episode.token_ids[episode.answer_ids == number][-1] == task_tokenizer().special.end
    messages = frames_of(episode)
    answers = [text for (_, before), (_, text) in pairwise(messages) if before[-1:] == "?"]
    assert answers == [
        task_tokenizer().decode(episode.token_ids[episode.answer_ids == number].tolist()).removeprefix(" ")
        for number in range(len(episode.question_kinds))
    ]
    replies = [text for role, text in messages if role == "assistant"]
    assert int((episode.weights == 1).sum()) == sum(len(task_tokenizer().encode(" " + reply)) + 1 for reply in replies)


def test_prose_is_marked_and_nothing_else() -> None:
    episode = make_episode(EpisodeConfig(num_facts=(8, 8)), 700, seed=1)
    masked = task_tokenizer().decode(episode.token_ids[episode.is_prose].tolist())
    told = task_tokenizer().decode(episode.token_ids[~episode.is_prose].tolist())
    assert not any(name in masked for name in NAMES)
    assert "merchant" not in told
    assert len(masked) > len(told)


def test_what_was_not_asked_yet_is_asked_first() -> None:
    config = EpisodeConfig(num_facts=(5, 5), num_questions=(5, 5), overwrite_probability=0.0, question_placement="end")
    for seed in range(10):
        questions = [text for _, text in frames_of(make_episode(config, 600, seed)) if text.endswith("?")]
        assert len(set(questions)) == len(questions) == 5


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_tokens": 15},
        {"min_num_tokens": 300},
        {"num_facts": (3, 2)},
        {"num_questions": (-1, 2)},
        {"overwrite_probability": 1.5},
        {"question_placement": "middle"},
        {"kinds": ()},
        {"max_num_rounds": 0},
    ],
)
def test_a_configuration_without_episodes_is_refused_by_name(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        EpisodeConfig(**wrong)  # type: ignore[arg-type]


def make_stream(batch_size: int = 3, segment_num_tokens: int = 128, seed: int = 0, **config: int) -> EpisodeStream:
    return EpisodeStream(
        EpisodeConfig(**{"num_tokens": 384, **config}),  # type: ignore[arg-type]
        SyntheticProse(),
        task_tokenizer(),
        ChatFormat(),
        batch_size=batch_size,
        segment_num_tokens=segment_num_tokens,
        seed=seed,
    )


def equal(first: Batch, second: Batch) -> bool:
    return all(torch.equal(getattr(first, field.name), getattr(second, field.name)) for field in fields(Batch))


def test_a_row_walks_through_its_episode_and_then_begins_another() -> None:
    batches = list(islice(make_stream(), 9))
    starts = torch.stack([batch.starts_episode for batch in batches])
    assert starts.all(dim=1).tolist() == [True, False, False] * 3
    assert starts.any(dim=1).tolist() == [True, False, False] * 3
    for batch, following in pairwise(batches):
        assert torch.equal(batch.token_ids[:, 1:], batch.targets[:, :-1])
        if not following.starts_episode.any():
            assert torch.equal(batch.targets[:, -1], following.token_ids[:, 0])
    assert all((batch.token_ids[:, 0] == task_tokenizer().special.bos).all() for batch in batches[::3])
    assert not torch.equal(batches[0].token_ids, batches[3].token_ids)
    assert not torch.equal(batches[0].token_ids[0], batches[0].token_ids[1])


def test_batches_have_the_promised_shapes_and_types_and_mark_the_targets() -> None:
    batch = make_stream(segment_num_tokens=384).next_batch()
    expected = {
        "token_ids": torch.int64,
        "targets": torch.int64,
        "target_weights": torch.float32,
        "prose_mask": torch.bool,
        "answer_index": torch.int64,
        "answer_kind": torch.int64,
    }
    for name, dtype in expected.items():
        assert getattr(batch, name).shape == (3, 384)
        assert getattr(batch, name).dtype == dtype
    assert torch.equal(batch.answer_index >= 0, batch.answer_kind >= 0)
    begins = (batch.answer_index[:, 1:] >= 0) & (batch.answer_index[:, :-1] != batch.answer_index[:, 1:])
    rows, columns = begins.nonzero(as_tuple=True)
    assert len(rows) > 0
    assert (batch.token_ids[rows, columns + 1] == task_tokenizer().special.assistant).all()


def test_rows_of_different_lengths_restart_by_themselves() -> None:
    stream = make_stream(batch_size=4, segment_num_tokens=64, num_tokens=512, min_num_tokens=64)
    starts = torch.stack([batch.starts_episode for batch in islice(stream, 30)])
    assert (starts.any(dim=1) & ~starts.all(dim=1)).any()
    assert starts.sum() < starts.numel()


def test_a_stream_is_told_by_its_seed_and_goes_on_from_its_state() -> None:
    first, again, other = make_stream(), make_stream(), make_stream(seed=1)
    for _ in range(4):
        batch = first.next_batch()
        assert equal(batch, again.next_batch())
        assert not equal(batch, other.next_batch())
    resumed = make_stream()
    resumed.load_state_dict(first.state_dict())
    for _ in range(4):
        assert equal(first.next_batch(), resumed.next_batch())


def test_a_state_with_another_number_of_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="3 rows"):
        make_stream().load_state_dict(make_stream(batch_size=2).state_dict())


def test_an_answer_is_right_when_all_its_tokens_are() -> None:
    batch = make_stream(batch_size=4, segment_num_tokens=512, num_tokens=512).next_batch()
    right = score_answers(batch, batch.targets)
    asked = sum(right.num_asked.values())
    assert right.accuracy == 1
    assert asked == sum(len(row[row >= 0].unique()) for row in batch.answer_index)
    assert all(
        right.num_asked[kind] == len(_answers(batch, batch.answer_kind == ALL_KINDS.index(kind))) for kind in Kind
    )
    row, column = (batch.answer_index >= 0).nonzero()[0].tolist()
    predicted = batch.targets.clone()
    predicted[row, column] += 1
    predicted[batch.answer_index < 0] += 1
    wrong = score_answers(batch, predicted)
    assert sum(wrong.num_right.values()) == asked - 1
    assert (right + wrong).accuracy == pytest.approx((2 * asked - 1) / (2 * asked))


def _answers(batch: Batch, mask: Tensor) -> set[tuple[int, int]]:
    rows, columns = mask.nonzero(as_tuple=True)
    return set(zip(rows.tolist(), batch.answer_index[rows, columns].tolist(), strict=True))


@pytest.mark.parametrize("num_tokens", [50, 1000, 6000])
def test_a_document_has_about_its_length_and_tells_what_it_asks(num_tokens: int) -> None:
    document = make_document(random.Random(1), SyntheticProse(), task_tokenizer(), num_tokens, num_facts=4)
    assert document.num_tokens == len(task_tokenizer().encode(document.text))
    assert num_tokens - 10 <= document.num_tokens <= num_tokens + 60 + num_tokens // 50
    assert len(document.questions) == 4
    for question in document.questions:
        assert re.search(rf"\b{question.answer}\b", document.text)
        assert 1 / question.num_answers < 0.2


def test_a_document_answers_with_the_latest_place_and_may_tell_all_in_its_first_part() -> None:
    document = make_document(
        random.Random(2),
        SyntheticProse(),
        task_tokenizer(),
        5000,
        num_facts=30,
        overwrite_probability=0.6,
        first_part=0.25,
        kinds=[Kind.LOCATION],
    )
    assert len(document.questions) < 25
    for question in document.questions:
        name = question.text.removeprefix("Where is ").removesuffix("?")
        last = document.text.rindex(name)
        assert f" the {question.answer}." in document.text[last : last + 60]
        assert last < 0.4 * len(document.text)


def test_a_document_s_facts_stand_between_whole_sentences_in_lines() -> None:
    class OneSentence:
        def passage(self, rng: random.Random) -> "islice[Sentence]":
            return islice(iter(lambda: Sentence("So it is.", rng.random() < 0.5), None), 10_000)

    document = make_document(random.Random(3), OneSentence(), task_tokenizer(), 400, num_facts=5)
    for line in document.text.split("\n"):
        assert line == "" or re.fullmatch(r"(So it is\.|[A-Z][^.]*\.)( (So it is\.|[A-Z][^.]*\.))*", line)


def test_the_words_of_answers_are_single_tokens_in_facts_and_in_answers() -> None:
    for word in (*OBJECTS, *PLACES):
        assert len(task_tokenizer().encode(" " + word)) == 1, word
