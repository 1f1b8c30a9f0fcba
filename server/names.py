"""The names of a request's fields: which of them may be said back, and how near two are."""

import re

_PLAIN_NAME = re.compile(r"[a-z_]{1,64}")


def shown_name(name: str) -> str | None:
    """Input is not echoed, except for what can only be a name."""
    return name if _PLAIN_NAME.fullmatch(name) else None


def is_within(left: str, right: str, limit: int) -> bool:
    """Whether `left` becomes `right` by at most `limit` letters added, dropped or changed."""
    if abs(len(left) - len(right)) > limit:
        return False
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, start=1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(right, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
    return row[-1] <= limit
