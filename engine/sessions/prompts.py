"""What a turn feeds, in token ids, up to where the model begins to write."""

from collections.abc import Sequence

from atlas_model.text import ChatFormat, Tokenizer
from engine.errors import EmptyPrompt
from engine.sessions.ledger import Message

# A text as it is, or its token ids.
Prompt = str | tuple[int, ...]


def chat_token_ids(
    tokenizer: Tokenizer, chat_format: ChatFormat, messages: Sequence[Message], *, is_first: bool
) -> list[int]:
    """Messages in their frames, and the beginning of the answer's."""
    token_ids = message_token_ids(tokenizer, chat_format, messages, is_first=is_first)
    token_ids.extend(chat_format.generation_prompt(tokenizer))
    return token_ids


def message_token_ids(
    tokenizer: Tokenizer, chat_format: ChatFormat, messages: Sequence[Message], *, is_first: bool
) -> list[int]:
    """Messages in their frames, whole."""
    token_ids = chat_format.session_start(tokenizer) if is_first else []
    for message in messages:
        token_ids.extend(chat_format.message(tokenizer, message.role, message.content))
    return token_ids


def raw_token_ids(tokenizer: Tokenizer, chat_format: ChatFormat, prompt: Prompt, *, is_first: bool) -> list[int]:
    """A text without any frame. What every session begins with comes first here too, unless the ids bring it
    themselves: no text without it was ever trained on. Raises EmptyPrompt for what has nothing beside it."""
    token_ids = tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
    start = chat_format.session_start(tokenizer)
    if not token_ids or (is_first and token_ids == start):
        raise EmptyPrompt("the prompt is empty", param="prompt")
    return start + token_ids if is_first and token_ids[: len(start)] != start else token_ids
