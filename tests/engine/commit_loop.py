"""Commits generation after generation and prints each acknowledged version, until a failpoint or a signal kills it.

ATLAS_FAILPOINTS=... python -m tests.engine.commit_loop STORE_URL
"""

import os
import sys

from engine import failpoints
from engine.stores import open_store
from tests.engine.store_cases import KEY, commit_number


def main(url: str) -> None:
    store = open_store(url)
    store.check()
    head = store.read_head(KEY)
    failpoints.arm(os.environ.get("ATLAS_FAILPOINTS", ""))
    while True:
        head = commit_number(store, head.position + 1 if head else 1, base=head)
        sys.stdout.write(f"{head.version}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
