"""The way a newcomer goes: train with the repository's own command and serve the folder it leaves as it is.

And the way of one who brings a tokenizer of the Hugging Face kind.
"""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import httpx
import pytest

from atlas_model.training.synthetic_prose import SyntheticProse
from bench.server_process import ServerProcess
from tests.atlas_model.tokenizers import byte_level_tokenizer
from tests.tiny import save_tiny_checkpoint, tiny_config


@contextmanager
def served(model: Path) -> Iterator[httpx.Client]:
    """A client of a server process for the model, its store beside the model's folder."""
    store, log = model.parent / "store", model.parent / "server.log"
    settings = {"ATLAS_MODEL": str(model), "ATLAS_STORE": f"local://{store}", "ATLAS_THREADS": "1"}
    with (
        ServerProcess(settings, log_path=log) as server,
        httpx.Client(base_url=server.base_url, timeout=60) as client,
    ):
        yield client


@pytest.mark.timeout(180)
def test_a_model_trained_by_the_command_serves_and_remembers_a_session(tmp_path: Path) -> None:
    corpus, model = tmp_path / "corpus", tmp_path / "my-model"
    corpus.mkdir()
    sentences = [sentence.text for sentence in islice(SyntheticProse().passage(random.Random(0)), 400)]
    (corpus / "book.txt").write_text("\n".join(sentences), encoding="utf-8")
    command = [sys.executable, "-m", "atlas_model.training", "--recipe", "smoke", "--scale", "0.2"]
    subprocess.run([*command, "--corpus", str(corpus), "--out", str(model)], check=True, timeout=150)

    with served(model) as client:
        assert client.get("/v1/models").json()["data"][0]["id"] == "my-model"
        body = {"messages": [{"role": "user", "content": "Where is Mary?"}], "max_tokens": 4, "session_id": "s"}
        answer = client.post("/v1/chat/completions", json=body).json()
        assert answer["session"]["version"] == 1
        assert answer["usage"]["completion_tokens"] <= 4


def test_a_checkpoint_with_a_tokenizer_json_serves_documents_and_turns(tmp_path: Path) -> None:
    tokenizer, text = byte_level_tokenizer(), "Anna went to the café.\r\n<end> She has the 🗝. "
    model = tmp_path / "byte-level"
    save_tiny_checkpoint(model, tiny_config(vocab_size=tokenizer.vocab_size), tokenizer=tokenizer)
    with served(model) as client:
        token_ids = client.post("/tokenize", json={"text": text}).json()["tokens"]
        assert token_ids == tokenizer.encode(text)
        assert client.post("/detokenize", json={"tokens": token_ids}).json()["text"] == text

        pieces = (piece.encode() for piece in (text[:7], text[7:26], text[26:]))
        headers = {"Content-Type": "text/plain"}
        read = client.post("/v1/sessions/s/ingest", content=pieces, headers=headers).json()
        assert read["tokens"] == len(token_ids) + 3
        body = {"messages": [{"role": "user", "content": "Who?"}], "max_tokens": 5, "session_id": "s", "seed": 1}
        answer = client.post("/v1/chat/completions", json=body | {"ignore_eos": True}).json()
        assert answer["usage"] == answer["usage"] | {"completion_tokens": 5}
        assert answer["choices"][0]["message"]["content"]
