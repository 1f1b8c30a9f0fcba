"""Who is asking, and what for. The tenant and the scopes come from the API key and from nothing else."""

import hmac
import re
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from typing import Self

from engine.sequence import DEFAULT_TENANT

TENANT = re.compile(r"[A-Za-z0-9._-]{1,64}")
METRICS_PATH = "/metrics"


class Scope(StrEnum):
    """What a key opens: USER its tenant's sessions and answers, METRICS what the server has counted for all tenants
    together, ADMIN everything."""

    USER = "user"
    METRICS = "metrics"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class RateLimits:
    """What may be asked for in a minute; None is no limit of this kind."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None


@dataclass(frozen=True, slots=True)
class Key:
    """digest: SHA-256 of the key, which is not kept.   min_length: a shorter one is none, whatever its digest.
    limits: of this key alone."""

    digest: bytes
    tenant: str = DEFAULT_TENANT
    scopes: frozenset[Scope] = frozenset({Scope.USER, Scope.METRICS})
    min_length: int = 1
    limits: RateLimits = RateLimits()

    def opens(self, path: str) -> bool:
        needed = Scope.METRICS if path == METRICS_PATH else Scope.USER
        return not self.scopes.isdisjoint({needed, Scope.ADMIN})


# Everybody's, where no keys are set.
NO_KEY = Key(b"", scopes=frozenset({Scope.ADMIN}))


@dataclass(frozen=True, slots=True)
class ApiKeys:
    """Without any, everybody is the default tenant and may do everything."""

    keys: tuple[Key, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Comma-separated KEY or TENANT:KEY. Raises ValueError, without the key."""
        keys = []
        for position, entry in enumerate(filter(None, (part.strip() for part in text.split(","))), start=1):
            tenant, separator, key = entry.partition(":")
            if not separator:
                tenant, key = DEFAULT_TENANT, entry
            if not TENANT.fullmatch(tenant):
                raise ValueError(f"the tenant of entry {position} is not 1 to 64 of A-Z a-z 0-9 . _ -")
            if not key or not key.isascii() or not key.isprintable() or " " in key:
                raise ValueError(f"the key of entry {position} is empty or not plain ASCII")
            keys.append(Key(key_digest(key.encode()), tenant))
        return cls(tuple(keys))

    def __bool__(self) -> bool:
        return bool(self.keys)

    @property
    def tenants(self) -> frozenset[str]:
        return frozenset(key.tenant for key in self.keys) or frozenset({DEFAULT_TENANT})

    def find(self, authorization: bytes | None) -> Key | None:
        """The key of an Authorization header; None when it is missing or unknown.

        Every key is compared, in constant time, so that the answer's time tells nothing about them.
        """
        if not self.keys:
            return NO_KEY
        scheme, _, secret = (authorization or b"").partition(b" ")
        secret = secret.strip()
        presented = key_digest(secret)
        found = None
        for key in self.keys:
            if hmac.compare_digest(key.digest, presented):
                found = key
        return found if found and scheme.lower() == b"bearer" and len(secret) >= found.min_length else None


def key_digest(key: bytes) -> bytes:
    return sha256(key).digest()
