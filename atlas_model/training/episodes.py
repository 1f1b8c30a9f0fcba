"""Episodes: what a session is fed in training, as tokens. Rounds of a document and of questions about all told so far.

Promises: the ids are those that serving the same texts would feed (the chat format and the tokenizer's own path); the
expected answer is the latest value told before the question; an episode has exactly the length asked for, and is a
function of its random generator. Leaves batches and segments to `data`.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from atlas_model.text.chat_format import ChatFormat
from atlas_model.text.tokenizer import Tokenizer
from atlas_model.training.documents import Woven, weave
from atlas_model.training.episode_plan import EpisodeConfig, Round, plan_rounds
from atlas_model.training.prose import ProseSource, Sentence
from atlas_model.training.tasks import Fact, Kind

NOT_AN_ANSWER = -1

_REPLIES = ("Noted.", "Noted.", "I will remember that.", "All right.")
_FEWEST_TOKENS_PER_FACT = 12
_FEWEST_TOKENS_PER_QUESTION = 16
_MAX_TURN_NUM_FACTS = 3
_MAX_NUM_CACHED = 500_000

TokenIds = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Episode:
    """An episode's tokens and, for each of them as a target, its weight and answer; all arrays are one-dimensional.

    `is_prose` marks filler (nothing in it is ever asked about). `answer_ids` is the index into `question_kinds` of the
    answer that a token belongs to (its `<end>` included), `NOT_AN_ANSWER` elsewhere. Padding at the end weighs 0.
    """

    token_ids: TokenIds
    weights: NDArray[np.float32]
    is_prose: NDArray[np.bool_]
    answer_ids: TokenIds
    question_kinds: tuple[Kind, ...]


class _Part(NamedTuple):
    """Tokens that share weight and meaning."""

    token_ids: TokenIds
    weight: float
    is_prose: bool = False
    answer_id: int = NOT_AN_ANSWER


class EpisodeMaker:
    """Makes episodes from prose and tasks; keeps the encodings of prose sentences, never anything about an episode."""

    def __init__(
        self, config: EpisodeConfig, prose: ProseSource, tokenizer: Tokenizer, chat_format: ChatFormat
    ) -> None:
        self._config = config
        self._prose = prose
        self._tokenizer = tokenizer
        self._chat_format = chat_format
        self._encoded: dict[str, TokenIds] = {}

    def make(self, rng: random.Random, num_tokens: int) -> Episode:
        """An episode of exactly `num_tokens` tokens."""
        config = self._config
        num_facts = min(rng.randint(*config.num_facts), num_tokens // (2 * _FEWEST_TOKENS_PER_FACT))
        num_questions = min(rng.randint(*config.num_questions), 2 * num_tokens // (3 * _FEWEST_TOKENS_PER_QUESTION))
        while True:
            rounds = plan_rounds(rng, config, num_facts, num_questions)
            parts = self._realise(rng, rounds, num_tokens)
            if parts is not None:
                kinds = tuple(fact.key.kind for this_round in rounds for fact in this_round.questions)
                return _assemble(parts, kinds, num_tokens, self._tokenizer.special.end)
            num_facts, num_questions = max(0, num_facts - 1), max(0, num_questions - 1)

    def _realise(self, rng: random.Random, rounds: Sequence[Round], num_tokens: int) -> list[_Part] | None:
        """The parts of all rounds, prose filling the length; None when even without prose it is exceeded."""
        weight = self._config.text_weight
        frames: list[tuple[list[_Part], list[_Part]]] = []
        answer_id = 0
        for this_round in rounds:
            before = self._turns(rng, this_round.turns_before)
            after = self._turns(rng, this_round.turns_after)
            for fact in this_round.questions:
                after += self._question(fact, answer_id)
                answer_id += 1
            frames.append((before, after))
        start = _Part(self._ids(self._chat_format.session_start(self._tokenizer)), weight)
        opening = _Part(self._ids(self._chat_format.document_start(self._tokenizer)), weight)
        closing = _Part(self._ids(self._chat_format.document_end(self._tokenizer)), weight)
        framed = 1 + sum(2 + _length(before) + _length(after) for before, after in frames)
        facts = [sum(self._largest_size(fact.text) for fact in this_round.document) for this_round in rounds]
        missing = num_tokens - framed - sum(facts)
        if missing < 0:
            return None
        shares = [rng.random() + 0.1 for _ in rounds]
        parts = [start]
        for i, this_round in enumerate(rounds):
            is_last = i == len(rounds) - 1
            wanted = missing if is_last else int(missing * shares[i] / sum(shares[i:]))
            sentences = self._sentences(rng, wanted, cut=is_last)
            body = self._document(weave(rng, sentences, this_round.document))
            missing += facts[i] - _length(body)
            before, after = frames[i]
            parts += [*before, opening, *body, closing, *after]
        return parts

    def _sentences(self, rng: random.Random, num_tokens: int, cut: bool) -> list[Sentence]:
        """Consecutive prose of at most that many tokens; with `cut` the last sentence stops at a word."""
        sentences: list[Sentence] = []
        opens_line = True
        for sentence in self._prose.passage(rng):
            size = len(self._prose_ids(" " + sentence.text))
            if opens_line:
                size = max(size, len(self._prose_ids(sentence.text)))
            if size + sentence.ends_paragraph > num_tokens:
                if cut and (beginning := self._beginning(sentence.text, num_tokens)):
                    sentences.append(Sentence(beginning, ends_paragraph=False))
                break
            sentences.append(sentence)
            num_tokens -= size + sentence.ends_paragraph
            opens_line = sentence.ends_paragraph
        return sentences

    def _beginning(self, text: str, num_tokens: int) -> str:
        """As many of the text's first words as fit."""
        words = self._tokenizer.decode(self._prose_ids(text)[:num_tokens].tolist()).split(" ")[:-1]
        while words and self._largest_size(" ".join(words)) > num_tokens:
            words.pop()
        return " ".join(words)

    def _largest_size(self, text: str) -> int:
        """How many tokens the text has, after a space or at a line's beginning."""
        return max(len(self._encode(text)), len(self._encode(" " + text)))

    def _document(self, woven: Sequence[Woven]) -> list[_Part]:
        weight = self._config.text_weight
        return [
            _Part(self._prose_ids(piece.text) if piece.is_prose else self._encode(piece.text), weight, piece.is_prose)
            for piece in woven
        ]

    def _turns(self, rng: random.Random, facts: Sequence[Fact]) -> list[_Part]:
        """User turns that tell the facts, up to three in one, and the assistant's replies."""
        parts: list[_Part] = []
        told = 0
        while told < len(facts):
            together = facts[told : told + rng.randint(1, _MAX_TURN_NUM_FACTS)]
            told += len(together)
            parts += self._turn(" ".join(fact.text for fact in together), rng.choice(_REPLIES), NOT_AN_ANSWER)
        return parts

    def _question(self, fact: Fact, answer_id: int) -> list[_Part]:
        return self._turn(fact.question, fact.answer, answer_id)

    def _turn(self, said: str, answer: str, answer_id: int) -> list[_Part]:
        """A user's message and the assistant's; what the model itself has to say weighs 1."""
        chat_format, tokenizer = self._chat_format, self._tokenizer
        prompt = chat_format.generation_prompt(tokenizer)
        reply = chat_format.message(tokenizer, "assistant", answer)
        return [
            _Part(self._ids([*chat_format.message(tokenizer, "user", said), *prompt]), self._config.text_weight),
            _Part(self._ids(reply[len(prompt) :]), 1.0, answer_id=answer_id),
        ]

    def _prose_ids(self, text: str) -> TokenIds:
        """Prose comes again and again, so it is encoded once; sentences joined at spaces have the ids of their text."""
        token_ids = self._encoded.get(text)
        if token_ids is None:
            if len(self._encoded) >= _MAX_NUM_CACHED:
                self._encoded.clear()
            token_ids = self._encoded[text] = self._encode(text)
        return token_ids

    def _encode(self, text: str) -> TokenIds:
        return self._ids(self._tokenizer.encode(text))

    def _ids(self, token_ids: Sequence[int]) -> TokenIds:
        return np.array(token_ids, dtype=np.int32)


def _length(parts: Sequence[_Part]) -> int:
    return sum(len(part.token_ids) for part in parts)


def _assemble(parts: Sequence[_Part], question_kinds: tuple[Kind, ...], num_tokens: int, padding_id: int) -> Episode:
    num_padding = num_tokens - _length(parts)
    parts = [*parts, _Part(np.full(num_padding, padding_id, dtype=np.int32), 0.0)]
    sizes = [len(part.token_ids) for part in parts]
    return Episode(
        token_ids=np.concatenate([part.token_ids for part in parts]),
        weights=np.repeat(np.array([part.weight for part in parts], dtype=np.float32), sizes),
        is_prose=np.repeat(np.array([part.is_prose for part in parts]), sizes),
        answer_ids=np.repeat(np.array([part.answer_id for part in parts], dtype=np.int32), sizes),
        question_kinds=question_kinds,
    )
