"""A server process under mixed load: nobody is told what is not so, and nothing piles up."""

import statistics
from collections import Counter
from pathlib import Path

import pytest

from tests.faults.figures import tell
from tests.faults.footprint import Footprint, watched
from tests.faults.soak import Client
from tests.faults.writers import COMMIT_NUM_TOKENS, writing
from tests.server.forked import ForkedServer, Forker
from tests.server.harness import metric_value, tiny_folder, until

NUM_CLIENTS = 4
# Of the time, in which caches fill and allocators find their sizes.
WARM_UP_SHARE = 0.4
MAX_GROWTH = 1.05
AT_REST = ("state_slots_in_use", "num_requests_running", "num_requests_waiting", "inflight_state_bytes")


def soak(forker: Forker, model: Path, folder: Path, seconds: float) -> None:
    settings = {
        "model": str(model),
        "store": f"local://{folder / 'sessions'}",
        "ingest_commit_tokens": str(COMMIT_NUM_TOKENS),
        "max_num_sequences": "3",
        # A few sessions: others wait, and are read from the store again.
        "host_cache_bytes": "1000000",
        "inflight_state_bytes": "2000000",
    }
    with ForkedServer(forker, folder, **settings) as server:
        clients = [Client(f"http://127.0.0.1:{server.port}", f"client-{number}") for number in range(NUM_CLIENTS)]
        files = count_files(folder / "sessions")
        with writing(clients):
            watched(server.pid, WARM_UP_SHARE * seconds)
            footprints = watched(server.pid, (1 - WARM_UP_SHARE) * seconds)
        assert [client.broken for client in clients] == [[]] * NUM_CLIENTS
        until(lambda: all(metric_value(server.client.get("/metrics").text, name) == 0 for name in AT_REST))
        assert count_files(folder / "sessions") == files
    quarter = len(footprints) // 4
    growth = resident(footprints[-quarter:]) / resident(footprints[:quarter])
    opened = [
        statistics.median(each.num_open for each in part) for part in (footprints[:quarter], footprints[-quarter:])
    ]
    counts = sum((client.counts for client in clients), Counter[str]())
    told = ", ".join(f"{count} × {kind}" for kind, count in counts.most_common())
    tell(f"{seconds:.0f} s: {told}; resident memory {growth:.3f} ×, {opened[0]:.0f} and {opened[1]:.0f} open files")
    assert growth < MAX_GROWTH
    assert opened[1] <= opened[0] + 2


@pytest.fixture(scope="module")
def roomy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with states of 380 kB, of which not many can be lost unseen."""
    return tiny_folder(tmp_path_factory.mktemp("roomy"), key_width=32, value_width=32, feature_width=16)


def resident(footprints: list[Footprint]) -> float:
    return statistics.median(each.num_bytes for each in footprints)


def count_files(folder: Path) -> int:
    return sum(path.is_file() for path in folder.rglob("*"))


def test_forty_seconds_of_everything_lose_nothing_and_leave_nothing(
    forker: Forker, roomy: Path, tmp_path: Path
) -> None:
    soak(forker, roomy, tmp_path, 40)


@pytest.mark.slow
@pytest.mark.timeout(4500)
def test_an_hour_of_everything_loses_nothing_and_leaves_nothing(forker: Forker, roomy: Path, tmp_path: Path) -> None:
    soak(forker, roomy, tmp_path, 3600)
