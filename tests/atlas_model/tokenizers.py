"""The tokenizers that the tests of text and tasks share, trained once in a process."""

import random
from collections.abc import Callable, Mapping
from functools import cache
from itertools import islice

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from atlas_model.text import SpecialTokens, Tokenizer, train_tokenizer
from atlas_model.text.huggingface_tokenizer import HuggingFaceTokenizer
from atlas_model.training.synthetic_prose import SyntheticProse
from atlas_model.training.tokenizer_texts import tokenizer_texts

SPECIAL_NAMES = [f"<{name}>" for name in SpecialTokens.__dataclass_fields__]


def _texts() -> list[str]:
    sentences = [sentence.text for sentence in islice(SyntheticProse().passage(random.Random(0)), 500)]
    return [*sentences, "Where is 1 2 3 4 5 6 7 8 9 0?"]


@cache
def small_tokenizer() -> Tokenizer:
    """About a hundred merges of the synthetic prose."""
    return train_tokenizer(_texts(), vocab_size=400)


@cache
def task_tokenizer() -> Tokenizer:
    """As the training command makes it, without a corpus."""
    return train_tokenizer(tokenizer_texts(random.Random(0), SyntheticProse()), vocab_size=3000)


def byte_level_library_tokenizer() -> tokenizers.Tokenizer:
    """As the library makes one, byte-level, with our special tokens, for tests that spoil it."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", *SPECIAL_NAMES],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(_texts(), trainer)
    return made


def byte_fallback_library_tokenizer() -> tokenizers.Tokenizer:
    """Unigram with byte fallback: its vocabulary itself would match special tokens and bytes' names in a text."""
    words = sorted({"\u2581" + word for text in _texts() for word in text.split()})
    letters = sorted({letter for word in words for letter in word})
    pieces = [("<unk>", 0.0), *((name, 0.0) for name in SPECIAL_NAMES)]
    pieces += [(f"<0x{byte:02X}>", -9.0) for byte in range(256)]
    pieces += [(letter, -5.0) for letter in letters] + [(word, -2.0) for word in words if len(word) > 1]
    made = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    made.normalizer = normalizers.Replace(" ", "\u2581")
    made.add_special_tokens(SPECIAL_NAMES)
    return made


def byte_fallback_bpe_library_tokenizer() -> tokenizers.Tokenizer:
    """BPE with byte fallback, whose bytes the trainer marks as special."""
    made = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    special = ["<unk>", *SPECIAL_NAMES, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    made.train_from_iterator(_texts(), trainer)
    return made


@cache
def byte_level_tokenizer() -> Tokenizer:
    """Byte-level BPE from a tokenizer.json."""
    return HuggingFaceTokenizer(byte_level_library_tokenizer().to_str().encode())


@cache
def byte_fallback_tokenizer() -> Tokenizer:
    """Unigram with byte fallback from a tokenizer.json."""
    return HuggingFaceTokenizer(byte_fallback_library_tokenizer().to_str().encode())


@cache
def byte_fallback_bpe_tokenizer() -> Tokenizer:
    """BPE with byte fallback from a tokenizer.json."""
    return HuggingFaceTokenizer(byte_fallback_bpe_library_tokenizer().to_str().encode())


KINDS: Mapping[str, Callable[[], Tokenizer]] = {
    "sentencepiece": small_tokenizer,
    "byte_level": byte_level_tokenizer,
    "byte_fallback": byte_fallback_tokenizer,
    "byte_fallback_bpe": byte_fallback_bpe_tokenizer,
}
"""One small tokenizer of each kind that a checkpoint may have."""
