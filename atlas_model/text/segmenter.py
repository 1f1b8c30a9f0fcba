"""Cuts a text into the segments that are encoded one by one.

A segment reaches up to and including the next newline; where none comes within `MAX_SEGMENT_NUM_BYTES`, up to the last
space within them (the space begins the next segment, as a word's piece carries the space before it); where there is no
space either, it is cut hard, on a character border.

Promises: the segments of a text joined together are the text; none is empty or longer than the limit in UTF-8; a
`Segmenter`'s segments do not depend on how the text was cut into pushes. Leaves encoding to the tokenizer.
A lone surrogate is a `UnicodeEncodeError`.
"""

MAX_SEGMENT_NUM_BYTES = 2048


class Segmenter:
    """Takes a text in pieces and gives its segments as soon as they are certain; holds back at most one segment."""

    def __init__(self) -> None:
        self._held = ""

    @property
    def held(self) -> str:
        """The text that was pushed and is not part of any segment yet."""
        return self._held

    def push(self, text: str) -> list[str]:
        """The segments that this piece of text completes."""
        complete, self._held = _cut(self._held + text)
        return complete

    def flush(self) -> list[str]:
        """The last segment, when the text has ended; empty when nothing was held back."""
        last = [self._held] if self._held else []
        self._held = ""
        return last


def segments(text: str) -> list[str]:
    """All segments of a whole text."""
    complete, rest = _cut(text)
    if rest:
        complete.append(rest)
    return complete


def _cut(text: str) -> tuple[list[str], str]:
    """The complete segments of `text`, and the rest that more text could still change."""
    complete = []
    start = 0
    while (end := _segment_end(text, start)) is not None:
        complete.append(text[start:end])
        start = end
    return complete, text[start:]


def _segment_end(text: str, start: int) -> int | None:
    window = text[start : start + MAX_SEGMENT_NUM_BYTES + 1]
    newline = window.find("\n")
    if newline >= 0 and len(window[: newline + 1].encode()) <= MAX_SEGMENT_NUM_BYTES:
        return start + newline + 1
    encoded = window.encode()
    if len(encoded) <= MAX_SEGMENT_NUM_BYTES:
        return None
    reach = encoded[:MAX_SEGMENT_NUM_BYTES].decode("utf-8", errors="ignore")
    space = reach.rfind(" ", 1)
    return start + (space if space > 0 else len(reach))
