"""`python -m bench codecs`: a snapshot's codec, in bytes, in time, and in what a session still knows.

The same documents are ingested under each codec, in commits of `--commit-tokens`, so that a document goes through the
codec at every commit. The server keeps no copy in its memory, so that each of the same questions, asked read-only, is
answered by a session that was just loaded. Beside the right answers stand those that are worded differently in the
first run, without a codec, right or wrong: the finer measure.
Save and load are timed on random numbers in a local store, the codecs in turns.
"""

from __future__ import annotations

import argparse
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import median

from atlas_model.checkpoint import Checkpoint, load_checkpoint
from atlas_model.text import find_tokenizer, load_tokenizer
from bench import report
from bench.clock import seconds_of
from bench.recall.askers import open_asker
from bench.recall.recall import Recall
from bench.recall.results import Answer
from bench.server_process import bench_server
from bench.stored_session import StoredSession, random_state
from bench.summary import Proportion, proportion
from bench.workload import Item, make_items, open_prose, parse_counts
from clients import Client
from engine.snapshots.codecs import Codec
from engine.stores.local import LocalStore


@dataclass(frozen=True, slots=True)
class CodecCost:
    """Medians over the rounds; a ratio, to no codec, is the median of the rounds' own ratios."""

    codec: str
    num_bytes: int
    save_seconds: float
    save_ratio: float
    load_seconds: float
    load_ratio: float

    def __str__(self) -> str:
        return (
            f"{self.codec:<5} {self.num_bytes:>11,} bytes  save {1e3 * self.save_seconds:.2f} ms "
            f"({self.save_ratio:.2f})  load {1e3 * self.load_seconds:.2f} ms ({self.load_ratio:.2f})"
        )


@dataclass(frozen=True, slots=True)
class CodecRecall:
    """snapshot_num_bytes: of a session, as its server tells it.
    num_changed: of the answers, those that are not word for word the first run's."""

    codec: str
    commit_num_tokens: int
    snapshot_num_bytes: int
    length: int
    accuracy: Proportion
    num_changed: int

    def __str__(self) -> str:
        return (
            f"{self.codec:<5} commits of {self.commit_num_tokens:>6,}  {self.length:>8,} tokens  {self.accuracy}  "
            f"{self.num_changed} changed"
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--lengths", type=parse_counts, default="2k,16k", help="tokens per document, comma-separated (2k = 2,000)"
    )
    parser.add_argument(
        "--commit-tokens", type=parse_counts, default="8192,1024", help="tokens between two commits, comma-separated"
    )
    parser.add_argument("--documents", type=int, default=4, help="documents per length")
    parser.add_argument("--questions", type=int, default=20, help="questions per document")
    parser.add_argument("--corpus", type=Path, metavar="DIR", help="books to hide facts in; default: generated prose")
    parser.add_argument("--store-rounds", type=int, default=100, help="saves and loads of each codec")
    parser.add_argument("--concurrency", type=int, default=4, help="requests in flight")
    parser.add_argument("--seed", type=int, default=0)
    report.add_model_argument(parser)
    report.add_json_argument(parser)


def run(arguments: argparse.Namespace) -> None:
    costs = measure_costs(load_checkpoint(arguments.model), arguments.store_rounds)
    for cost in costs:
        print(cost)
    tokenizer = load_tokenizer(find_tokenizer(arguments.model))
    items = make_items(
        tokenizer,
        open_prose(arguments.corpus),
        arguments.lengths,
        arguments.documents,
        arguments.questions,
        arguments.seed,
    )
    rows: list[CodecRecall] = []
    first: list[Answer] = []
    changed: list[report.Json] = []
    for commit_num_tokens, codec in product(arguments.commit_tokens, Codec):
        num_bytes, answers = _ask(arguments, items, codec, commit_num_tokens)
        first = first or answers
        others = [answer for answer, before in zip(answers, first, strict=True) if answer.answer != before.answer]
        for length in arguments.lengths:
            right = [answer.is_right for answer in answers if answer.length == length]
            num_changed = sum(answer.length == length for answer in others)
            accuracy = proportion(sum(right), len(right))
            rows.append(CodecRecall(codec, commit_num_tokens, num_bytes, length, accuracy, num_changed))
            print(rows[-1], flush=True)
        changed += [{"codec": codec, "commit_num_tokens": commit_num_tokens, **asdict(each)} for each in others]
    document: report.Json = {
        **report.header("codecs"),
        "model": arguments.model.name,
        "prose": "generated" if arguments.corpus is None else "books",
        "seed": arguments.seed,
        "num_documents": arguments.documents,
        "num_questions": arguments.questions,
        "num_rounds": arguments.store_rounds,
        "costs": [asdict(cost) for cost in costs],
        "recall": [asdict(row) for row in rows],
    }
    records = {"answers": [asdict(answer) for answer in first], "changed_answers": changed}
    report.publish(document, records, arguments.json)


def measure_costs(checkpoint: Checkpoint, num_rounds: int) -> list[CodecCost]:
    """Save and load one session under every codec, `num_rounds` times each, as the server does it."""
    config = checkpoint.model.config
    state = random_state(config)
    saves: dict[Codec, list[float]] = {codec: [] for codec in Codec}
    loads: dict[Codec, list[float]] = {codec: [] for codec in Codec}
    with tempfile.TemporaryDirectory(prefix="atlas-codecs-") as folder:
        store = LocalStore(Path(folder) / "store")
        try:
            sessions = {
                codec: StoredSession(store, codec, config, checkpoint.fingerprint, state, extra=b"", codec=codec)
                for codec in Codec
            }
            num_bytes = {codec: session.save().num_bytes for codec, session in sessions.items()}
            for _ in range(num_rounds):
                for codec, session in sessions.items():
                    saves[codec].append(seconds_of(session.save))
                    loads[codec].append(seconds_of(session.load))
        finally:
            store.close()
    return [
        CodecCost(
            codec=codec,
            num_bytes=num_bytes[codec],
            save_seconds=median(saves[codec]),
            save_ratio=_median_ratio(saves[codec], saves[Codec.NONE]),
            load_seconds=median(loads[codec]),
            load_ratio=_median_ratio(loads[codec], loads[Codec.NONE]),
        )
        for codec in Codec
    ]


def _ask(
    arguments: argparse.Namespace, items: list[Item], codec: Codec, commit_num_tokens: int
) -> tuple[int, list[Answer]]:
    """The size of a session's snapshot, and every question asked of the document's own session."""
    settings = {
        "ATLAS_SNAPSHOT_CODEC": codec.value,
        "ATLAS_INGEST_COMMIT_TOKENS": str(commit_num_tokens),
        "ATLAS_HOST_CACHE_BYTES": "0",
    }
    with (
        bench_server(None, arguments.model, None, settings) as server,
        Client(server.base_url) as client,
        open_asker(server.base_url, None, through_openai=False) as asker,
    ):
        recall = Recall(client, items, uuid.uuid4().hex[:8], arguments.concurrency)
        recall.read()
        num_bytes = client.list_sessions(limit=1).sessions[0].num_bytes
        return num_bytes, recall.ask(asker, conditions=("on",))


def _median_ratio(seconds: Sequence[float], others: Sequence[float]) -> float:
    return median(mine / other for mine, other in zip(seconds, others, strict=True))
