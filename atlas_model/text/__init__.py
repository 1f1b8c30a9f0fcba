"""Text as the model reads it: tokenizer, segments, chat format; one path for training and serving."""

from atlas_model.text.chat_format import ROLES, ChatFormat, ChatFormatError
from atlas_model.text.segmenter import MAX_SEGMENT_NUM_BYTES, Segmenter, segments
from atlas_model.text.tokenizer import SpecialTokens, Tokenizer, TokenizerError, train_tokenizer

__all__ = [
    "MAX_SEGMENT_NUM_BYTES",
    "ROLES",
    "ChatFormat",
    "ChatFormatError",
    "Segmenter",
    "SpecialTokens",
    "Tokenizer",
    "TokenizerError",
    "segments",
    "train_tokenizer",
]
