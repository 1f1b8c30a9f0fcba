"""What the failures of Redis, its library and the network mean, in the words of `engine.errors`.

No message holds a password, a key or a value.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from redis import exceptions, sentinel

from engine.errors import StoreFull, StoreUnavailable


class RedisOutage(StoreUnavailable):
    """Nobody answered, or not in time: another try at once would wait as long."""


# The first that fits: a class of the library may derive from one further down.
_REASONS: tuple[tuple[type[Exception], type[StoreUnavailable], str], ...] = (
    (exceptions.AuthenticationError, StoreUnavailable, "Redis refused the credentials"),
    (exceptions.AuthorizationError, StoreUnavailable, "Redis refused the credentials"),
    (exceptions.NoPermissionError, StoreUnavailable, "Redis does not permit this user a command that sessions need"),
    (exceptions.ReadOnlyError, StoreUnavailable, "this Redis is a read-only replica"),
    (exceptions.NoScriptError, StoreUnavailable, "Redis forgot a script while it was sent"),
    (exceptions.AskError, StoreUnavailable, "the session is moving to another node of the Redis Cluster"),
    (exceptions.TryAgainError, StoreUnavailable, "the session is moving to another node of the Redis Cluster"),
    (exceptions.BusyLoadingError, RedisOutage, "Redis is loading its data"),
    (exceptions.MasterDownError, RedisOutage, "this Redis replica has lost its master"),
    (exceptions.ClusterDownError, RedisOutage, "the Redis Cluster is down"),
    (exceptions.ClusterError, StoreUnavailable, "the session is moving to another node of the Redis Cluster"),
    (exceptions.SlotNotCoveredError, RedisOutage, "a part of the Redis Cluster is down"),
    (exceptions.RedisClusterException, RedisOutage, "the Redis Cluster cannot be reached, or is none"),
    (sentinel.MasterNotFoundError, RedisOutage, "no Redis sentinel knows a master of that name"),
    (exceptions.ConnectionError, RedisOutage, "Redis cannot be reached"),
    (exceptions.TimeoutError, RedisOutage, "Redis did not answer in time"),
    (OSError, RedisOutage, "Redis cannot be reached"),
    (Exception, StoreUnavailable, "Redis refused a command"),
)


@contextmanager
def translated() -> Iterator[None]:
    """Raises `StoreFull`, `RedisOutage` or another `StoreUnavailable` for whatever is raised inside."""
    try:
        yield
    except (exceptions.RedisError, exceptions.RedisClusterException, OSError) as error:
        raise _translation(error) from error


def _translation(error: Exception) -> StoreFull | StoreUnavailable:
    text = str(error)
    if isinstance(error, exceptions.OutOfMemoryError) or "OOM command not allowed" in text:
        return StoreFull("Redis has reached its maxmemory")
    if "NOREPLICAS" in text:
        return StoreUnavailable("Redis refused a write: it has fewer replicas than its min-replicas-to-write")
    return next(meaning(reason) for kind, meaning, reason in _REASONS if isinstance(error, kind))
