"""What happens in an episode, before any token: what is told when and where, and what is asked after which round.

Promises: a plan is a function of its random generator; a question stands after its fact and is answered by the latest
value told so far; what was not asked yet is asked first. Leaves prose, tokens and length to `episodes`.
"""

import random
from dataclasses import dataclass, field
from typing import Literal

from atlas_model.config import Config
from atlas_model.training.tasks import ALL_KINDS, Fact, Kind, World


@dataclass(frozen=True, slots=True)
class EpisodeConfig(Config):
    """What episodes are like. Facts and questions that do not fit the length are left out.

    `num_tokens` is an episode's length, drawn from `min_num_tokens` up to it when that is given. `num_facts` and
    `num_questions` are inclusive ranges. A fact overwrites an earlier one with `overwrite_probability`. There are up
    to `max_num_rounds` rounds; questions come after each ("spread") or after the last only ("end"). A share
    `turn_fact_share` of episodes tells half of its facts in user turns. Answers weigh 1 in the loss, all else
    `text_weight`. `kinds` are the kinds of facts, of which each episode uses a random part, at most `max_num_kinds`:
    the fewer there are, the less a question can be answered without knowing whom or what it is about.
    """

    num_tokens: int = 256
    min_num_tokens: int | None = None
    num_facts: tuple[int, int] = (2, 8)
    num_questions: tuple[int, int] = (2, 8)
    overwrite_probability: float = 0.25
    question_placement: Literal["spread", "end"] = "spread"
    max_num_rounds: int = 4
    turn_fact_share: float = 0.15
    text_weight: float = 0.1
    kinds: tuple[Kind, ...] = ALL_KINDS
    max_num_kinds: int = len(ALL_KINDS)

    def _check(self) -> None:
        """Refuse what no episode can be made of (ConfigError), by the field's name."""
        shortest = self.num_tokens if self.min_num_tokens is None else self.min_num_tokens
        self._require(
            16 <= shortest <= self.num_tokens, "num_tokens and min_num_tokens: need 16 <= min_num_tokens <= num_tokens"
        )
        for name in ("num_facts", "num_questions"):
            lowest, highest = getattr(self, name)
            self._require(0 <= lowest <= highest, f"{name}: need 0 <= lowest <= highest")
        for name in ("overwrite_probability", "turn_fact_share"):
            self._require(0 <= getattr(self, name) <= 1, f"{name} must be in [0, 1]")
        self._require(self.question_placement in ("spread", "end"), "question_placement must be 'spread' or 'end'")
        self._require(len(self.kinds) > 0, "kinds must not be empty")
        for name in ("max_num_rounds", "max_num_kinds"):
            self._require(getattr(self, name) >= 1, f"{name} must be at least 1")
        self._require(self.text_weight >= 0, "text_weight must not be negative")


@dataclass(slots=True)
class Round:
    """What happens in one round, in this order; each question is the fact that answers it."""

    turns_before: list[Fact] = field(default_factory=list)
    document: list[Fact] = field(default_factory=list)
    turns_after: list[Fact] = field(default_factory=list)
    questions: list[Fact] = field(default_factory=list)


def plan_rounds(rng: random.Random, config: EpisodeConfig, num_facts: int, num_questions: int) -> list[Round]:
    """The rounds of an episode. A round asks about each key at most once and leaves what it cannot ask to the next."""
    num_rounds = rng.randint(1, config.max_num_rounds)
    rounds = [Round() for _ in range(num_rounds)]
    in_turns = rng.random() < config.turn_fact_share
    places = sorted((rng.randrange(num_rounds), rng.choice((0, 1, 1, 2)) if in_turns else 1) for _ in range(num_facts))
    num_asking = 1 if config.question_placement == "end" else num_rounds
    num_wanted = [0] * num_rounds
    for _ in range(num_questions):
        num_wanted[num_rounds - 1 - rng.randrange(num_asking)] += 1
    world = World(rng, rng.sample(config.kinds, rng.randint(1, min(len(config.kinds), config.max_num_kinds))))
    asked: set[Fact] = set()
    num_owed = 0
    for number, this_round in enumerate(rounds):
        tellings = (this_round.turns_before, this_round.document, this_round.turns_after)
        for round_number, place in places:
            if round_number == number:
                tellings[place].append(world.tell(config.overwrite_probability))
        candidates = list(world.latest)
        rng.shuffle(candidates)
        candidates.sort(key=lambda fact: fact in asked)
        num_owed += num_wanted[number]
        this_round.questions.extend(candidates[:num_owed])
        num_owed -= len(this_round.questions)
        asked.update(this_round.questions)
    return rounds
