"""schemathesis over our OpenAPI document, with all its checks but one: what is documented is what happens, a key is
asked for wherever it says so, and nothing that it thinks of is a server error.

The one is that whatever fits the schema is accepted: no schema says that a prompt is not blank, that a snapshot is
whole, or that a session is at the version that `If-Match` names.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.figures import tell
from tests.server.harness import ThreadedServer, serving

KEY = "a-key"
LEFT_OUT = "positive_data_acceptance"


@pytest.fixture(scope="module")
def guarded(model: Path) -> Iterator[ThreadedServer]:
    settings = {"api_keys": KEY, "max_tokens_limit": "8", "body_timeout_seconds": "5"}
    with serving(model, **settings) as running:
        yield running


def num_cases_without_a_failure(server: ThreadedServer, folder: Path, *options: str) -> int:
    program = str(Path(sys.executable).with_name("schemathesis"))
    checks = ["--checks", "all", "--exclude-checks", LEFT_OUT, "--header", f"Authorization: Bearer {KEY}"]
    drawn = ["--seed", "1", "--generation-deterministic", "--suppress-health-check", "all", "--no-color"]
    done = subprocess.run(
        [program, "run", f"{server.base_url}/openapi.json", *checks, *drawn, *options],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    generated = re.search(r"^  ([\d,]+) generated", done.stdout, re.MULTILINE)
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr
    assert generated, done.stdout
    return int(generated[1].replace(",", ""))


def test_a_hundred_cases_of_schemathesis_find_nothing(guarded: ThreadedServer, tmp_path: Path) -> None:
    num_cases = num_cases_without_a_failure(guarded, tmp_path, "--phases", "examples,fuzzing", "--max-examples", "3")
    tell(f"{num_cases} cases")
    assert num_cases >= 100


@pytest.mark.slow
def test_5000_cases_of_schemathesis_find_nothing(guarded: ThreadedServer, tmp_path: Path) -> None:
    num_cases = num_cases_without_a_failure(guarded, tmp_path, "--max-examples", "200")
    tell(f"{num_cases} cases")
    assert num_cases >= 5000
