"""What becomes of every name in every kind of request, as the README shows it: names that fare alike share a row."""

from collections import defaultdict
from collections.abc import Iterable

from server.parameters.kinds import KINDS
from server.parameters.known import KNOWN, KNOWN_IN_MESSAGES, KNOWN_IN_STREAM_OPTIONS

_BEST_FIRST = ("supported", "refused", "ignored")


def parameter_table() -> str:
    """Markdown, without a newline at its end."""
    rows: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name in sorted(KNOWN.keys() | {name for kind in KINDS.values() for name in kind.served}):
        rows[tuple(kind.standing_of(name) for kind in KINDS.values())].append(name)
    head = ["parameter", *(f"`{path}`" for path in KINDS)]
    lines = [head, ["---"] * len(head)]
    for standings in sorted(rows, key=lambda row: [_BEST_FIRST.index(standing) for standing in row]):
        lines.append([_listed(rows[standings]), *standings])
    lines.append(["any other", *(["ignored"] * len(KINDS))])
    return "\n".join(
        [
            *(f"| {' | '.join(line)} |" for line in lines),
            "",
            f"Refused too: of `stream_options` {_listed(KNOWN_IN_STREAM_OPTIONS)}, of a message "
            f"{_listed(KNOWN_IN_MESSAGES)}.",
        ]
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
