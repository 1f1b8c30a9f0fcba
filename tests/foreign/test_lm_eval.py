"""lm-eval's command on tasks made of local files: what it measures is what the model itself says.

Skipped where the extra `evaluators` is not installed; `make test-evaluators` installs it.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from atlas_model.causal_lm import AtlasForCausalLM
from tests.server.harness import ThreadedServer, ask

pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra evaluators)")

CLOSENESS = 1e-4
QUESTIONS = [
    {"question": "Mary went to the", "choices": ["garden", "kitchen", "hall"], "answer": 0},
    {"question": "one two three " * 30 + "four", "choices": ["five", "six, seven and eight"], "answer": 0},
    {"question": "été \U0001f600 is", "choices": ["\U0001f600", "a"], "answer": 1},
]
TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {folder}/questions.jsonl
test_split: test
doc_to_text: "{{{{question}}}}"
"""
CHOICE = """
output_type: multiple_choice
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
ANSWER = """
output_type: generate_until
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["never said"], max_gen_toks: 6}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


@pytest.fixture(scope="module")
def samples(server: ThreadedServer, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], list[Any]]:
    """By model and task, what lm-eval has noted for each question."""
    folder = tmp_path_factory.mktemp("lm-eval")
    lines = "".join(json.dumps(question) + "\n" for question in QUESTIONS)
    (folder / "questions.jsonl").write_text(lines, encoding="utf-8")
    for name, kind in (("places", CHOICE), ("said", ANSWER)):
        (folder / f"{name}.yaml").write_text(TASK.format(name=name, folder=folder) + kind, encoding="utf-8")
    wanted = {
        "local-completions": ("/v1/completions", ["places", "said"], ["--batch_size", "2"]),
        "local-chat-completions": ("/v1/chat/completions", ["said"], ["--apply_chat_template"]),
    }
    programs = [
        lm_eval(folder, model, f"model=atlas-tiny,base_url={server.base_url}{path},num_concurrent=1", tasks, more)
        for model, (path, tasks, more) in wanted.items()
    ]
    for program in programs:
        _, complaints = program.communicate(timeout=240)
        assert program.returncode == 0, complaints[-2000:]
    found = {}
    for model, (_, tasks, _) in wanted.items():
        for task in tasks:
            (path,) = (folder / model).rglob(f"samples_{task}_*.jsonl")
            notes = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            found[model, task] = sorted(notes, key=lambda note: int(note["doc_id"]))
    return found


def lm_eval(folder: Path, model: str, arguments: str, tasks: list[str], more: list[str]) -> subprocess.Popen[str]:
    places = ["--include_path", str(folder), "--output_path", str(folder / model)]
    command = [sys.executable, "-m", "lm_eval", "--model", model, "--model_args", arguments, "--log_samples", *places]
    home = {"HF_HOME": str(folder / f"{model}-home"), "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [*command, "--tasks", ",".join(tasks), *more],
        env={**os.environ, **home},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def own_log_likelihood(model: AtlasForCausalLM, context: str, continuation: str) -> tuple[float, bool]:
    """Of the tokens by which the whole is longer than the context, and whether each was the likeliest."""
    tokenizer = model.tokenizer
    num_context = len(tokenizer.encode(context))
    ids = torch.tensor([[tokenizer.special.bos, *tokenizer.encode(context + continuation)]])
    logits, _ = model(ids[:, :-1])
    log_probs = torch.log_softmax(logits[0, num_context:].double(), -1)
    told = ids[0, 1 + num_context :]
    chosen = log_probs.gather(1, told[:, None])
    return float(chosen.sum()), bool((log_probs.argmax(-1) == told).all())


def test_log_likelihoods_are_the_models_own(samples: dict[tuple[str, str], list[Any]], model: Path) -> None:
    own = AtlasForCausalLM.from_pretrained(model)
    notes = samples["local-completions", "places"]
    assert len(notes) == len(QUESTIONS)
    for note in notes:
        likelihoods = []
        for arguments, ((told, is_greedy),) in zip(note["arguments"].values(), note["resps"], strict=True):
            expected, was_greedy = own_log_likelihood(own, arguments["arg_0"], arguments["arg_1"])
            assert float(told) == pytest.approx(expected, abs=CLOSENESS)
            assert is_greedy == str(was_greedy)
            likelihoods.append(expected)
        assert note["acc"] == float(likelihoods.index(max(likelihoods)) == note["doc"]["answer"])


def test_generated_answers_are_those_of_completions_and_of_chats(
    samples: dict[tuple[str, str], list[Any]], client: Any
) -> None:
    for note in samples["local-completions", "said"]:
        body = {"prompt": note["doc"]["question"], "max_tokens": 6, "temperature": 0}
        assert note["resps"] == [[client.post("/v1/completions", json=body).json()["choices"][0]["text"]]]
    for note in samples["local-chat-completions", "said"]:
        answer = ask(client, note["doc"]["question"], max_tokens=6).json()["choices"][0]["message"]["content"]
        assert note["resps"] == [[answer]]
