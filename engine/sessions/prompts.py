"""What a turn feeds, in token ids, up to where the model begins to write."""

from collections.abc import Sequence

from atlas_model.text import ChatFormat, Tokenizer
from engine.errors import EmptyPrompt
from engine.sessions.ledger import Message

# A text as it is, or its token ids.
Prompt = str | tuple[int, ...]


def message_token_ids(
    tokenizer: Tokenizer, chat_format: ChatFormat, messages: Sequence[Message], *, is_first: bool
) -> list[int]:
    """Messages in their frames, and before those of a new session what it begins with."""
    token_ids = chat_format.session_start(tokenizer) if is_first else []
    for message in messages:
        token_ids.extend(chat_format.message(tokenizer, message.role, message.content))
    return token_ids


def chat_token_ids(
    tokenizer: Tokenizer, chat_format: ChatFormat, messages: Sequence[Message], *, is_first: bool
) -> list[int]:
    """The same, and the beginning of the answer's frame."""
    token_ids = message_token_ids(tokenizer, chat_format, messages, is_first=is_first)
    return token_ids + chat_format.generation_prompt(tokenizer)


def raw_token_ids(tokenizer: Tokenizer, prompt: Prompt) -> tuple[int, ...]:
    """A text without any frame."""
    return tuple(tokenizer.encode(prompt)) if isinstance(prompt, str) else prompt


def opened_token_ids(
    tokenizer: Tokenizer, chat_format: ChatFormat, token_ids: Sequence[int], *, is_first: bool
) -> list[int]:
    """A raw text as it is fed. What every session begins with comes first here too, unless the ids bring it themselves:
    no text without it was ever trained on. Raises EmptyPrompt for what has nothing beside it."""
    start = chat_format.session_start(tokenizer) if is_first else []
    own = token_ids[len(start) :] if list(token_ids[: len(start)]) == start else token_ids
    if not own:
        raise EmptyPrompt("the prompt is empty", param="prompt")
    return [*start, *own]
