"""Token buckets: never more than a burst and what time has brought, whatever is asked for and given back."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.access.auth import ApiKeys, Key, RateLimits
from server.access.rate_limits import SECONDS, UNLIMITED, Bucket, RateLimiter, duration
from server.errors import RateLimited, RequestTooCostly


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


Event = tuple[float, float, float]
# Seconds that pass, what is then asked for, and the share of it that is given back at once.
EVENTS = st.lists(st.tuples(st.floats(0, 100), st.floats(0, 200), st.floats(0, 1)), max_size=60)


@given(per_minute=st.integers(1, 100), events=EVENTS)
def test_within_any_time_no_more_is_taken_than_a_burst_and_what_came_meanwhile(
    per_minute: int, events: list[Event]
) -> None:
    clock = Clock()
    bucket = Bucket(per_minute, clock)
    taken: list[tuple[float, float]] = []
    for seconds, amount, given_back in events:
        clock.now += seconds
        if bucket.take(amount):
            bucket.charge(-amount * given_back)
            taken.append((clock.now, amount * (1 - given_back)))
    for first, (start, _) in enumerate(taken):
        total = 0.0
        for when, amount in taken[first:]:
            total += amount
            assert total <= per_minute + (when - start) * per_minute / SECONDS + 1e-6


@given(per_minute=st.integers(1, 100), events=EVENTS)
def test_what_is_said_to_be_there_then_is_there_then(per_minute: int, events: list[Event]) -> None:
    clock = Clock()
    bucket = Bucket(per_minute, clock)
    for seconds, amount, _ in events:
        clock.now += seconds
        wanted = min(amount, per_minute)
        if not bucket.take(wanted):
            wait = bucket.seconds_until(wanted)
            assert wait > 0
            assert not bucket.take(wanted)
            clock.now += wait + 1e-6
            assert bucket.take(wanted)


@given(per_minute=st.integers(1, 100), amounts=st.lists(st.floats(0, 500), max_size=30))
def test_what_is_charged_afterwards_is_paid_in_full(per_minute: int, amounts: list[float]) -> None:
    clock = Clock()
    bucket = Bucket(per_minute, clock)
    began = clock.now
    for amount in amounts:
        bucket.charge(amount)
        clock.now += bucket.seconds_until(0)
    assert sum(amounts) <= per_minute + (clock.now - began) * per_minute / SECONDS + 1e-3


def test_a_bucket_fills_to_a_minutes_worth_and_no_more(clock: Clock) -> None:
    bucket = Bucket(60, clock)
    assert [bucket.take(60), bucket.take(1)] == [True, False]
    clock.now += 1.5
    assert bucket.level == pytest.approx(1.5)
    clock.now += 86400
    assert bucket.level == 60
    bucket.charge(-100)
    assert bucket.level == 60


def test_a_new_limit_forgets_nothing_that_was_used(clock: Clock) -> None:
    bucket = Bucket(60, clock)
    bucket.take(50)
    bucket.resize(100)
    assert bucket.level == 50
    bucket.resize(20)
    assert bucket.level == -30


def test_keys_of_a_tenant_share_and_one_with_limits_of_its_own_does_not(clock: Clock) -> None:
    limiter = RateLimiter(RateLimits(requests_per_minute=1), clock)
    first, second, other = Key(b"1", "acme"), Key(b"2", "acme"), Key(b"3", "globex")
    own = Key(b"4", "acme", limits=RateLimits(tokens_per_minute=100))
    limiter.allowance(first).take_request()
    with pytest.raises(RateLimited):
        limiter.allowance(second).take_request()
    limiter.allowance(other).take_request()
    limiter.allowance(own).take_request()
    with pytest.raises(RateLimited):
        limiter.allowance(own).take_request()
    assert limiter.allowance(own).tokens is not None
    assert limiter.allowance(first).tokens is None


def test_without_limits_nothing_is_counted(clock: Clock) -> None:
    assert RateLimiter(RateLimits(), clock).allowance(Key(b"1")) is UNLIMITED
    with UNLIMITED.reserved(10**9):
        UNLIMITED.take_request()
        UNLIMITED.check_tokens()
        UNLIMITED.charge_tokens(10**9)
    assert UNLIMITED.headers() == {}
    assert UNLIMITED.debt_seconds == 0


def test_buckets_of_keys_that_are_gone_go_and_the_others_keep_their_level(clock: Clock) -> None:
    limiter = RateLimiter(RateLimits(requests_per_minute=2), clock)
    stays, goes = Key(b"1", "stays"), Key(b"2", "goes")
    for key in (stays, goes):
        limiter.allowance(key).take_request()
    limiter.forget_all_but(ApiKeys((stays,)))
    limiter.allowance(stays).take_request()
    with pytest.raises(RateLimited):
        limiter.allowance(stays).take_request()
    assert limiter.allowance(goes).headers()["x-ratelimit-remaining-requests"] == "2"


def test_a_turn_is_charged_what_it_used_however_it_ends(clock: Clock) -> None:
    allowance = RateLimiter(RateLimits(tokens_per_minute=600), clock).allowance(Key(b"1"))
    assert allowance.tokens is not None
    with allowance.reserved(500) as meter:
        assert allowance.tokens.level == 100
        with pytest.raises(RateLimited) as limited, allowance.reserved(101):
            pass
        assert limited.value.retry_after == pytest.approx(0.1)
        meter.num_tokens = 30
    assert allowance.tokens.level == 570
    with contextlib.suppress(TimeoutError), allowance.reserved(500) as meter:
        meter.num_tokens = 70
        raise TimeoutError
    assert allowance.tokens.level == 500
    with pytest.raises(RequestTooCostly), allowance.reserved(601):
        pass


def test_a_document_goes_into_debt_and_the_debt_is_waited_for(clock: Clock) -> None:
    allowance = RateLimiter(RateLimits(tokens_per_minute=60), clock).allowance(Key(b"1"))
    allowance.check_tokens()
    allowance.charge_tokens(90)
    assert allowance.debt_seconds == pytest.approx(30)
    with pytest.raises(RateLimited, match="60 tokens a minute: try again in 31s"):
        allowance.check_tokens()
    assert allowance.headers()["x-ratelimit-remaining-tokens"] == "0"
    clock.now += 31.0
    allowance.check_tokens()
    assert allowance.debt_seconds == 0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (0.0001, "1ms"), (0.25, "250ms"), (1, "1s"), (7.5, "7.5s"), (59.9999, "1m0s"), (90.25, "1m30.25s")],
)
def test_durations_are_written_as_openai_writes_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text
