"""Where sessions are kept: one protocol (`base`), three stores."""

import re
from pathlib import Path
from urllib.parse import parse_qs

from engine.errors import StoreMisconfigured
from engine.stores.base import Store
from engine.stores.local import LocalStore
from engine.stores.memory import MemoryStore
from engine.stores.redis import RedisStore
from engine.stores.succession import DEFAULT_NUM_KEPT

_SIZE = re.compile(r"([0-9]{1,15})(|k|M|G|T)B?")
_FACTORS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def open_store(url: str, num_kept: int = DEFAULT_NUM_KEPT) -> Store:
    """A store by its URL: `local:///absolute/path[?max_bytes=10GB]`, `redis://…`, `rediss://…` or `memory://`.

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
        directory, max_num_bytes = local_options(rest)
        if not directory.is_absolute():
            raise StoreMisconfigured("a local store is local:///absolute/path")
        return LocalStore(directory, num_kept, max_num_bytes)
    raise StoreMisconfigured("the store is local:///absolute/path, redis://…, rediss://… or memory://")


def local_options(rest: str) -> tuple[Path, int | None]:
    """The directory, and the most bytes. What stands behind the last `?` is options when there is a `=` in it: all else
    is the path, taken literally."""
    path, _, query = rest.rpartition("?")
    if "=" not in query or "/" in query:
        return Path(rest), None
    options = parse_qs(query, keep_blank_values=True)
    unknown = sorted(options.keys() - {"max_bytes"})
    if unknown:
        raise StoreMisconfigured(f"the local store has no option {unknown[0]!r}: there is max_bytes")
    size = _SIZE.fullmatch(options["max_bytes"][-1])
    if len(options["max_bytes"]) > 1 or size is None or int(size[1]) == 0:
        raise StoreMisconfigured("max_bytes of the local store is bytes above 0, like 500MB or 10GB")
    return Path(path), int(size[1]) * _FACTORS[size[2]]
