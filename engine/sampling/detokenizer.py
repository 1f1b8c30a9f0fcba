"""From bytes to text, incrementally: a character leaves when all of its bytes are there.

Bytes that are no UTF-8 become U+FFFD, and so does a character that the end cuts short, once. Which bytes may be shown
at all is `stopping`'s decision.
"""

import codecs


class Detokenizer:
    """One per sequence."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, data: bytes) -> str:
        """The characters that `data` completes."""
        return self._decoder.decode(data)

    @property
    def num_held_bytes(self) -> int:
        """Of what was pushed, those that have not become characters yet."""
        return len(self._decoder.getstate()[0])

    def finish(self) -> str:
        """What is left at the end: nothing, or one U+FFFD. Twice is safe."""
        return self._decoder.decode(b"", final=True)
