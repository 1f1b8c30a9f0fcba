"""Where sessions are kept: one protocol (`base`), three stores."""

from pathlib import Path

from engine.errors import StoreMisconfigured
from engine.stores.base import Store
from engine.stores.local import LocalStore
from engine.stores.memory import MemoryStore
from engine.stores.redis import RedisStore
from engine.stores.succession import DEFAULT_NUM_KEPT


def open_store(url: str, num_kept: int = DEFAULT_NUM_KEPT) -> Store:
    """A store by its URL: `local:///absolute/path`, `redis://…`, `rediss://…` or `memory://`.

    num_kept: generations without a name that a session keeps beside the committed one.

    Raises `StoreMisconfigured`, and `StoreUnavailable` when the local directory cannot be used. Redis is not asked
    before `check`.
    """
    scheme, separator, rest = url.partition("://")
    if separator and scheme in ("redis", "rediss"):
        return RedisStore(url, num_kept)
    if url == "memory://":
        return MemoryStore(num_kept)
    if separator and scheme == "local":
        directory = Path(rest)
        if not directory.is_absolute():
            raise StoreMisconfigured("a local store is local:///absolute/path")
        return LocalStore(directory, num_kept)
    raise StoreMisconfigured("the store is local:///absolute/path, redis://…, rediss://… or memory://")
