"""The way of a token from the engine's thread to the socket, as stages of the event loop's time."""

from __future__ import annotations

from collections.abc import Sequence

from bench import report
from bench.stack_samples import Frame, place

WAITING = "waiting"
OTHER = "other"

STAGES: Sequence[tuple[str, str]] = (
    ("selectors.py EpollSelector.select", WAITING),
    ("asyncio/selector_events.py _SelectorSocketTransport.write", "socket write"),
    ("asyncio/", "event loop"),
    ("selectors.py", "event loop"),
    ("uvicorn/", "uvicorn"),
    ("starlette/", "starlette and fastapi"),
    ("fastapi/", "starlette and fastapi"),
    ("server/connections/disconnect.py", "event stream"),
    ("server/connections/keep_alive.py", "event stream"),
    ("server/connections/streaming.py EventTemplate.filled", "event's text"),
    ("server/connections/streaming.py", "event stream"),
    ("server/frames/", "event's text"),
    ("json/", "event's text"),
    ("server/metrics.py", "metrics"),
    ("prometheus_client/", "metrics"),
    ("server/", "answer"),
    ("engine/sessions/", "turn"),
    ("engine/", "engine's hand-over"),
)
"""What a frame's place has in it, and its stage; the first that fits. A frame that none fits belongs to its caller."""


def stage_of(stack: Sequence[Frame]) -> str:
    """The stage of the innermost frame that belongs to one."""
    stages = (stage for frame in stack for part, stage in STAGES if part in place(frame, report.ROOT))
    return next(stages, OTHER)
