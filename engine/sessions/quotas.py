"""What a tenant may store: so many sessions, so many bytes of all their kept generations and answers.

Checked before anything is fed, where it is known by then that the commit cannot fit, and again at every commit. What
this process is committing is reserved meanwhile, so that its own commits never overshoot together; those of other
servers on the same Redis may, by what they commit at that moment.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from engine.errors import StoreFull
from engine.stores.base import Head, NewGeneration, SessionKey, Store, TenantUsage, new_generation_id
from engine.stores.head import stored_num_bytes
from engine.stores.succession import is_unchanged, next_head

# Refusals in a flood do not make the store count for each of them.
RECOUNT_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class TenantQuota:
    """The same for every tenant; None is no limit."""

    max_num_sessions: int | None = None
    max_num_bytes: int | None = None

    @property
    def limits(self) -> bool:
        return self.max_num_sessions is not None or self.max_num_bytes is not None


UNLIMITED = TenantQuota()


class Quotas:
    """Safe to call from several threads; a call waits only for the store, and for commits that decide the answer."""

    def __init__(self, quota: TenantQuota, least_num_bytes: int) -> None:
        """least_num_bytes: of a snapshot of anything that was read."""
        self.quota = quota
        self._least_num_bytes = least_num_bytes
        self._changed = threading.Condition()
        self._reserved: dict[str, list[TenantUsage]] = {}
        self._recounted: dict[str, float] = {}

    def check_room(self, store: Store, key: SessionKey, base: Head | None) -> None:
        """Raises StoreFull when no commit on top of `base` of what is being read can fit."""
        smallest = NewGeneration(new_generation_id(), (), "", 0, 0.0, 0.0, extra=b"?")
        more = _growth(store, base, smallest)
        more = replace(more, num_bytes=more.num_bytes + self._least_num_bytes)
        refusal = self._exceeded(store.usage(key.tenant), key.tenant, more)
        if self._recount_is_due(key.tenant, refusal):
            refusal = self._exceeded(self._recount(store, key.tenant), key.tenant, more)
        if refusal is not None and _is_still(store, key, base):
            raise StoreFull(refusal)

    @contextmanager
    def admitted(self, store: Store, key: SessionKey, base: Head | None, new: NewGeneration) -> Iterator[None]:
        """Around a commit of `new` on top of `base`. Raises StoreFull before it."""
        if not self.quota.limits:
            yield
            return
        more = _growth(store, base, new)
        self._reserve(store, key, base, more)
        try:
            yield
        finally:
            with self._changed:
                self._reserved[key.tenant].remove(more)
                if not self._reserved[key.tenant]:
                    del self._reserved[key.tenant]
                self._changed.notify_all()

    def _reserve(self, store: Store, key: SessionKey, base: Head | None, more: TenantUsage) -> None:
        while True:
            with self._changed:
                refusal = self._exceeded(store.usage(key.tenant), key.tenant, more)
                if not self._recount_is_due(key.tenant, refusal):
                    if refusal is not None and self._reserved.get(key.tenant):
                        # Others' commits may be in the store's count already: near the limit, wait until they are.
                        self._changed.wait()
                        continue
                    if refusal is not None and _is_still(store, key, base):
                        raise StoreFull(refusal)
                    self._reserved.setdefault(key.tenant, []).append(more)
                    return
            # It looks at every session of the tenant: nobody else's commit waits for that.
            self._recount(store, key.tenant)

    def _recount_is_due(self, tenant: str, refusal: str | None) -> bool:
        """A tenant is counted once by its sessions, and again before it is refused."""
        recounted = self._recounted.get(tenant)
        if recounted is None:
            return True
        return refusal is not None and time.monotonic() - recounted >= RECOUNT_SECONDS

    def _recount(self, store: Store, tenant: str) -> TenantUsage:
        usage = store.recount(tenant)
        self._recounted[tenant] = time.monotonic()
        return usage

    def _exceeded(self, used: TenantUsage, tenant: str, more: TenantUsage) -> str | None:
        reserved = self._reserved.get(tenant, ())
        num_sessions = used.num_sessions + sum(each.num_sessions for each in reserved)
        # What a commit will give back is nobody's before it has.
        num_bytes = used.num_bytes + sum(max(0, each.num_bytes) for each in reserved)
        quota = self.quota
        if quota.max_num_sessions is not None and more.num_sessions > 0 and num_sessions >= quota.max_num_sessions:
            return f"the quota is {quota.max_num_sessions} sessions, and {num_sessions} are stored: delete one first"
        if quota.max_num_bytes is not None and more.num_bytes > 0 and num_bytes + more.num_bytes > quota.max_num_bytes:
            return (
                f"the quota is {quota.max_num_bytes} bytes, and {num_bytes} are stored, to which at least"
                f" {more.num_bytes} would come: delete a session, take a version's name away, or keep fewer versions"
            )
        return None


def _growth(store: Store, base: Head | None, new: NewGeneration) -> TenantUsage:
    """What a commit adds; fewer than no bytes when it drops more than it brings."""
    head = next_head(base, new, 0 if base is None else base.version + 1, store.num_kept)
    return TenantUsage(1 if base is None else 0, stored_num_bytes(head) - stored_num_bytes(base))


def _is_still(store: Store, key: SessionKey, base: Head | None) -> bool:
    """Otherwise the store has more to say about the commit than that there is no room: a conflict, or that it is a
    retry of one that was applied."""
    return is_unchanged(base, store.read_head(key))
