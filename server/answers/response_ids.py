"""What a response is called: the version of a session that it made, and a mark that no other answer has.

An id says all that is needed to find the response, so nothing keeps a list of them; the session is looked for among
the caller's own and nowhere else. The mark tells a version from another's of the same number, in a session that was
deleted and made anew or that a failover took back.
"""

import re
import secrets
from dataclasses import dataclass
from typing import Self

from server.errors import ResponseNotFound

_ID = re.compile(r"resp_(\d{1,18})_([0-9a-f]{24})_([A-Za-z0-9._:-]{1,128})")


@dataclass(frozen=True, slots=True)
class ResponseId:
    session_id: str
    version: int
    mark: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ResponseNotFound for what is none, and for the id of a response that was never kept."""
        found = _ID.fullmatch(text)
        if found is None:
            raise ResponseNotFound
        return cls(found[3], int(found[1]), found[2])

    def __str__(self) -> str:
        return f"resp_{self.version}_{self.mark}_{self.session_id}"


def new_mark() -> str:
    return secrets.token_hex(12)


def unkept_id(mark: str) -> str:
    """Of a response that nothing can go on from."""
    return f"resp_{mark}"
