"""The engine dies, hangs, or fails one request: who is told what, and what is kept."""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from tests.faults.figures import tell
from tests.server.forked import ForkedServer, Forker
from tests.server.harness import ask, assert_refused, open_stream, read_until, serving, session_of

CULPRIT = "~"
ENDLESS = {"max_tokens": 30_000, "ignore_eos": True, "stream": True, "session_id": "s"}


@pytest.mark.parametrize("action", ["hang", "error"])
def test_an_engine_that_hangs_or_dies_is_told_to_all_and_ends_the_process(
    forker: Forker, model: Path, tmp_path: Path, action: str
) -> None:
    settings = {
        "model": str(model),
        "store": f"local://{tmp_path / 'sessions'}",
        "max_num_sequences": "1",
        "step_timeout_seconds": "2",
    }
    with ForkedServer(forker, tmp_path, **settings, failpoints=f"engine.round=300:{action}") as server:
        ask(server.client, "a", session_id="s").raise_for_status()
        before = session_of(server.client, "s")
        with ThreadPoolExecutor(1) as threads, open_stream(server.port, "b", ENDLESS) as stream:
            read_until(stream, b"data: ")
            waiting = threads.submit(ask, server.client, "c")
            read_until(stream, b"engine_dead")
            began = time.monotonic()
            for path in ("/health", "/ready"):
                assert_refused(server.client.get(path), 503, "engine_dead")
            assert_refused(ask(server.client, "d", session_id="s"), 503, "engine_dead")
            assert_refused(waiting.result(), 503, "engine_dead")
        server.wait_end()
        tell(f"{action}: the process ended {time.monotonic() - began:.1f} s after the engine was given up")
        assert server.log.splitlines()[-1] == "exit 1"
        assert ("the engine hangs in" if action == "hang" else "the engine died") in server.log
        server.launch(failpoints="")
        server.wait_ready()
        assert session_of(server.client, "s") == before
        assert ask(server.client, "b", session_id="s").json()["session"]["version"] == 2


def test_a_forward_that_fails_is_one_requests_500_and_its_session_is_as_it_was(model: Path) -> None:
    with ExitStack() as hooks, serving(model) as server, httpx.Client(base_url=server.base_url, timeout=60) as client:
        token_id = server.runtime.serving().checkpoint.tokenizer.encode(CULPRIT)[-1]

        def refuse(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if isinstance(module, nn.Embedding) and bool((inputs[0] == token_id).any()):
                raise ValueError("broken")

        hooks.callback(register_module_forward_pre_hook(refuse).remove)
        ask(client, "a", session_id="s").raise_for_status()
        before = session_of(client, "s")
        expected = ask(client, "b", session_id="s", read_only=True, max_tokens=40, ignore_eos=True).json()["choices"]
        with ThreadPoolExecutor(8) as threads:
            fields: dict[str, Any] = {"session_id": "s", "read_only": True, "max_tokens": 40, "ignore_eos": True}
            others = [threads.submit(ask, client, "b", **fields) for _ in range(7)]
            refused = threads.submit(ask, client, f"b {CULPRIT}", session_id="s").result()
        assert_refused(refused, 500, "internal_error")
        assert "broken" not in refused.text
        assert [other.result().json()["choices"] for other in others] == [expected] * 7
        assert session_of(client, "s") == before
        assert client.get("/health").status_code == 200
