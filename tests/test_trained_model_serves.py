"""The way a newcomer goes: train with the repository's own command and serve the folder it leaves as it is."""

from __future__ import annotations

import random
import subprocess
import sys
from itertools import islice
from pathlib import Path

import httpx
import pytest

from atlas_model.training.synthetic_prose import SyntheticProse
from bench.server_process import ServerProcess


@pytest.mark.timeout(180)
def test_a_model_trained_by_the_command_serves_and_remembers_a_session(tmp_path: Path) -> None:
    corpus, model = tmp_path / "corpus", tmp_path / "my-model"
    corpus.mkdir()
    sentences = [sentence.text for sentence in islice(SyntheticProse().passage(random.Random(0)), 400)]
    (corpus / "book.txt").write_text("\n".join(sentences), encoding="utf-8")
    command = [sys.executable, "-m", "atlas_model.training", "--recipe", "smoke", "--scale", "0.2"]
    subprocess.run([*command, "--corpus", str(corpus), "--out", str(model)], check=True, timeout=150)

    settings = {"ATLAS_MODEL": str(model), "ATLAS_STORE": f"local://{tmp_path / 'store'}", "ATLAS_THREADS": "1"}
    with (
        ServerProcess(settings, log_path=tmp_path / "server.log") as server,
        httpx.Client(base_url=server.base_url, timeout=60) as client,
    ):
        assert client.get("/v1/models").json()["data"][0]["id"] == "my-model"
        body = {"messages": [{"role": "user", "content": "Where is Mary?"}], "max_tokens": 4, "session_id": "s"}
        answer = client.post("/v1/chat/completions", json=body).json()
        assert answer["session"]["version"] == 1
        assert answer["usage"]["completion_tokens"] <= 4
