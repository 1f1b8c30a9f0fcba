"""A hash chain over the token ids that a session was fed.

Two states with the same digest were fed the same ids in the same order, however the ids were split into requests,
pieces and steps: the chain takes one link per token. Floats are compared by a tolerance, histories by this.
"""

from collections.abc import Iterable
from hashlib import blake2b

DIGEST_NUM_BYTES = 16
# What a session that was fed nothing carries.
INITIAL_DIGEST = bytes(DIGEST_NUM_BYTES)


def extend_digest(digest: bytes, token_ids: Iterable[int]) -> bytes:
    """The digest after `token_ids` were fed to a session whose digest was `digest`.

    Each link is blake2b-128(previous link ‖ id as eight little-endian bytes).
    """
    for token_id in token_ids:
        digest = blake2b(digest + token_id.to_bytes(8, "little"), digest_size=DIGEST_NUM_BYTES).digest()
    return digest
