"""The frame around what a session reads and says, in token ids; one path for training and serving.

A session begins with `<bos>`; a message is `<role>`, a space, content `<end>`; an answer is begun by `<assistant>`; a
document is `<document>` text `<end>`. The space gives a word the piece that it has inside a text, so that an answer
copies the very token that was read; it is no part of the content. Promises: only the frame holds special tokens,
whatever the content. Leaves the tokens that are pending between turns to the engine.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Self

from atlas_model.text.tokenizer import Tokenizer

ROLES = ("system", "user", "assistant")
OPENING = " "
"""What stands between a role and the content of its message."""


class ChatFormatError(ValueError):
    """A chat format that this code does not speak, or a role that it does not know."""


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """The frame's version, part of a checkpoint's fingerprint: a model serves with the frame it was trained with."""

    version: int = 2

    def __post_init__(self) -> None:
        """Refuse a version that this code would frame wrongly."""
        if type(self.version) is not int or self.version != 2:
            raise ChatFormatError(f"chat format version {self.version!r} is unknown; this code speaks version 2")

    def to_dict(self) -> dict[str, object]:
        """As it stands in a checkpoint's config.json."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, object]) -> Self:
        """The inverse of `to_dict`; `ChatFormatError` names a field that is missing or unknown."""
        for name in fields.keys() ^ {"version"}:
            raise ChatFormatError(f"chat format: {name!r} is {'unknown' if name in fields else 'missing'}")
        version = fields["version"]
        if not isinstance(version, int):
            raise ChatFormatError("chat format: 'version' must be an integer")
        return cls(version=version)

    def session_start(self, tokenizer: Tokenizer) -> list[int]:
        """What every session begins with."""
        return [tokenizer.special.bos]

    def message(self, tokenizer: Tokenizer, role: str, content: str) -> list[int]:
        """A whole message of one of `ROLES`; an empty one has no opening, as an answer that ends at once has none."""
        text = OPENING + content if content else ""
        return [_role_id(tokenizer, role), *tokenizer.encode(text), tokenizer.special.end]

    def generation_prompt(self, tokenizer: Tokenizer) -> list[int]:
        """What the model's answer follows; the answer begins with `OPENING` and ends with `special.end`."""
        return [tokenizer.special.assistant]

    def document_start(self, tokenizer: Tokenizer) -> list[int]:
        """What comes before a document's segments."""
        return [tokenizer.special.document]

    def document_end(self, tokenizer: Tokenizer) -> list[int]:
        """What comes after a document's segments."""
        return [tokenizer.special.end]


def _role_id(tokenizer: Tokenizer, role: str) -> int:
    if role not in ROLES:
        raise ChatFormatError(f"role {role!r} is none of {', '.join(ROLES)}")
    token_id: int = getattr(tokenizer.special, role)
    return token_id
