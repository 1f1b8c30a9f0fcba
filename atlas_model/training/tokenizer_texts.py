"""What the tokenizer is trained on: a sample of prose, and facts, questions and answers by themselves.

Promises: a function of its random generator; questions and answers come after a space, as the chat format
puts them, so that a word in an answer is the piece that it is in a text. Leaves the training to `atlas_model.text`.
"""

import random
from collections.abc import Iterator
from itertools import islice

from atlas_model.training.prose import ProseSource
from atlas_model.training.synthetic_prose import SyntheticProse
from atlas_model.training.tasks import World

_NUM_RUNS = 400
_RUN_NUM_SENTENCES = 150
_NUM_SYNTHETIC_SENTENCES = 3_000
_NUM_WORLDS = 8_000
_WORLD_NUM_FACTS = 15


def tokenizer_texts(rng: random.Random, prose: ProseSource) -> Iterator[str]:
    """About 60,000 sentences of prose (6 MB of novels) and 120,000 facts."""
    for _ in range(_NUM_RUNS):
        yield " ".join(sentence.text for sentence in islice(prose.passage(rng), _RUN_NUM_SENTENCES))
    yield " ".join(sentence.text for sentence in islice(SyntheticProse().passage(rng), _NUM_SYNTHETIC_SENTENCES))
    for _ in range(_NUM_WORLDS):
        world = World(rng)
        for _ in range(_WORLD_NUM_FACTS):
            fact = world.tell()
            yield " " + fact.text
            yield " " + fact.question
            yield " " + fact.answer
