"""What the session layer tells whoever counts. No metric library here."""

from typing import Protocol


class SessionObserver(Protocol):
    """Called on the event loop."""

    def resumed(self, tier: str, seconds: float) -> None:
        """A committed session went on, and was ready for it after `seconds`; `tier` is `device`, `host` or `store`."""

    def restore_failed(self, reason: str) -> None:
        """A session could not be loaded; `reason` is an error code."""

    def committed(self, seconds: float, num_bytes: int, num_tokens: int) -> None:
        """A generation was committed: its size, and how many tokens it has learned since the one before."""
