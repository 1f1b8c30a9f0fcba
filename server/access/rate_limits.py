"""How much may be asked for in a minute, in requests and in tokens: token buckets, one pair for each tenant.

A tenant's keys share its buckets, as they share its quota and its part of the queue, so that a key may be exchanged for
a new one without a second allowance; a key whose line in the keys file names limits has buckets of its own. A bucket
holds a minute's worth and fills evenly. Tokens are reserved before a turn begins, for all that it may cost, and what it
did not cost is given back. A document, which may be longer than any minute's worth, is paid commit by commit: what was
read goes into debt, and nothing more is read before the debt is gone. Per process; the clock is monotonic.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from server.access.auth import ApiKeys, Key, RateLimits
from server.errors import RateLimited, RequestTooCostly

SECONDS = 60.0
Clock = Callable[[], float]


class Bucket:
    """Of what `take` has taken within any t seconds, and nobody has given back, there is never more than a minute's
    worth and t seconds' worth; only `charge` may go beyond."""

    def __init__(self, per_minute: int, clock: Clock) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._level = float(per_minute)
        self._filled = clock()

    @property
    def level(self) -> float:
        """What is there now; below zero it is a debt."""
        now = self._clock()
        self._level = min(self.per_minute, self._level + (now - self._filled) * self.per_minute / SECONDS)
        self._filled = now
        return self._level

    def take(self, amount: float) -> bool:
        """False when so much is not there."""
        if self.level < amount:
            return False
        self._level -= amount
        return True

    def charge(self, amount: float) -> None:
        """Takes what has been used already; a negative amount is given back."""
        self._level = min(self.per_minute, self.level - amount)

    def seconds_until(self, amount: float) -> float:
        return max(0.0, (amount - self.level) * SECONDS / self.per_minute)

    def resize(self, per_minute: int) -> None:
        """What was used stays used."""
        self._level = self.level + per_minute - self.per_minute
        self.per_minute = per_minute


@dataclass(slots=True)
class Meter:
    """num_tokens: what a turn has used so far."""

    num_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Allowance:
    """What one caller may still ask for; None is without a limit."""

    requests: Bucket | None = None
    tokens: Bucket | None = None

    def take_request(self) -> None:
        """Raises RateLimited."""
        if self.requests is not None and not self.requests.take(1):
            raise _limited(self.requests, "requests", 1)

    def check_tokens(self) -> None:
        """Raises RateLimited when there is none, before any work is done to know how many it would be."""
        if self.tokens is not None and self.tokens.level < 1:
            raise _limited(self.tokens, "tokens", 1)

    @contextmanager
    def reserved(self, max_num_tokens: int) -> Iterator[Meter]:
        """For a turn that may use so many. What its meter does not show at the end is given back.

        Raises RateLimited, and RequestTooCostly for more than a minute's worth.
        """
        meter = Meter()
        if self.tokens is None:
            yield meter
            return
        if max_num_tokens > self.tokens.per_minute:
            raise RequestTooCostly(
                f"the request may take {max_num_tokens} tokens and the limit is {self.tokens.per_minute} a minute:"
                " ask for fewer max_tokens"
            )
        if not self.tokens.take(max_num_tokens):
            raise _limited(self.tokens, "tokens", max_num_tokens)
        try:
            yield meter
        finally:
            self.tokens.charge(meter.num_tokens - max_num_tokens)

    def charge_tokens(self, num_tokens: int) -> None:
        """What a document has used."""
        if self.tokens is not None:
            self.tokens.charge(num_tokens)

    @property
    def debt_seconds(self) -> float:
        """Until a document may be read on."""
        return 0.0 if self.tokens is None else self.tokens.seconds_until(0)

    def headers(self) -> dict[str, str]:
        """OpenAI's, for the limits that there are."""
        headers = {}
        for unit, bucket in (("requests", self.requests), ("tokens", self.tokens)):
            if bucket is not None:
                headers[f"x-ratelimit-limit-{unit}"] = str(bucket.per_minute)
                headers[f"x-ratelimit-remaining-{unit}"] = str(max(0, math.floor(bucket.level)))
                headers[f"x-ratelimit-reset-{unit}"] = duration(bucket.seconds_until(bucket.per_minute))
        return headers


UNLIMITED = Allowance()


class RateLimiter:
    def __init__(self, limits: RateLimits, clock: Clock = time.monotonic) -> None:
        """limits: of a tenant, and of a key in what its own leave open."""
        self._limits = limits
        self._clock = clock
        self._allowances: dict[str | bytes, Allowance] = {}

    def allowance(self, key: Key) -> Allowance:
        limits = RateLimits(
            key.limits.requests_per_minute or self._limits.requests_per_minute,
            key.limits.tokens_per_minute or self._limits.tokens_per_minute,
        )
        if limits == RateLimits():
            return UNLIMITED
        name = key.tenant if key.limits == RateLimits() else key.digest
        known = self._allowances.get(name, UNLIMITED)
        current = Allowance(
            self._fitted(known.requests, limits.requests_per_minute),
            self._fitted(known.tokens, limits.tokens_per_minute),
        )
        self._allowances[name] = current
        return current

    def forget_all_but(self, keys: ApiKeys) -> None:
        """After the keys have changed: those of nobody are gone."""
        names = {key.digest for key in keys.keys} | keys.tenants
        self._allowances = {name: kept for name, kept in self._allowances.items() if name in names}

    def _fitted(self, bucket: Bucket | None, per_minute: int | None) -> Bucket | None:
        if per_minute is None:
            return None
        if bucket is None:
            return Bucket(per_minute, self._clock)
        if bucket.per_minute != per_minute:
            bucket.resize(per_minute)
        return bucket


def duration(seconds: float) -> str:
    """As OpenAI writes it: 0s, 250ms, 7.5s, 1m30s."""
    milliseconds = math.ceil(seconds * 1000)
    if 0 < milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes}m{rest / 1000:g}s" if minutes else f"{rest / 1000:g}s"


def _limited(bucket: Bucket, unit: str, amount: float) -> RateLimited:
    seconds = bucket.seconds_until(amount)
    return RateLimited(
        f"the limit is {bucket.per_minute} {unit} a minute: try again in {duration(seconds)}", retry_after=seconds
    )
