"""Which of a request's messages a session has read already (SESSIONS.md, 1.3).

The ledger is the ordered list of digests of the user and assistant messages of committed turns, the last `LEDGER_LIMIT`
of them. System messages and documents are not entries. Pure: no store, no clock, no tokens.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from hashlib import blake2b

from engine.errors import EmptyPrompt, InvalidRequest, SessionDiverged

LEDGER_LIMIT = 1024
DIGEST_NUM_BYTES = 16
SYSTEM = "system"
USER = "user"
ASSISTANT = "assistant"
_REASONING = re.compile(r"\A<think>.*?</think>\s*", re.DOTALL)


class History(StrEnum):
    """What a request's messages are: `auto` decides by the ledger, `new` are all new, `match` must continue it."""

    AUTO = "auto"
    NEW = "new"
    MATCH = "match"


@dataclass(frozen=True, slots=True)
class Message:
    """One message; `role` is one of the three above."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Reading:
    """What a turn feeds, in the order of the request, and what its commit adds to the session.

    messages: to be fed.   entries: their ledger digests.   system_digest: of the last system text that was fed, if any.
    prompts: the ids of raw texts that are fed in the place of messages.
    """

    messages: tuple[Message, ...]
    entries: tuple[bytes, ...]
    system_digest: bytes | None
    prompts: tuple[tuple[int, ...], ...] = ()


def message_digest(message: Message) -> bytes:
    """Digest of a role and a content, as far as it counts: clients trim what they resend, and drop the reasoning that
    an answer began with. White space at the ends and a leading `<think>…</think>` of the assistant's are left out, and
    nothing else is."""
    content = message.content.strip()
    if message.role == ASSISTANT:
        content = _REASONING.sub("", content)
    return blake2b(f"{message.role}\0{content}".encode(), digest_size=DIGEST_NUM_BYTES).digest()


def read_messages(
    messages: Sequence[Message], ledger: Sequence[bytes], system_digest: bytes | None, history: History
) -> Reading:
    """Decide what is new.

    A system text is fed once, and again only when it differs from the last one that was fed; the others by the ledger.
    Raises InvalidRequest when the last message that is not the system's is not the user's, EmptyPrompt when it says
    nothing, and SessionDiverged.
    """
    if not messages:
        raise EmptyPrompt("there are no messages", param="messages")
    spoken = [(index, message) for index, message in enumerate(messages) if message.role != SYSTEM]
    if not spoken or spoken[-1][1].role != USER:
        raise InvalidRequest("the last message must be the user's", param="messages")
    if not spoken[-1][1].content:
        raise EmptyPrompt("the last message is empty", param="messages")
    digests = [message_digest(message) for _, message in spoken]
    num_known = _num_known(digests, ledger, history)
    if num_known is None:
        index = spoken[_departure(digests, ledger)][0]
        raise SessionDiverged(f"messages[{index}] departs from what the session has read")

    wanted_system = _system_digest(messages)
    feeds_system = wanted_system is not None and wanted_system != system_digest
    known = {index for index, _ in spoken[:num_known]}
    new = (m for i, m in enumerate(messages) if i not in known and (m.role != SYSTEM or feeds_system))
    return Reading(tuple(new), tuple(digests[num_known:]), wanted_system if feeds_system else system_digest)


def read_new_messages(messages: Sequence[Message], system_digest: bytes | None) -> Reading:
    """All of them as new, whoever speaks last; system texts too, whatever was fed before."""
    entries = tuple(message_digest(message) for message in messages if message.role != SYSTEM)
    return Reading(tuple(messages), entries, _system_digest(messages) or system_digest)


def num_known_messages(messages: Sequence[Message], ledger: Sequence[bytes]) -> int:
    """How many of the messages that are not the system's a session with this ledger has read, if they continue it."""
    digests = [message_digest(message) for message in messages if message.role != SYSTEM]
    return _num_known(digests, ledger, History.MATCH) or 0


def extend_ledger(ledger: Sequence[bytes], entries: Iterable[bytes]) -> tuple[bytes, ...]:
    """The ledger after a committed turn."""
    return (*ledger, *entries)[-LEDGER_LIMIT:]


def _num_known(digests: Sequence[bytes], ledger: Sequence[bytes], history: History) -> int | None:
    """How many of the messages are the end of the ledger; None when they depart from it."""
    if history is History.NEW or (history is History.AUTO and (len(digests) == 1 or not ledger)):
        return 0
    for num_known in range(len(digests) - 1, 0, -1):
        # A ledger that is full has dropped its oldest entries: what it still holds is all that can be compared.
        compared = min(num_known, LEDGER_LIMIT) if len(ledger) == LEDGER_LIMIT else num_known
        if compared <= len(ledger) and list(digests[num_known - compared : num_known]) == list(ledger[-compared:]):
            return num_known
    return None


def _departure(digests: Sequence[bytes], ledger: Sequence[bytes]) -> int:
    """The first message after the longest beginning of the request that occurs somewhere in the ledger."""
    longest = 0
    for start in range(len(ledger)):
        run = 0
        while run < len(digests) and start + run < len(ledger) and digests[run] == ledger[start + run]:
            run += 1
        longest = max(longest, run)
    return min(longest, len(digests) - 1)


def _system_digest(messages: Sequence[Message]) -> bytes | None:
    chain = [message_digest(message) for message in messages if message.role == SYSTEM]
    return blake2b(b"".join(chain), digest_size=DIGEST_NUM_BYTES).digest() if chain else None
