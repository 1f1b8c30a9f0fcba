"""Tokenizers of the Hugging Face kind, `tokenizer.json`. The only home of the package tokenizers, which is in the extra
`hf` and is loaded when such a file is.

Promises those of `tokenizer`, whatever the file: what the library makes of a piece of text counts only when its ids
have exactly the text's bytes; else the piece is halved until they do, down to the bytes of a character. So neither a
special token nor a byte's name that a user types is ever more than its letters, in any vocabulary that would match it.
Files that rewrite text are refused when they are loaded, for all of their text would be read as bytes. Left out of the
file are what frames, cuts and pads (ours is the chat format) and dropout.
"""

from __future__ import annotations

import importlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from atlas_model.text.tokenizer import SPACE_MARK, SpecialTokens, Tokenizer, TokenizerError

if TYPE_CHECKING:
    import tokenizers

_PROBES = ("Anna", " a", "a  b ", "\ta\r\n\n", "É e\u0301 \ufb01 Ⅳ", "日本 👩‍👩‍👧\u00a0", "don't 471,\0 x=1;")
_ADD_SPECIAL = (
    "add it with the package tokenizers: tokenizer = Tokenizer.from_file('tokenizer.json'); "
    "tokenizer.add_special_tokens(['<bos>', '<end>', '<system>', '<user>', '<assistant>', '<document>']); "
    "tokenizer.save('tokenizer.json')"
)


class HuggingFaceTokenizer(Tokenizer):
    """Byte-level BPE, or BPE or Unigram with byte fallback, with our special tokens among its added ones."""

    file_name = "tokenizer.json"

    def __init__(self, file_bytes: bytes) -> None:
        """Load a tokenizer.json; `TokenizerError` says what of it cannot be used, and what to do."""
        # What the library writes has every field, in one form, whatever the age of the file.
        fields = json.loads(_library_tokenizer(file_bytes.decode("utf-8", errors="replace")).to_str())
        _refuse_rewriting(fields)
        is_byte_level = any(part["type"] == "ByteLevel" for part in _parts(fields["pre_tokenizer"]))
        byte_names = _byte_level_names() if is_byte_level else [f"<0x{byte:02X}>" for byte in range(256)]
        ids = _vocabulary(fields["model"])
        if not ids.keys() >= set(byte_names):
            raise TokenizerError(
                "the tokenizer has no token for each of the 256 bytes: it must be byte-level or have byte fallback"
            )
        self._byte_ids = [ids[name] for name in byte_names]
        added = {token["content"]: token for token in fields["added_tokens"]}
        silent = {token["id"] for token in added.values() if token["special"]} - set(self._byte_ids)
        bytes_of = dict(zip(ids.values(), _pieces_bytes(ids, byte_names, is_byte_level), strict=True))
        bytes_of |= {token["id"]: content.encode() for content, token in added.items() if not token["special"]}
        bytes_of |= dict.fromkeys(silent | _unknown_ids(fields["model"], ids), b"")

        def special_id(name: str) -> int:
            if name not in added or added[name]["id"] not in silent:
                raise TokenizerError(f"the tokenizer has no special token {name}; {_ADD_SPECIAL}")
            token_id: int = added[name]["id"]
            return token_id

        special = SpecialTokens.of(special_id)
        super().__init__(file_bytes, special, [bytes_of.get(token_id, b"") for token_id in range(max(bytes_of) + 1)])
        self._library = _library_tokenizer(_without_frame(fields))
        for probe in _PROBES:
            if self._exact_ids(probe) is None:
                raise TokenizerError(
                    f"the tokenizer does not give {probe!r} back: nothing that stands before its model may add, drop "
                    "or change a character (no space put before a text, no pre-tokenizer that removes spaces)"
                )

    def _encode_segment(self, segment: str) -> list[int]:
        token_ids = self._exact_ids(segment)
        if token_ids is not None:
            return token_ids
        if len(segment) == 1:
            return [self._byte_ids[byte] for byte in segment.encode()]
        middle = len(segment) // 2
        return [*self._encode_segment(segment[:middle]), *self._encode_segment(segment[middle:])]

    def _exact_ids(self, text: str) -> list[int] | None:
        """The library's ids of a text; None where one stands for no text, or their bytes are not the text's."""
        token_ids: list[int] = self._library.encode(text, add_special_tokens=False).ids
        parts = [self.decode_bytes(token_id) for token_id in token_ids]
        return token_ids if all(parts) and b"".join(parts) == text.encode() else None


def _library_tokenizer(content: str) -> tokenizers.Tokenizer:
    try:
        package = importlib.import_module("tokenizers")
    except ImportError as error:
        raise TokenizerError(
            "a tokenizer.json needs the package tokenizers: install the extra, pip install 'atlas-serve[hf]'"
        ) from error
    try:
        library: tokenizers.Tokenizer = package.Tokenizer.from_str(content)
    except Exception as error:
        # Boundary: the library raises nothing more specific.
        raise TokenizerError(f"not a tokenizer.json: {error}") from error
    return library


def _refuse_rewriting(fields: Mapping[str, Any]) -> None:
    """Raise for a file whose tokens could not be joined to the text that was read."""
    model = fields["model"]
    if model["type"] not in ("BPE", "Unigram"):
        raise TokenizerError(f"the model {model['type']!r} cannot keep every text; BPE and Unigram with bytes can")
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise TokenizerError(f"the model's {key} is no text, and would become some")
    for part in _parts(fields["normalizer"]):
        writes_spaces = part["type"] == "Replace" and part["pattern"] == {"String": " "}
        if not (writes_spaces and part["content"] == SPACE_MARK):
            raise TokenizerError(f"the normalizer {part['type']!r} rewrites text; remove it, or take another tokenizer")
    for token in fields["added_tokens"]:
        if not token["special"] and (token["lstrip"] or token["rstrip"]):
            raise TokenizerError(f"the added token {token['content']!r} swallows the spaces around it")


def _parts(component: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """A normalizer or pre-tokenizer, or those that it is a sequence of."""
    if component is None:
        return
    if component["type"] != "Sequence":
        yield component
        return
    for part in component.get("normalizers", component.get("pretokenizers", [])):
        yield from _parts(part)


def _vocabulary(model: Mapping[str, Any]) -> dict[str, int]:
    """The model's pieces and their ids."""
    vocabulary: Any = model["vocab"]
    if isinstance(vocabulary, Mapping):
        return dict(vocabulary)
    return {piece: token_id for token_id, (piece, _) in enumerate(vocabulary)}


def _unknown_ids(model: Mapping[str, Any], ids: Mapping[str, int]) -> set[int]:
    """Ids that stand for what the model does not know."""
    unknown = {model.get("unk_id"), ids.get(model.get("unk_token") or "")}
    return {token_id for token_id in unknown if token_id is not None}


def _byte_level_names() -> list[str]:
    """What byte-level pieces have for each byte (GPT-2): printable characters for themselves, then from U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = itertools.count(0x100)
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _pieces_bytes(pieces: Iterable[str], byte_names: Sequence[str], is_byte_level: bool) -> list[bytes]:
    """What each piece stands for; empty for a name that is no byte-level piece, and so out of any text's reach."""
    byte_of = {name: byte for byte, name in enumerate(byte_names)}

    def bytes_of(piece: str) -> bytes:
        names = piece if is_byte_level else [piece]
        if all(name in byte_of for name in names):
            return bytes(byte_of[name] for name in names)
        return b"" if is_byte_level else piece.replace(SPACE_MARK, " ").encode()

    return [bytes_of(piece) for piece in pieces]


def _without_frame(fields: dict[str, Any]) -> str:
    """The file without what would match special tokens in a text, frame it, cut it, pad it or draw lots."""
    kept = [token for token in fields["added_tokens"] if not token["special"]]
    model = fields["model"] | ({"dropout": None} if "dropout" in fields["model"] else {})
    changed = {"added_tokens": kept, "post_processor": None, "truncation": None, "padding": None, "model": model}
    return json.dumps(fields | changed)
