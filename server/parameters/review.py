"""What to do with each field of a request: serve it, refuse it by name, or ignore it and say so (API.md).

A field that we know and do not serve is refused unless its value asks for nothing (`echo: false`). A field that looks
like a misspelt one of our own is refused too, since dropping it would lose the session it meant to name.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.errors import InvalidRequest, UnsupportedParameter
from server.names import is_within, shown_name
from server.parameters.known import EXTENSIONS, KNOWN, KNOWN_IN_STREAM_OPTIONS, NEVER, Neutral

MAX_TYPOS = 2


@dataclass(frozen=True, slots=True)
class Parameters:
    """Of one kind of request. served: the fields of its schema; of the others, those that are known are refused."""

    served: frozenset[str]

    def standing_of(self, name: str) -> str:
        """In one word, for those who ask before they send it."""
        if name in self.served:
            return "supported"
        return "refused" if name in KNOWN else "ignored"

    def review(self, body: Mapping[str, Any]) -> list[str]:
        """The names to list as ignored. Raises UnsupportedParameter, and InvalidRequest for what looks misspelt."""
        others = {name: value for name, value in body.items() if name not in self.served}
        refuse_known(others, KNOWN)
        if isinstance(stream_options := body.get("stream_options"), dict):
            refuse_known(stream_options, KNOWN_IN_STREAM_OPTIONS, "stream_options.")
            if any(stream_options.values()) and not body.get("stream"):
                raise InvalidRequest("stream_options are for a stream", param="stream_options")
        ignored = []
        for name in others:
            if name in KNOWN:
                continue
            meant = next((known for known in EXTENSIONS if is_within(name, known, MAX_TYPOS)), None)
            if meant is not None:
                raise InvalidRequest(f"unknown parameter: did you mean {meant}?", param=shown_name(name))
            if shown_name(name):
                ignored.append(name)
        return ignored


def refuse_known(fields: Mapping[str, Any], known: Mapping[str, Neutral], prefix: str = "") -> None:
    """Raises UnsupportedParameter for the first that asks for something."""
    for name, value in fields.items():
        if name in known and value is not None and not known[name](value):
            how = "here" if known[name] is NEVER else "with this value"
            raise UnsupportedParameter(f"{prefix}{name} is not supported {how}", param=f"{prefix}{name}")
