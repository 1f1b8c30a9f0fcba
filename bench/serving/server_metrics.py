"""What a server counts itself, read from its `/metrics` before and after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from http.client import OK, HTTPConnection, HTTPException, HTTPSConnection
from urllib.parse import urlsplit

from bench.report import Json
from clients import ConnectionFailedError

Samples = Mapping[str, float]

TIERS = ("device", "host", "store")


def scrape(base_url: str, api_key: str | None) -> Samples | None:
    """Every sample by its name and labels, as written; None without such a page. Raises ConnectionFailedError."""
    url = urlsplit(base_url)
    assert url.hostname is not None
    connection = (HTTPSConnection if url.scheme == "https" else HTTPConnection)(url.hostname, url.port, timeout=30.0)
    try:
        connection.request("GET", "/metrics", headers={"Authorization": f"Bearer {api_key or 'none'}"})
        response = connection.getresponse()
        text = response.read().decode(errors="replace")
    except (OSError, HTTPException) as error:
        raise ConnectionFailedError(f"{base_url}: {error}") from error
    finally:
        connection.close()
    return parse_samples(text) if response.status == OK else None


def parse_samples(text: str) -> dict[str, float]:
    """The text format of Prometheus, without timestamps."""
    samples: dict[str, float] = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            samples[name] = float(value)
    return samples


@dataclass(frozen=True, slots=True)
class Mean:
    """Of what was counted between two looks."""

    n: int
    mean: float


def mean_between(before: Samples, after: Samples, histogram: str, labels: str = "") -> Mean | None:
    """None when nothing was counted."""
    n, total = (
        after.get(name, 0.0) - before.get(name, 0.0)
        for name in (f"{histogram}_count{labels}", f"{histogram}_sum{labels}")
    )
    return Mean(round(n), total / n) if n else None


def resume_seconds(before: Samples, after: Samples, tier: str) -> Mean | None:
    """Until a session was ready to go on, of those that went on from that tier."""
    return mean_between(before, after, "atlas_session_resume_seconds", f'{{tier="{tier}"}}')


def session_costs(before: Samples | None, after: Samples | None) -> Json:
    """Seconds until a session was ready to go on, by the tier that had it, seconds to commit, and bytes of a committed
    generation: means between the two looks. Nothing of a server that does not count."""
    if before is None or after is None:
        return {}
    means = {f"resume_{tier}_seconds": resume_seconds(before, after, tier) for tier in TIERS}
    for name in ("commit_seconds", "state_bytes"):
        means[name] = mean_between(before, after, f"atlas_session_{name}")
    return {"sessions": {name: None if mean is None else asdict(mean) for name, mean in means.items()}}
