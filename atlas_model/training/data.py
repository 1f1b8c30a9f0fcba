"""Batches of episodes for the training loop: each row walks through its own episode, one segment of tokens a batch.

Promises: the batches are a function of configuration and seed, and go on exactly after `load_state_dict`; the rows
are independent. Leaves the model, its carried state and the loss to the loop.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from atlas_model.text.chat_format import ChatFormat
from atlas_model.text.tokenizer import Tokenizer
from atlas_model.training.episode_plan import EpisodeConfig
from atlas_model.training.episodes import NOT_AN_ANSWER, Episode, EpisodeMaker
from atlas_model.training.prose import ProseSource
from atlas_model.training.tasks import ALL_KINDS, Kind


@dataclass(frozen=True, slots=True)
class Batch:
    """One segment of every row; B rows, T tokens. Row-wise, `targets[t]` is the token after `token_ids[t]`."""

    token_ids: Tensor  # int64 [B, T]
    targets: Tensor  # int64 [B, T]
    target_weights: Tensor  # float32 [B, T], 0 on padding
    prose_mask: Tensor  # bool [B, T], whether the input token is filler
    answer_index: Tensor  # int64 [B, T], which of the row's episode's questions the target answers, -1 elsewhere
    answer_kind: Tensor  # int64 [B, T], the question's place in ALL_KINDS, -1 elsewhere
    starts_episode: Tensor  # bool [B], the row begins a new episode with this segment

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        return Batch(**{name: getattr(self, name).to(device) for name in self.__dataclass_fields__})

    def rows(self, rows: slice) -> "Batch":
        """Some of the rows."""
        return Batch(**{name: getattr(self, name)[rows] for name in self.__dataclass_fields__})


@dataclass(frozen=True, slots=True)
class AnswerScores:
    """Answers asked and given exactly (every token of them right), by kind."""

    num_asked: dict[Kind, int]
    num_right: dict[Kind, int]

    @property
    def accuracy(self) -> float:
        """The share of answers that are right; NaN when nothing was asked."""
        asked = sum(self.num_asked.values())
        return sum(self.num_right.values()) / asked if asked else float("nan")

    def __add__(self, other: "AnswerScores") -> "AnswerScores":
        return AnswerScores(
            {kind: self.num_asked[kind] + other.num_asked[kind] for kind in Kind},
            {kind: self.num_right[kind] + other.num_right[kind] for kind in Kind},
        )


def score_answers(batch: Batch, predicted: Tensor) -> AnswerScores:
    """Exact match per answer under teacher forcing; `predicted` int64 [B, T] are the likeliest tokens at each target.

    An answer that a segment's border divides counts once in each of the two batches.
    """
    is_answer = batch.answer_index >= 0
    rows = torch.arange(len(batch.token_ids), device=batch.token_ids.device).unsqueeze(1).expand_as(is_answer)
    answers = torch.stack([rows[is_answer], batch.answer_index[is_answer], batch.answer_kind[is_answer]], dim=1)
    wrong = (predicted != batch.targets)[is_answer]
    unique, which = torch.unique(answers, dim=0, return_inverse=True)
    num_wrong = torch.zeros(len(unique), dtype=torch.int64, device=wrong.device).index_add_(0, which, wrong.long())
    kinds, right = unique[:, 2].tolist(), (num_wrong == 0).tolist()
    scores = AnswerScores(dict.fromkeys(Kind, 0), dict.fromkeys(Kind, 0))
    for kind, is_right in zip(kinds, right, strict=True):
        scores.num_asked[ALL_KINDS[kind]] += 1
        scores.num_right[ALL_KINDS[kind]] += is_right
    return scores


class EpisodeStream:
    """Endless batches. A row's episodes are numbered; each is a function of seed, row and number alone."""

    def __init__(
        self,
        config: EpisodeConfig,
        prose: ProseSource,
        tokenizer: Tokenizer,
        chat_format: ChatFormat,
        *,
        batch_size: int,
        segment_num_tokens: int,
        seed: int,
        first_row: int = 0,
    ) -> None:
        """Episodes get the configured length, rounded to whole segments (at least one).

        first_row: the number of the first row, where other processes have the rows before it.
        """
        if batch_size < 1 or segment_num_tokens < 16:
            raise ValueError("batch_size must be >= 1 and segment_num_tokens >= 16")
        self._config = config
        self._maker = EpisodeMaker(config, prose, tokenizer, chat_format)
        self._segment_num_tokens = segment_num_tokens
        self._seed = seed
        self._first_row = first_row
        self._episode_numbers = [0] * batch_size
        self._segments = [0] * batch_size
        self._episodes: list[Episode | None] = [None] * batch_size

    def __iter__(self) -> Iterator[Batch]:
        """The stream itself, from where it stands."""
        while True:
            yield self.next_batch()

    def next_batch(self) -> Batch:
        """The next segment of every row."""
        starts_episode = torch.tensor([segment == 0 for segment in self._segments])
        rows = [self._next_segment(row) for row in range(len(self._segments))]
        token_ids, weights, is_prose, answer_ids, answer_kinds = (
            torch.from_numpy(np.stack(fields)) for fields in zip(*rows, strict=True)
        )
        return Batch(
            token_ids=token_ids[:, :-1].long(),
            targets=token_ids[:, 1:].long(),
            target_weights=weights[:, 1:].contiguous(),
            prose_mask=is_prose[:, :-1].contiguous(),
            answer_index=answer_ids[:, 1:].long(),
            answer_kind=answer_kinds[:, 1:].contiguous(),
            starts_episode=starts_episode,
        )

    def state_dict(self) -> dict[str, list[int]]:
        """Where every row stands."""
        return {"episode_numbers": list(self._episode_numbers), "segments": list(self._segments)}

    def load_state_dict(self, state: dict[str, list[int]]) -> None:
        """Go on where a stream of the same configuration and seed stood; `ValueError` for another number of rows."""
        if any(len(state[name]) != len(self._segments) for name in ("episode_numbers", "segments")):
            raise ValueError(f"the stream has {len(self._segments)} rows, the state another number")
        self._episode_numbers = list(state["episode_numbers"])
        self._segments = list(state["segments"])
        self._episodes = [None] * len(self._segments)

    def _next_segment(self, row: int) -> tuple[np.ndarray, ...]:
        """The row's next tokens and the first target of the segment after them; moves the row on."""
        episode = self._episodes[row]
        if episode is None:
            episode = self._episodes[row] = self._make_episode(row)
        start = self._segments[row] * self._segment_num_tokens
        stop = start + self._segment_num_tokens
        part = slice(start, stop + 1)
        kinds = [ALL_KINDS.index(kind) for kind in episode.question_kinds]
        answer_kinds = np.array([*kinds, NOT_AN_ANSWER], dtype=np.int64)[episode.answer_ids[part]]
        self._segments[row] += 1
        if stop + 1 == len(episode.token_ids):
            self._episode_numbers[row] += 1
            self._segments[row] = 0
            self._episodes[row] = None
        return (
            episode.token_ids[part],
            episode.weights[part],
            episode.is_prose[part],
            episode.answer_ids[part],
            answer_kinds,
        )

    def _make_episode(self, row: int) -> Episode:
        rng = random.Random(f"{self._seed}/{self._first_row + row}/{self._episode_numbers[row]}")
        longest = self._config.num_tokens
        shortest = longest if self._config.min_num_tokens is None else self._config.min_num_tokens
        num_segments = max(1, round(rng.randint(shortest, longest) / self._segment_num_tokens))
        return self._maker.make(rng, num_segments * self._segment_num_tokens + 1)
