"""Text to token ids and back, exactly: what all kinds of tokenizer promise. The kinds have a module each.

Promises: `decode(encode(text)) == text` for every text without lone surrogates; no text yields a special token's id;
the ids of a text are those of its segments one after the other. Leaves the frame of messages to `chat_format`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from atlas_model.text.segmenter import segments

SPACE_MARK = "\u2581"
"""What a piece's name has for a space where its bytes are written as text."""


class TokenizerError(ValueError):
    """A tokenizer that cannot be used, or a corpus that none can be trained on."""


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """Ids of the tokens that frame a session and never come out of a text."""

    bos: int
    end: int
    system: int
    user: int
    assistant: int
    document: int

    @classmethod
    def of(cls, id_of: Callable[[str], int]) -> Self:
        """From what finds the id of `<bos>`, `<end>` and so on."""
        return cls(**{name: id_of(f"<{name}>") for name in cls.__dataclass_fields__})


class Tokenizer(ABC):
    """A vocabulary with our special tokens; immutable, safe to share between threads.

    file_name: what the kind's file is called in a checkpoint folder; `file_bytes` is its content.
    """

    file_name: ClassVar[str]

    def __init__(self, file_bytes: bytes, special: SpecialTokens, bytes_of: Sequence[bytes]) -> None:
        """bytes_of: the exact bytes of each id, empty for those that stand for no text."""
        self.file_bytes = file_bytes
        self.special = special
        self._bytes_of = bytes_of

    @property
    def vocab_size(self) -> int:
        return len(self._bytes_of)

    def encode(self, text: str) -> list[int]:
        """Ids of a text, segment by segment. A lone surrogate is a `UnicodeEncodeError`."""
        token_ids: list[int] = []
        for segment in segments(text):
            token_ids.extend(self._encode_segment(segment))
        return token_ids

    @abstractmethod
    def _encode_segment(self, segment: str) -> list[int]:
        """Ids whose bytes are the segment's."""

    def decode_bytes(self, token_id: int) -> bytes:
        """The exact UTF-8 bytes of one token, which may end inside a character; empty for special tokens."""
        return self._bytes_of[token_id]

    def decode(self, token_ids: Iterable[int]) -> str:
        """The text of the ids; bytes that are no UTF-8 become U+FFFD."""
        return b"".join(self._bytes_of[token_id] for token_id in token_ids).decode("utf-8", errors="replace")
