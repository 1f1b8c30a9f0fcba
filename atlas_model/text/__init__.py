"""Text as the model reads it: tokenizer, segments, chat format; one path for training and serving."""

from atlas_model.text.chat_format import ROLES, ChatFormat, ChatFormatError
from atlas_model.text.segmenter import MAX_SEGMENT_NUM_BYTES, Segmenter, segments
from atlas_model.text.sentencepiece_tokenizer import train_tokenizer
from atlas_model.text.tokenizer import SpecialTokens, Tokenizer, TokenizerError
from atlas_model.text.tokenizer_files import find_tokenizer, load_tokenizer

__all__ = [
    "MAX_SEGMENT_NUM_BYTES",
    "ROLES",
    "ChatFormat",
    "ChatFormatError",
    "Segmenter",
    "SpecialTokens",
    "Tokenizer",
    "TokenizerError",
    "find_tokenizer",
    "load_tokenizer",
    "segments",
    "train_tokenizer",
]
