"""A server for a campaign: small answers, few sessions, short patience; and what it must be like when it is over."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.faults.footprint import Footprint
from tests.faults.fuzz.campaign import Report, Target, run_campaign
from tests.server.forked import ForkedServer, Forker
from tests.server.harness import ask, metric_value, until

SETTINGS = {
    "store": "memory://",
    "max_tokens_limit": "8",
    "max_body_bytes": "200000",
    "body_timeout_seconds": "2",
    # Documents need not be polite to answers of eight tokens.
    "max_added_itl_seconds": "1",
    "tenant_max_sessions": "200",
    "log_level": "error",
}


@contextmanager
def fuzzed_server(forker: Forker, model: Path, folder: Path) -> Iterator[ForkedServer]:
    with ForkedServer(forker, folder, model=str(model), **SETTINGS) as server:
        yield server


def target_of(port: int, client: httpx.Client, seed: int) -> Target:
    ask(client, "Mary went to the garden.", session_id="exported").raise_for_status()
    snapshot = client.get("/v1/sessions/exported/export").raise_for_status().content
    document = client.get("/openapi.json").raise_for_status().json()
    return Target(port, document, snapshot, seed)


def fuzz(server: ForkedServer, target: Target, numbers: range) -> tuple[Report, Footprint]:
    """The report, and what the process takes once all that was made has been deleted."""
    report = run_campaign(target, numbers)
    sweep(server.client)
    until(lambda: metric_value(server.client.get("/metrics").text, "state_slots_in_use") == 0)
    return report, Footprint.of(server.pid)


def sweep(client: httpx.Client) -> None:
    """Deletes every session; one whose time to live ends may go by itself, and none may stay."""
    gone: set[str] = set()
    while names := [item["id"] for item in client.get("/v1/sessions", params={"limit": 100}).json()["data"]]:
        assert gone.isdisjoint(names), "a session that is deleted is listed"
        for name in names:
            assert client.delete(f"/v1/sessions/{name}").status_code in (200, 404)
        gone.update(names)
