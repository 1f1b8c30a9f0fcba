"""Log-probabilities in the words of OpenAI's clients: those of chat's content, and those of a text."""

import codecs
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NamedTuple, Protocol

from atlas_model.text import Tokenizer
from atlas_model.text.chat_format import OPENING
from engine.sampling.logprobs import TokenLogprob
from engine.sessions import ReadPrompt


class Telling(Protocol):
    """Of one choice, from its beginning on."""

    def told(self, logprobs: Sequence[TokenLogprob], prompt: ReadPrompt | None) -> dict[str, Any]:
        """What is said of the answer's next tokens, and with `prompt` before them of the prompt's."""


class TokenNames:
    """What tokens are called, as OpenAI calls them: by their text; by their bytes where those are none."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        # Of the special tokens, and of those that were asked about.
        self._names = {token_id: f"<{name}>" for name, token_id in asdict(tokenizer.special).items()}

    def bytes_of(self, token_id: int) -> bytes:
        """Empty for special tokens, and for the ids that a model has beyond its tokenizer's."""
        return self._tokenizer.decode_bytes(token_id) if token_id < self._tokenizer.vocab_size else b""

    def name(self, token_id: int) -> str:
        name = self._names.get(token_id)
        if name is None:
            data = self.bytes_of(token_id)
            name = self._names[token_id] = _name(data) if data else f"token_id:{token_id}"
        return name


class ContentLogprobs:
    """Chat's: a list of tokens, each with its alternatives. What answers open with is left off the first token, and off
    those that might have stood there, as it is left off the content."""

    def __init__(self, names: TokenNames) -> None:
        self._names = names
        self._is_first = True

    def told(self, logprobs: Sequence[TokenLogprob], prompt: ReadPrompt | None) -> dict[str, Any]:
        content = []
        for each in logprobs:
            opening = OPENING.encode() if self._is_first else b""
            top = [self._entry(*other, opening) for other in each.top]
            content.append({**self._entry(each.token_id, each.logprob, opening), "top_logprobs": top})
            self._is_first = False
        return {"content": content, "refusal": None}

    def _entry(self, token_id: int, logprob: float, opening: bytes) -> dict[str, Any]:
        data = self._names.bytes_of(token_id)
        if not data:
            return {"token": self._names.name(token_id), "logprob": logprob, "bytes": None}
        shown = data.removeprefix(opening)
        return {"token": _name(shown), "logprob": logprob, "bytes": list(shown)}


class TextLogprobs:
    """A text's: four lists, an item a token. `text_offset` is the character of the choice's text that the token begins,
    or goes on with. The prompt's first token has no probability, whatever is in the memory.

    start: characters of the text before its answer.
    """

    def __init__(self, names: TokenNames, start: int) -> None:
        self._names = names
        self._offsets = _Offsets(start)

    def told(self, logprobs: Sequence[TokenLogprob], prompt: ReadPrompt | None) -> dict[str, Any]:
        items = [] if prompt is None else self._of_prompt(prompt)
        items += [self._item(each, self._offsets) for each in logprobs]
        return {
            "tokens": [item.token for item in items],
            "token_logprobs": [item.logprob for item in items],
            "top_logprobs": [item.top for item in items],
            "text_offset": [item.offset for item in items],
        }

    def _of_prompt(self, prompt: ReadPrompt) -> list["_Item"]:
        offsets = _Offsets(0)
        first = prompt.token_ids[0]
        items = [_Item(self._names.name(first), None, None, offsets.next(self._names.bytes_of(first)))]
        return items + [self._item(each, offsets) for each in prompt.logprobs]

    def _item(self, each: TokenLogprob, offsets: "_Offsets") -> "_Item":
        top: dict[str, float] = {}
        # Of tokens of one name the most likely; the token itself is always there.
        for token_id, logprob in (*each.top, (each.token_id, each.logprob)):
            top.setdefault(self._names.name(token_id), logprob)
        offset = offsets.next(self._names.bytes_of(each.token_id))
        return _Item(self._names.name(each.token_id), each.logprob, top, offset)


class _Item(NamedTuple):
    token: str
    logprob: float | None
    top: dict[str, float] | None
    offset: int


class _Offsets:
    """Where tokens begin, in characters, as they come."""

    def __init__(self, start: int) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._num_characters = start

    def next(self, data: bytes) -> int:
        """Of the token whose bytes these are."""
        offset = self._num_characters
        self._num_characters += len(self._decoder.decode(data))
        return offset


def _name(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
