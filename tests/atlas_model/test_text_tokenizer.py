"""The tokenizers: what all kinds promise, on each; what those that are trained here promise; refusals."""

import io

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_model.text import SpecialTokens, Tokenizer, TokenizerError, segments, train_tokenizer
from atlas_model.text.sentencepiece_tokenizer import SentencePieceTokenizer
from tests.atlas_model.tokenizers import KINDS, small_tokenizer

TRAPS = ["<bos>", "<end>", "<unk>", "<user>", "<assistant>", "<0x0A>", "<s>", "\u2581", "\u2585", "\u2047", "\t", "\0"]
TEXTS = st.lists(
    st.one_of(
        st.sampled_from([*TRAPS, " ", "  ", "\n", "\r\n", "\ufeff", "\ufffd", "\u00a0", "e\u0301", "👩‍👩‍👧", "the "]),
        st.text(st.characters(codec="utf-8"), max_size=20),
    )
).map("".join)


@pytest.fixture(params=KINDS, scope="module")
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return KINDS[request.param]()


@given(text=TEXTS)
@settings(max_examples=300, deadline=None)
def test_every_text_comes_back_and_never_as_a_special_token(tokenizer: Tokenizer, text: str) -> None:
    token_ids = tokenizer.encode(text)
    assert tokenizer.decode(token_ids) == text
    assert b"".join(map(tokenizer.decode_bytes, token_ids)) == text.encode()
    assert all(tokenizer.decode_bytes(token_id) for token_id in token_ids)


@pytest.mark.parametrize("name", SpecialTokens.__dataclass_fields__)
def test_a_typed_special_token_is_text_and_the_real_one_has_none(tokenizer: Tokenizer, name: str) -> None:
    special_id = getattr(tokenizer.special, name)
    assert special_id not in tokenizer.encode(f"<{name}> and <{name}>")
    assert tokenizer.decode_bytes(special_id) == b""


def test_special_tokens_are_six_different_ones(tokenizer: Tokenizer) -> None:
    special = tokenizer.special
    assert len({getattr(special, name) for name in SpecialTokens.__dataclass_fields__}) == 6


@given(text=TEXTS)
@settings(max_examples=60, deadline=None)
def test_a_text_has_the_ids_of_its_segments(tokenizer: Tokenizer, text: str) -> None:
    text = (text + "\n") * 3 + "x y" * 900
    assert tokenizer.encode(text) == [token_id for part in segments(text) for token_id in tokenizer.encode(part)]


def test_no_piece_reaches_over_a_space_so_texts_join_at_spaces() -> None:
    tokenizer = small_tokenizer()
    assert not any(b" " in tokenizer.decode_bytes(token_id)[1:] for token_id in range(tokenizer.vocab_size))
    first, second = "The weary merchant sighed.", " The bell was silent."
    assert tokenizer.encode(first + second) == tokenizer.encode(first) + tokenizer.encode(second)


def test_each_digit_is_one_token_wherever_it_stands() -> None:
    tokenizer = small_tokenizer()
    tokens = [tokenizer.decode_bytes(token_id) for token_id in tokenizer.encode("471 4 7x1")]
    assert tokens == [b"4", b"7", b"1", b" ", b"4", b" ", b"7", b"x", b"1"]


def test_a_newline_is_one_token(tokenizer: Tokenizer) -> None:
    newline = tokenizer.encode("\n")
    assert len(newline) == 1
    assert tokenizer.encode("a\n\n")[-2:] == newline * 2


def test_a_character_beyond_the_alphabet_is_its_bytes(tokenizer: Tokenizer) -> None:
    token_ids = tokenizer.encode("日")
    assert [tokenizer.decode_bytes(token_id) for token_id in token_ids] == [b"\xe6", b"\x97", b"\xa5"]
    assert tokenizer.decode(token_ids[:2]) == "\ufffd"


def test_a_megabyte_without_a_border_comes_back(tokenizer: Tokenizer) -> None:
    text = "é" * 500_000
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_lone_surrogate_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(UnicodeEncodeError):
        tokenizer.encode("\ud800")


def test_the_same_texts_train_the_same_model_and_it_loads_as_it_was() -> None:
    texts = ["the cat sat on the mat, the rat sat on the cat"] * 3
    trained = train_tokenizer(texts, vocab_size=290)
    assert trained.file_bytes == train_tokenizer(iter(texts), vocab_size=290).file_bytes
    loaded = SentencePieceTokenizer(trained.file_bytes)
    assert loaded.file_bytes == trained.file_bytes
    assert loaded.vocab_size == 290
    assert loaded.encode(" cat") == trained.encode(" cat")
    assert len(loaded.encode(" cat")) < 4


@pytest.mark.parametrize(("texts", "vocab_size"), [([], 300), (["\n"], 300), (["abc"], 300), (["abc " * 9], 264)])
def test_a_vocabulary_that_cannot_be_filled_is_refused(texts: list[str], vocab_size: int) -> None:
    with pytest.raises(TokenizerError):
        train_tokenizer(texts, vocab_size)


def test_bytes_that_are_no_model_or_another_kind_of_model_are_refused() -> None:
    model = small_tokenizer().file_bytes
    with pytest.raises(TokenizerError, match="not a sentencepiece model"):
        SentencePieceTokenizer(b"not a model")
    with pytest.raises(TokenizerError, match="<document>"):
        SentencePieceTokenizer(model.replace(b"<document>", b"<elsewhere"))


def test_a_model_without_byte_pieces_is_refused() -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(["the cat sat on the mat"]),
        model_writer=model,
        model_type="bpe",
        vocab_size=24,
        bos_piece="<bos>",
        eos_piece="<end>",
        control_symbols=["<system>", "<user>", "<assistant>", "<document>"],
        minloglevel=2,
    )
    with pytest.raises(TokenizerError, match="byte pieces"):
        SentencePieceTokenizer(model.getvalue())
