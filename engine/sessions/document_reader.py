"""The bytes of a document, in pieces of any size, as token ids that can be committed segment by segment.

Promises: the ids, the offsets and the digest do not depend on how the bytes were cut into pieces, nor on whether the
document was interrupted at a segment's border and taken up there again. Pure: no session, no clock.
"""

import codecs
from collections import deque
from dataclasses import dataclass
from hashlib import blake2b

from atlas_model.text import Segmenter, Tokenizer
from engine.errors import InvalidUnicode

DIGEST_NUM_BYTES = 16
INITIAL_CONTENT_DIGEST = bytes(DIGEST_NUM_BYTES)


@dataclass(frozen=True, slots=True)
class DocumentPosition:
    """How far a document has been read: bytes from its start, and the digest over them."""

    offset: int = 0
    digest: bytes = INITIAL_CONTENT_DIGEST

    def after(self, segment: bytes) -> "DocumentPosition":
        """Segments are a function of the text, so a chain over them is a digest of it that can be taken up again."""
        digest = blake2b(self.digest + segment, digest_size=DIGEST_NUM_BYTES).digest()
        return DocumentPosition(self.offset + len(segment), digest)


class DocumentReader:
    """`push` the bytes as they come, `take` the ids of whole segments, `finish` when there are no more bytes."""

    def __init__(self, tokenizer: Tokenizer, position: DocumentPosition) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._segmenter = Segmenter()
        self._segments: deque[tuple[bytes, list[int]]] = deque()
        self.position = position
        self.num_tokens = 0

    def push(self, piece: bytes) -> None:
        """Raises InvalidUnicode."""
        self._add(self._segmenter.push(self._decode(piece, final=False)))

    def finish(self) -> None:
        """Raises InvalidUnicode when the bytes end inside a character."""
        self._add(self._segmenter.push(self._decode(b"", final=True)))
        self._add(self._segmenter.flush())

    def take(self, num_tokens: int) -> list[int]:
        """Ids of whole segments until there are at least `num_tokens`, or no more; `position` moves behind them."""
        taken: list[int] = []
        while self._segments and len(taken) < num_tokens:
            segment, token_ids = self._segments.popleft()
            taken.extend(token_ids)
            self.position = self.position.after(segment)
        self.num_tokens -= len(taken)
        return taken

    def _decode(self, piece: bytes, *, final: bool) -> str:
        try:
            return self._decoder.decode(piece, final)
        except UnicodeDecodeError as error:
            raise InvalidUnicode("the document is not UTF-8") from error

    def _add(self, segments: list[str]) -> None:
        for segment in segments:
            token_ids = self._tokenizer.encode(segment)
            self._segments.append((segment.encode(), token_ids))
            self.num_tokens += len(token_ids)
