"""What /metrics says of a server that has done some of everything: values, not names."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from engine.errors import SnapshotError
from engine.sequence import FinishReason, Tier
from server.errors import statuses_by_code
from tests.server.harness import ThreadedServer, ask, metric_value, open_stream, read_until, serving, until

# Of vLLM, whose dashboards know them.
FIRST_TOKEN_BOUNDS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5),
    *(10, 20, 40, 80, 160, 640, 2560),
)
INTER_TOKEN_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5)
REQUEST_BOUNDS = (
    *(0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60),
    *(120, 240, 480, 960, 1920, 7680),
)
Value = Callable[[str], float]


def values_of(client: httpx.Client) -> Value:
    """A metric's value by its name, all of one moment."""
    exposition = client.get("/metrics").text
    return lambda name: metric_value(exposition, name)


@pytest.fixture
def cramped(model: Path, tmp_path: Path) -> Iterator[ThreadedServer]:
    """One slot, room for one session in memory and for no request in the queue."""
    settings = {"max_num_sequences": "1", "max_num_waiting": "0", "host_cache_bytes": "40000"}
    settings |= {"memory_sample_tokens": "60", "ingest_commit_tokens": "60"}
    with serving(model, store=f"local://{tmp_path / 'sessions'}", **settings) as server:
        yield server


@pytest.fixture
def asked(cramped: ThreadedServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=cramped.base_url, timeout=60) as connected:
        yield connected


def test_answers_are_counted_by_their_tokens_and_times(asked: httpx.Client) -> None:
    for text in ("a", "b"):
        answer = ask(asked, text, session_id="secret-name", ignore_eos=True).json()
    read = ask(asked, "c", session_id="secret-name", read_only=True, ignore_eos=True).json()["usage"]
    value = values_of(asked)
    for name in ("time_to_first_token", "request_queue_time", "request_prefill_time", "request_decode_time"):
        assert value(f"{name}_seconds_count") == 3, name
    assert value("e2e_request_latency_seconds_count") == 3
    assert value("inter_token_latency_seconds_count") == 3 * 3
    parts = [value(f"request_{part}_time_seconds_sum") for part in ("queue", "prefill", "decode")]
    assert 0 < sum(parts) < value("e2e_request_latency_seconds_sum") < 60
    assert value("time_to_first_token_seconds_sum") < value("e2e_request_latency_seconds_sum")
    assert value("generation_tokens_total") == 3 * 4
    # The last token of a turn is fed by the next one, before what is new.
    num_fed = answer["session"]["position"]
    assert value("tokens_memorized_total") == num_fed
    num_read = read["prompt_tokens"] - read["prompt_tokens_details"]["cached_tokens"]
    assert value("prompt_tokens_total") == num_fed - 2 * 3 + num_read
    assert value("iteration_tokens_total_sum") == num_fed + num_read + 3
    assert value('request_success_total{finished_reason="length"}') == 3
    route = 'method="POST",route="/v1/chat/completions",status="200"'
    assert value(f"http_requests_total{{{route}}}") == 3
    assert value('slot_queue_time_seconds_count{priority="interactive"}') == 3
    assert value('slot_queue_time_seconds_count{priority="background"}') == 0


def test_sessions_are_counted_by_where_they_were_and_what_they_cost(
    cramped: ThreadedServer, asked: httpx.Client
) -> None:
    ask(asked, "a", session_id="first")
    until(lambda: values_of(asked)('sessions{tier="device"}') == 1)
    ask(asked, "from the device", session_id="first")
    ask(asked, "whose state takes the slot")
    ask(asked, "from memory", session_id="first")
    assert values_of(asked)('sessions{tier="host"}') == 1
    ask(asked, "whose state takes the place in memory", session_id="second")
    ask(asked, "from the store", session_id="first")
    value = values_of(asked)
    assert [value(f'session_resume_seconds_count{{tier="{tier.value}"}}') for tier in Tier] == [1, 1, 1]
    assert all(0 < value(f'session_resume_seconds_sum{{tier="{tier.value}"}}') < 10 for tier in Tier)
    assert value("session_commit_seconds_count") == value("session_state_bytes_count") == 5
    assert 0 < value("session_commit_seconds_sum") < 60
    stored = [asked.get(f"/v1/sessions/{name}").json()["bytes"] for name in ("first", "second")]
    assert 5 * min(stored) * 0.9 < value("session_state_bytes_sum") <= 5 * max(stored)
    assert value('sessions{tier="host"}') == 1
    assert value("state_slots") == 1


def test_documents_are_counted_with_samples_of_the_memory(asked: httpx.Client) -> None:
    document = asked.post("/v1/sessions/book/ingest", json={"text": "Mary went to the garden.\n" * 40})
    value = values_of(asked)
    num_commits = document.json()["session"]["version"]
    assert value('slot_queue_time_seconds_count{priority="background"}') == num_commits > 2
    assert value("prompt_tokens_total") == value("tokens_memorized_total") == document.json()["tokens"]
    assert value("time_to_first_token_seconds_count") == 0
    samples = asked.get("/v1/sessions/book/memory").json()["samples"]
    layers = [layer for sample in samples for layer in sample["layers"] if layer["layer"] == 0]
    assert layers
    for field, name in {
        "norm": "memory_norm",
        "effective_rank": "memory_effective_rank",
        "update_norm": "memory_update_norm",
        "surprise": "memory_surprise",
        "token_gate": "memory_token_gate",
        "retention": "memory_retention",
        "memory_share": "memory_share",
    }.items():
        told = [layer[field] for layer in layers if layer[field] is not None]
        assert value(f'{name}_count{{layer="0"}}') == len(told), name
        assert value(f'{name}_sum{{layer="0"}}') == pytest.approx(sum(told), rel=1e-5), name


def test_refusals_are_counted_by_their_code_and_conflicts_apart(asked: httpx.Client) -> None:
    ask(asked, "a", session_id="s")
    ask(asked, "d", best_of=2)
    ask(asked, "e", session_id="s", history="match")
    ask(asked, "f", {"If-Match": "7"}, session_id="s")
    asked.get("/nothing")
    asked.get("/v1/sessions/absent")
    value = values_of(asked)
    for code in ("unsupported_parameter", "session_diverged", "version_conflict", "not_found", "session_not_found"):
        assert value(f'requests_rejected_total{{reason="{code}"}}') == 1, code
    for code in ("session_diverged", "version_conflict"):
        assert value(f'session_conflicts_total{{reason="{code}"}}') == 1, code
    assert value('session_conflicts_total{reason="session_busy"}') == 0
    assert value('http_requests_total{method="GET",route="none",status="404"}') == 1
    assert value('http_requests_total{method="GET",route="/v1/sessions/{session_id}",status="404"}') == 1


def test_who_leaves_is_counted_with_what_was_read_and_written_for_him(
    cramped: ThreadedServer, asked: httpx.Client
) -> None:
    with open_stream(cramped.port, "a b c", {"max_tokens": 30_000, "ignore_eos": True, "stream": True}) as running:
        read_until(running, b"data: ")
        assert values_of(asked)("num_requests_running") == values_of(asked)("state_slots_in_use") == 1
        assert ask(asked, "b").json()["error"]["code"] == "queue_full"
    until(lambda: values_of(asked)('request_success_total{finished_reason="abort"}') == 1)
    until(lambda: values_of(asked)("num_requests_running") == 0)
    value = values_of(asked)
    assert value("prompt_tokens_total") > len("a b c") / 2
    assert value("generation_tokens_total") > 0
    assert value("time_to_first_token_seconds_count") == 1
    assert value('requests_rejected_total{reason="queue_full"}') == 1
    assert value("num_requests_waiting") == value("num_background_running") == value("num_background_waiting") == 0
    assert value("state_slots_in_use") == value("inflight_state_bytes") == value("inflight_state_waiting") == 0
    assert value("tokens_memorized_total") == 0
    assert 16 <= value("max_paced_tokens") <= 512


def test_a_session_that_cannot_be_loaded_is_counted_by_the_reason(
    cramped: ThreadedServer, asked: httpx.Client, tmp_path: Path
) -> None:
    ask(asked, "a", session_id="first")
    ask(asked, "b", session_id="second")
    for blob in (path for path in (tmp_path / "sessions" / "blobs").rglob("*") if path.is_file()):
        raw = bytearray(blob.read_bytes())
        raw[len(raw) // 2] ^= 1
        blob.write_bytes(raw)
    assert ask(asked, "c", session_id="first").json()["error"]["code"] == "state_corrupt"
    assert values_of(asked)('session_restore_failures_total{reason="state_corrupt"}') == 1


def test_a_label_has_each_of_its_values_from_the_start(asked: httpx.Client) -> None:
    """Or a rate would miss the first failure of a kind: from nothing to 1 is no increase."""
    value = values_of(asked)
    assert all(value(f'requests_rejected_total{{reason="{code}"}}') == 0 for code in statuses_by_code())
    for code in statuses_by_code(SnapshotError):
        assert value(f'session_restore_failures_total{{reason="{code}"}}') == 0
    for code, status in statuses_by_code().items():
        if status in (409, 412):
            assert value(f'session_conflicts_total{{reason="{code}"}}') == 0
    assert all(value(f'request_success_total{{finished_reason="{each.value}"}}') == 0 for each in FinishReason)
    assert all(value(f'session_resume_seconds_count{{tier="{each.value}"}}') == 0 for each in Tier)


def test_no_label_names_a_session_a_tenant_or_a_text(model: Path) -> None:
    with serving(model, api_keys="secret-tenant:secret-key") as server:
        headers = {"Authorization": "Bearer secret-key"}
        with httpx.Client(base_url=server.base_url, timeout=60, headers=headers) as client:
            ask(client, "secret-text", session_id="secret-session", user="secret-user")
            client.get("/v1/sessions/secret-session")
            client.get("/secret-path")
            client.get("/v1/sessions", headers={"Authorization": "Bearer secret-other"})
            text = client.get("/metrics").text
    assert "secret" not in text
    assert 'requests_rejected_total{reason="invalid_api_key"} 1.0' in text
    assert 'http_requests_total{method="GET",route="none",status="401"} 1.0' in text


def test_the_process_itself_is_told_in_the_words_of_every_dashboard(asked: httpx.Client) -> None:
    samples = dict(line.rsplit(" ", 1) for line in asked.get("/metrics").text.splitlines() if line[0] != "#")
    assert float(samples["process_resident_memory_bytes"]) > 10e6
    assert float(samples["process_cpu_seconds_total"]) > 0
    assert not [name for name in samples if "_created" in name]


@pytest.mark.parametrize(
    ("name", "bounds"),
    [
        ("time_to_first_token_seconds", FIRST_TOKEN_BOUNDS),
        ("inter_token_latency_seconds", INTER_TOKEN_BOUNDS),
        ("e2e_request_latency_seconds", REQUEST_BOUNDS),
        ("request_queue_time_seconds", REQUEST_BOUNDS),
        ("request_prefill_time_seconds", REQUEST_BOUNDS),
        ("request_decode_time_seconds", REQUEST_BOUNDS),
    ],
)
def test_the_buckets_are_the_ones_that_dashboards_know(
    client: httpx.Client, name: str, bounds: tuple[float, ...]
) -> None:
    text = client.get("/metrics").text
    assert tuple(float(bound) for bound in re.findall(rf'atlas_{name}_bucket{{le="([^"+]+)"}}', text)) == bounds
