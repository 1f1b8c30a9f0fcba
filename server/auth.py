"""Who is asking. The tenant comes from the API key and from nothing else."""

import hmac
import re
from dataclasses import dataclass
from hashlib import sha256
from typing import Self

from engine.sequence import DEFAULT_TENANT

_TENANT = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True, slots=True)
class ApiKeys:
    """Digests of the keys, each with its tenant. Without any, everybody is the default tenant."""

    digests: tuple[tuple[bytes, str], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Comma-separated KEY or TENANT:KEY. Raises ValueError, without the key."""
        digests = []
        for position, entry in enumerate(filter(None, (part.strip() for part in text.split(","))), start=1):
            tenant, separator, key = entry.partition(":")
            if not separator:
                tenant, key = DEFAULT_TENANT, entry
            if not _TENANT.fullmatch(tenant):
                raise ValueError(f"the tenant of entry {position} is not 1 to 64 of A-Z a-z 0-9 . _ -")
            if not key or not key.isascii() or not key.isprintable() or " " in key:
                raise ValueError(f"the key of entry {position} is empty or not plain ASCII")
            digests.append((sha256(key.encode()).digest(), tenant))
        return cls(tuple(digests))

    def __bool__(self) -> bool:
        return bool(self.digests)

    @property
    def tenants(self) -> frozenset[str]:
        return frozenset(tenant for _, tenant in self.digests) or frozenset({DEFAULT_TENANT})

    def tenant_of(self, authorization: bytes | None) -> str | None:
        """The tenant of an Authorization header; None when its key is missing or unknown.

        Every key is compared, in constant time, so that the answer's time tells nothing about them.
        """
        if not self.digests:
            return DEFAULT_TENANT
        scheme, _, key = (authorization or b"").partition(b" ")
        presented = sha256(key.strip()).digest()
        tenant = None
        for digest, owner in self.digests:
            if hmac.compare_digest(digest, presented):
                tenant = owner
        return tenant if scheme.lower() == b"bearer" else None
