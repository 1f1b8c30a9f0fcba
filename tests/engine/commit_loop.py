"""Commits generation after generation until a failpoint or a signal kills the process."""

from multiprocessing.connection import Connection

from engine import failpoints
from engine.stores import open_store
from tests.engine.store_cases import KEY, commit_number


def commit_until_killed(url: str, failpoint_spec: str, acknowledged: "Connection[int, int]") -> None:
    """Sends each version when its commit has returned."""
    store = open_store(url)
    store.check()
    head = store.read_head(KEY)
    failpoints.arm(failpoint_spec)
    while True:
        head = commit_number(store, head.position + 1 if head else 1, base=head)
        acknowledged.send(head.version)
