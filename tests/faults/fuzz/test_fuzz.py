"""Requests by the thousand, drawn from the server's own schemas and spoilt: whatever is sent, the answer is no server
error, comes in time, and leaves nothing behind."""

from pathlib import Path

import httpx
import pytest

from tests.faults.figures import tell
from tests.faults.footprint import Footprint
from tests.faults.fuzz.campaign import Report, run_campaign
from tests.faults.fuzz.served import SETTINGS, fuzz, fuzzed_server, target_of
from tests.faults.test_memory_faults import poisoned
from tests.server.forked import ForkedServer, Forker
from tests.server.harness import ask, serving

MEBI = 2**20
ROUND = 5000
NUM_WARMING_ROUNDS = 4


def assert_nothing_found(report: Report, server: ForkedServer) -> None:
    assert report.findings == []
    assert "Traceback" not in server.log
    assert server.is_running
    assert server.answers("/health")
    assert ask(server.client, "Where is Mary?").status_code == 200


def assert_every_road_was_tried(report: Report) -> None:
    """Else a mistake in the cases would look like a server without one."""
    assert set(report.num_by_status) >= {200, 400, 404, 405, 409, 415, 422}
    num_cases = sum(report.num_answers.values())
    assert report.num_by_status[200] > num_cases / 10
    assert len({kind for kind, _ in report.num_answers}) == 18


def test_2000_fuzzed_requests_get_answers_and_no_server_error(forker: Forker, model: Path, tmp_path: Path) -> None:
    with fuzzed_server(forker, model, tmp_path) as server:
        report, footprint = fuzz(server, target_of(server.port, server.client, seed=1), range(2000))
        assert_nothing_found(report, server)
        assert_every_road_was_tried(report)
        tell(
            f"{report.num_by_status}, the slowest {report.slowest_seconds:.1f} s, {footprint.num_bytes / MEBI:.0f} MiB"
        )


def test_a_model_that_breaks_is_found_by_the_first_hundreds(model: Path) -> None:
    with serving(model, **SETTINGS) as server, httpx.Client(base_url=server.base_url) as client:
        target = target_of(server.port, client, seed=1)
        with poisoned(server):
            report = run_campaign(target, range(300))
    assert any(finding.startswith("status 500 · ") for finding in report.findings)


@pytest.mark.slow
def test_100000_fuzzed_requests_get_answers_and_leave_memory_flat(forker: Forker, model: Path, tmp_path: Path) -> None:
    """Resident memory and open files after each round of 5,000, all that was made deleted."""
    with fuzzed_server(forker, model, tmp_path) as server:
        target = target_of(server.port, server.client, seed=2)
        total = Report()
        footprints: list[Footprint] = []
        for first in range(0, 100_000, ROUND):
            report, footprint = fuzz(server, target, range(first, first + ROUND))
            total |= report
            footprints.append(footprint)
            tell(f"up to {first + ROUND:,}: {report.num_by_status}, {footprint.num_bytes / MEBI:.0f} MiB")
            assert_nothing_found(report, server)
        warm, last = footprints[NUM_WARMING_ROUNDS - 1], footprints[-1]
        growth = last.num_bytes / warm.num_bytes
        tell(
            f"{total.num_by_status}, the slowest {total.slowest_seconds:.1f} s; resident memory after 100,000 is"
            f" {growth:.3f} × that after {NUM_WARMING_ROUNDS * ROUND:,}: {last.num_bytes / MEBI:.0f} MiB"
        )
        assert_every_road_was_tried(total)
        assert growth < 1.05
        assert last.num_open <= warm.num_open + 2
