"""The tokenizers that the tests of text and tasks share, trained once in a process."""

import random
from functools import cache
from itertools import islice

from atlas_model.text import Tokenizer, train_tokenizer
from atlas_model.training.synthetic_prose import SyntheticProse
from atlas_model.training.tokenizer_texts import tokenizer_texts


@cache
def small_tokenizer() -> Tokenizer:
    """About a hundred merges of the synthetic prose."""
    sentences = [sentence.text for sentence in islice(SyntheticProse().passage(random.Random(0)), 500)]
    return Tokenizer(train_tokenizer([*sentences, "Where is 1 2 3 4 5 6 7 8 9 0?"], vocab_size=400))


@cache
def task_tokenizer() -> Tokenizer:
    """As the training command makes it, without a corpus."""
    return Tokenizer(train_tokenizer(tokenizer_texts(random.Random(0), SyntheticProse()), vocab_size=3000))
