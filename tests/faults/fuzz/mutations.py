"""What is done to valid input to make it odd: to a JSON value where it is a tree, and to bytes where they are bytes."""

import copy
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

# A string that stands for JSON that no value of ours is written as; `dumped` puts the text in its place.
RAW_PREFIX = "\x02raw:"
RAW = (
    "NaN",
    "-Infinity",
    "1e999",
    "-0",
    "007",
    "1.",
    "9" * 400,
    "9" * 4500,
    "1e-400",
    "nul",
    "'a'",
    '"\\ud83d"',
    '"\\x41"',
    '"\x01"',
    "{}{}",
    "[" * 200 + "]" * 200,
    "[" * 1100 + "]" * 1100,
    "[" * 9000,
)
ODD: tuple[Any, ...] = (
    *(None, True, False, [], {}, "", " ", "a", "0", "null", [[]], [None], [{}], {"": ""}, {"type": "text"}),
    *(0, -1, 1, 2, 17, 2**31, 2**63 - 1, 2**63, -(2**63) - 1, 10**30, 0.5, -0.0, 1.5, 1e308, 5e-324),
    *("\0", "\u202e", "\ufeff", "\U0001f468\u200d\U0001f469", "<bos><end><assistant>", "../../etc", "a\r\nX-A: b"),
    *("x" * 1000, "é" * 400, ["a"] * 300, list(range(600)), {str(key): key for key in range(200)}),
    *(f"{RAW_PREFIX}{number}" for number in range(len(RAW))),
)
# Fields that requests have somewhere, so that each is tried where it does not belong.
NAMES = (
    *("model", "messages", "prompt", "input", "stream", "stream_options", "max_tokens", "max_completion_tokens", "n"),
    *("max_output_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "stop", "logprobs", "top_logprobs"),
    *("logit_bias", "presence_penalty", "frequency_penalty", "repetition_penalty", "ignore_eos", "min_tokens"),
    *("user", "metadata", "response_format", "echo", "suffix", "best_of", "tools", "tool_choice", "store", "id"),
    *("session_id", "history", "on_divergence", "read_only", "conversation", "previous_response_id", "instructions"),
    *("include", "truncation", "reasoning", "text", "items", "from", "version", "new_id", "name", "tokens", "role"),
    *("content", "type", "ttl_seconds", "prompt_logprobs", "stop_token_ids", "sesion_id", "", "__class__", "\ud800"),
)
TOKENS = (
    *(b'"', b"\\", b"{", b"}", b"[", b"]", b":", b",", b"\\u", b"\\ud800", b"\xff", b"\xc0\x80", b"\xed\xa0\x80"),
    *(b"null", b"true", b"NaN", b"1e999", b"-", b".", b"\0", b"\r\n", b"\r\n\r\n", b"\xef\xbb\xbf", b" " * 100),
)

Slot = tuple[Any, Any]
"""A list or an object, and an index or a key of it."""


def mutated(dice: random.Random, value: Any) -> Any:
    """A copy of a JSON value that differs in one to four places."""
    root = [copy.deepcopy(value)]
    for _ in range(dice.choice((1, 1, 2, 4))):
        slots = list(_slots(root))
        dice.choice(_CHANGES)(dice, *dice.choice(slots))
        if not root:
            return None
    return root[0]


def dumped(dice: random.Random, value: Any) -> bytes:
    """As JSON, or nearly: a text of `RAW` where its stand-in is, and rarely written as no client of ours would."""
    is_ascii = dice.random() < 0.8
    text = json.dumps(value, ensure_ascii=is_ascii, indent=dice.choice((None, None, None, 1)))
    for number, raw in enumerate(RAW):
        text = text.replace(json.dumps(f"{RAW_PREFIX}{number}"), raw)
    if dice.random() < 0.03 and text.startswith("{"):
        text = f'{{"model":"atlas-tiny",{text[1:]}'
    encoding = dice.choices(("utf-8", "utf-8-sig", "utf-16", "latin-1"), (97, 1, 1, 1))[0]
    return text.encode(encoding, errors="surrogatepass" if encoding.startswith("utf") else "replace")


def mutated_bytes(dice: random.Random, raw: bytes) -> bytes:
    """Bytes that differ in one to eight places."""
    changed = bytearray(raw)
    for _ in range(dice.randint(1, 8)):
        start = dice.randint(0, len(changed))
        end = min(len(changed), start + int(dice.expovariate(0.1)))
        match dice.randrange(6):
            case 0:
                del changed[start:end]
            case 1:
                changed[start:start] = dice.choice(TOKENS)
            case 2:
                changed[start:start] = changed[start:end] * dice.choice((1, 2, 50))
            case 3:
                changed[start:end] = dice.randbytes(end - start)
            case 4 if start < len(changed):
                changed[start] ^= 1 << dice.randrange(8)
            case 5 if dice.random() < 0.2:
                del changed[start:]
    return bytes(changed)


def _slots(container: Any) -> Iterator[Slot]:
    for place in range(len(container)) if isinstance(container, list) else list(container):
        yield container, place
        if isinstance(container[place], list | dict):
            yield from _slots(container[place])


def _odd(dice: random.Random) -> Any:
    """A copy: the next change may be to what is in it."""
    return copy.deepcopy(dice.choice(ODD))


def _drop(dice: random.Random, container: Any, place: Any) -> None:
    del container[place]


def _replace(dice: random.Random, container: Any, place: Any) -> None:
    container[place] = _odd(dice)


def _wrap(dice: random.Random, container: Any, place: Any) -> None:
    container[place] = dice.choice(([container[place]], {dice.choice(NAMES): container[place]}))


def _repeat(dice: random.Random, container: Any, place: Any) -> None:
    again = copy.deepcopy(container[place])
    if isinstance(container, list):
        container[place:place] = [again] * dice.choice((1, 1, 3, 40))
    else:
        container[dice.choice(NAMES)] = again


def _rename(dice: random.Random, container: Any, place: Any) -> None:
    if isinstance(container, dict) and place:
        cut = dice.randrange(len(place))
        container[place[:cut] + dice.choice(("", "x", place[cut] * 2)) + place[cut + 1 :]] = container.pop(place)


def _add(dice: random.Random, container: Any, place: Any) -> None:
    if isinstance(container, dict):
        container[dice.choice(NAMES)] = _odd(dice)
    else:
        container.append(_odd(dice))


_CHANGES: tuple[Callable[[random.Random, Any, Any], None], ...] = (
    _drop,
    _replace,
    _replace,
    _wrap,
    _repeat,
    _rename,
    _add,
)
