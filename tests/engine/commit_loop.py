"""Commits generation after generation until a failpoint or a signal kills the process."""

from multiprocessing.connection import Connection

from engine import failpoints
from engine.stores import open_store
from tests.engine.store_cases import KEY, logged_generation_of


def commit_until_killed(url: str, failpoint_spec: str, acknowledged: "Connection[int, int]") -> None:
    """Sends each version when its commit has returned."""
    store = open_store(url)
    store.check()
    head = store.read_head(KEY)
    failpoints.arm(failpoint_spec)
    while True:
        head = store.commit(KEY, head, logged_generation_of(head.position + 1 if head else 1))
        acknowledged.send(head.version)
