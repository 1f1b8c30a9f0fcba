"""Sentencepiece tokenizers, the kind that is trained here. The only home of sentencepiece.

Promises those of `tokenizer`. In the models trained here no piece reaches over a space, so the ids of two texts joined
at a space are the ids of the two.
"""

import io
import re
from collections import Counter
from collections.abc import Iterable

import sentencepiece

from atlas_model.text.segmenter import segments
from atlas_model.text.tokenizer import SPACE_MARK, SpecialTokens, Tokenizer, TokenizerError

_NUM_FIXED_PIECES = 1 + 6 + 256 + 1
_CHARACTER_COVERAGE = 0.99999


class SentencePieceTokenizer(Tokenizer):
    """A sentencepiece model with our special tokens as control pieces."""

    file_name = "tokenizer.model"

    def __init__(self, model: bytes) -> None:
        """Load a serialized sentencepiece model; `TokenizerError` when it is none or lacks our special pieces."""
        processor = sentencepiece.SentencePieceProcessor()
        try:
            processor.LoadFromSerializedProto(model)
        except RuntimeError as error:
            raise TokenizerError("not a sentencepiece model") from error
        self._processor = processor
        super().__init__(
            model,
            SpecialTokens.of(lambda piece: _special_id(processor, piece)),
            [_piece_bytes(processor, token_id) for token_id in range(processor.GetPieceSize())],
        )
        byte_ids = [processor.PieceToId(f"<0x{byte:02X}>") for byte in SPACE_MARK.encode()]
        if not all(processor.IsByte(token_id) for token_id in byte_ids):
            raise TokenizerError("the tokenizer has no byte pieces")
        self._space_mark_ids: list[int] = byte_ids

    def _encode_segment(self, segment: str) -> list[int]:
        """sentencepiece writes a space as U+2581, so that character itself can only be kept as its three bytes."""
        first, *others = segment.split(SPACE_MARK)
        token_ids: list[int] = self._processor.EncodeAsIds(first)
        for part in others:
            token_ids += [*self._space_mark_ids, *self._processor.EncodeAsIds(part)]
        return token_ids


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> SentencePieceTokenizer:
    """Train byte-pair pieces on `texts`; the same texts give the same model.

    Identity normaliser, no dummy prefix, white space kept, a newline is a piece of its own, so is each digit, bytes for
    all characters beyond the common ones. At least half of the pieces that are not fixed are left for merges, whatever
    the corpus' alphabet. `TokenizerError` when the texts cannot fill the vocabulary or it is too small.
    """
    lines = [segment.removesuffix("\n") for text in texts for segment in segments(text)]
    alphabet = _alphabet(lines, max_num_characters=max(vocab_size - _NUM_FIXED_PIECES, 0) // 2)
    if not alphabet:
        raise TokenizerError(f"vocab_size must be over {_NUM_FIXED_PIECES + 1} and the texts must not be empty")
    left_to_bytes = re.compile("[^" + "".join(map(re.escape, alphabet)) + "]+")
    corpus = [part for line in lines for part in left_to_bytes.split(line) if part]
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=iter(corpus),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            character_coverage=1.0,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            byte_fallback=True,
            split_digits=True,
            user_defined_symbols=["\n"],
            unk_id=0,
            bos_id=1,
            bos_piece="<bos>",
            eos_id=2,
            eos_piece="<end>",
            pad_id=-1,
            control_symbols=["<system>", "<user>", "<assistant>", "<document>"],
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise TokenizerError(f"the tokenizer could not be trained: {error}") from error
    return SentencePieceTokenizer(model.getvalue())


def _alphabet(lines: Iterable[str], max_num_characters: int) -> list[str]:
    """The commonest characters, most common first, that get pieces of their own.

    Never U+2581, tab and NUL, which sentencepiece keeps for itself while it trains.
    """
    counts = Counter[str]()
    for line in lines:
        counts.update(line)
    for reserved in (SPACE_MARK, "\t", "\0"):
        counts.pop(reserved, None)
    alphabet: list[str] = []
    covered = 0
    for character, count in counts.most_common(max_num_characters):
        if covered >= _CHARACTER_COVERAGE * counts.total():
            break
        alphabet.append(character)
        covered += count
    return alphabet


def _special_id(processor: sentencepiece.SentencePieceProcessor, piece: str) -> int:
    token_id: int = processor.PieceToId(piece)
    if not processor.IsControl(token_id):
        raise TokenizerError(f"the tokenizer has no control piece {piece}")
    return token_id


def _piece_bytes(processor: sentencepiece.SentencePieceProcessor, token_id: int) -> bytes:
    if processor.IsControl(token_id) or processor.IsUnknown(token_id):
        return b""
    piece: str = processor.IdToPiece(token_id)
    if processor.IsByte(token_id):
        return bytes([int(piece[3:-1], base=16)])
    return piece.replace(SPACE_MARK, " ").encode()
