"""guidellm's command, with several streams at once: every request is answered, and what it measures adds up.

Skipped where the extra `evaluators` is not installed; `make test-evaluators` installs it.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.server.harness import ThreadedServer

pytest.importorskip("guidellm", reason="guidellm is not installed (extra evaluators)")

NUM_REQUESTS = 12
NUM_TOKENS = 6


def measured(base_url: str, path: str, folder: Path) -> Any:
    """The one benchmark of its report."""
    questions = [{"prompt": f"Where is Mary {number}?", "output_tokens_count": NUM_TOKENS} for number in range(24)]
    (folder / "questions.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))
    given = {
        "backend": f"kind=openai_http,target={base_url},model=atlas-tiny,request_format={path}",
        "profile": "kind=concurrent,streams=4",
        "constraint": f"kind=max_requests,count={NUM_REQUESTS}",
        "data": f"kind=json_file,path={folder / 'questions.jsonl'}",
        "output": f"kind=json,path={folder / 'report.json'}",
    }
    options = [part for name, value in given.items() for part in (f"--{name}", value)]
    subprocess.run(
        [sys.executable, "-m", "guidellm", "run", *options, "--disable-console"],
        env={**os.environ, "HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1"},
        check=True,
        timeout=240,
    )
    (benchmark,) = json.loads((folder / "report.json").read_text(encoding="utf-8"))["benchmarks"]
    return benchmark


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_every_request_succeeds_and_has_the_tokens_that_were_asked_for(
    server: ThreadedServer, tmp_path: Path, path: str
) -> None:
    benchmark = measured(server.base_url, path, tmp_path)
    totals = benchmark["metrics"]["request_totals"]
    assert (totals["errored"], totals["incomplete"]) == (0, 0)
    assert totals["successful"] == NUM_REQUESTS
    tokens = benchmark["metrics"]["output_token_count"]["successful"]
    assert (tokens["min"], tokens["max"]) == (NUM_TOKENS, NUM_TOKENS)
    assert 0 < benchmark["metrics"]["time_to_first_token_ms"]["successful"]["median"] < 60_000
