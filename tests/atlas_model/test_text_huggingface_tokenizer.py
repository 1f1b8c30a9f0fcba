"""Tokenizers of the Hugging Face kind: what is refused and why, and what of a file never reaches a text."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import pytest
import tokenizers
from tokenizers import AddedToken, models, normalizers, pre_tokenizers, processors, trainers

from atlas_model.text import TokenizerError
from atlas_model.text.huggingface_tokenizer import HuggingFaceTokenizer
from tests.atlas_model.tokenizers import (
    SPECIAL_NAMES,
    byte_fallback_library_tokenizer,
    byte_level_library_tokenizer,
    byte_level_tokenizer,
)


def loaded(made: tokenizers.Tokenizer) -> HuggingFaceTokenizer:
    return HuggingFaceTokenizer(made.to_str().encode())


def byte_level_with(**attributes: Any) -> tokenizers.Tokenizer:
    made = byte_level_library_tokenizer()
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def byte_fallback_with(**attributes: Any) -> tokenizers.Tokenizer:
    made = byte_fallback_library_tokenizer()
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def trained_without_an_alphabet() -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.train_from_iterator(["the cat"], trainers.BpeTrainer(special_tokens=SPECIAL_NAMES, show_progress=False))
    return made


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: byte_level_with(normalizer=normalizers.Lowercase()), "'Lowercase' rewrites text"),
        (
            lambda: byte_level_with(normalizer=normalizers.Sequence([normalizers.NFKC(), normalizers.Strip()])),
            "'NFKC' rewrites text",
        ),
        (
            lambda: byte_level_with(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True)),
            "does not give 'Anna'",
        ),
        (lambda: byte_fallback_with(normalizer=None, pre_tokenizer=pre_tokenizers.Metaspace()), "does not give 'Anna'"),
        (lambda: byte_fallback_with(normalizer=None, pre_tokenizer=pre_tokenizers.Whitespace()), "does not give ' a'"),
        (trained_without_an_alphabet, "256 bytes"),
        (lambda: tokenizers.Tokenizer(models.WordLevel({"the": 0}, unk_token="the")), "'WordLevel' cannot keep"),
        (lambda: tokenizers.Tokenizer(models.BPE(end_of_word_suffix="</w>")), "end_of_word_suffix"),
    ],
)
def test_a_tokenizer_that_cannot_give_every_text_back_is_refused_with_the_reason(
    make: Callable[[], tokenizers.Tokenizer], reason: str
) -> None:
    with pytest.raises(TokenizerError, match=reason):
        loaded(make())


@pytest.mark.parametrize("content", [b"", b"\x80", b"[]", b"{}", b'{"model": {"type": "BPE", "vocab": {"a": 0}}}'])
def test_a_file_that_is_no_tokenizer_is_refused(content: bytes) -> None:
    with pytest.raises(TokenizerError, match=r"not a tokenizer\.json"):
        HuggingFaceTokenizer(content)


def test_a_missing_special_token_is_named_with_the_way_to_add_it_and_that_way_works() -> None:
    fields = json.loads(byte_level_library_tokenizer().to_str())
    names = {"<end>", "<document>"}
    fields["added_tokens"] = [token for token in fields["added_tokens"] if token["content"] not in names]
    with pytest.raises(TokenizerError, match=r"no special token <end>; .*add_special_tokens\(\['<bos>'"):
        HuggingFaceTokenizer(json.dumps(fields).encode())
    made = tokenizers.Tokenizer.from_str(json.dumps(fields))
    made.add_special_tokens(SPECIAL_NAMES)
    assert loaded(made).special == byte_level_tokenizer().special


def test_a_framing_token_that_is_not_special_is_refused() -> None:
    fields = json.loads(byte_level_library_tokenizer().to_str())
    for token in fields["added_tokens"]:
        token["special"] = token["content"] != "<user>"
    with pytest.raises(TokenizerError, match="no special token <user>"):
        HuggingFaceTokenizer(json.dumps(fields).encode())


def test_an_added_token_that_is_text_is_matched_and_one_that_swallows_spaces_is_refused() -> None:
    made = byte_level_library_tokenizer()
    made.add_tokens([AddedToken("garden gate", normalized=False)])
    tokenizer = loaded(made)
    token_ids = tokenizer.encode("the garden gate")
    assert [tokenizer.decode_bytes(each) for each in token_ids][-1] == b"garden gate"
    assert tokenizer.decode(token_ids) == "the garden gate"
    made.add_tokens([AddedToken("north", lstrip=True)])
    with pytest.raises(TokenizerError, match="'north' swallows the spaces"):
        loaded(made)


def test_what_frames_cuts_pads_or_draws_in_a_file_does_nothing() -> None:
    made = byte_level_library_tokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="<bos> $A <end>",
        special_tokens=[(name, made.token_to_id(name)) for name in ("<bos>", "<end>")],
    )
    made.enable_truncation(max_length=3)
    made.enable_padding(length=9)
    made.model.dropout = 0.9
    text = "the merchant went to the garden"
    assert [loaded(made).encode(text) for _ in range(5)] == [byte_level_tokenizer().encode(text)] * 5


def test_without_the_package_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    content = byte_level_tokenizer().file_bytes
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(TokenizerError, match=r"atlas-serve\[hf\]"):
        HuggingFaceTokenizer(content)
