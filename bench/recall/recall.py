"""`python -m bench recall`: does a session still know what it has read, by length, and after the server was killed?

Documents that hide facts are ingested over HTTP; the server is killed with SIGKILL and started again (when it is ours;
with `--second-server` another process answers, on the same store, and the first one keeps running);
then every question is asked three ways: memory `on` (the document's own session), `off` (no session at all) and
`swapped` (another document's session, which is what chance means). Only `on` may be above chance.
Questions are asked read-only, and so independently of each other, unless `--writing` asks for committed turns.
"""

from __future__ import annotations

import argparse
import uuid
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import TypeVar

from atlas_model.text import find_tokenizer, load_tokenizer
from atlas_model.training.documents import Question
from bench import report
from bench.plot import draw_recall
from bench.recall.askers import Asker, open_asker
from bench.recall.results import CONDITIONS, Answer, curves, summarise
from bench.server_process import bench_server
from bench.workload import (
    FACTS_PER_QUESTION,
    OVERWRITE_PROBABILITY,
    Item,
    is_right,
    make_items,
    open_prose,
    parse_counts,
)
from clients import Client, IngestResult

T = TypeVar("T")
R = TypeVar("R")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--lengths", type=parse_counts, default="2k,16k,128k", help="tokens per document, comma-separated (2k = 2,000)"
    )
    parser.add_argument("--documents", type=int, default=5, help="documents per length, at least 2")
    parser.add_argument("--questions", type=int, default=20, help="questions per document")
    parser.add_argument("--facts", type=int, help=f"facts per document; default: {FACTS_PER_QUESTION} per question")
    parser.add_argument(
        "--overwritten",
        type=float,
        default=OVERWRITE_PROBABILITY,
        metavar="SHARE",
        help="how many of the facts overwrite an earlier one",
    )
    parser.add_argument("--corpus", type=Path, metavar="DIR", help="books to hide facts in; default: generated prose")
    parser.add_argument("--store", metavar="URL", help="the store of our own server; default: a temporary local one")
    parser.add_argument("--concurrency", type=int, default=4, help="requests in flight")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--writing", action="store_true", help="ask as committed turns, one after another")
    parser.add_argument("--openai", action="store_true", help="ask through the stock openai package")
    parser.add_argument(
        "--second-server", action="store_true", help="another server process on the same store answers; needs --store"
    )
    report.add_server_arguments(parser)
    report.add_output_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    if arguments.documents < 2:
        raise SystemExit("bench recall: --documents must be at least 2, or there is no session to swap with")
    if arguments.second_server and arguments.store is None:
        raise SystemExit("bench recall: --second-server needs a --store that two servers can share")
    try:
        items = make_items(
            load_tokenizer(find_tokenizer(arguments.model)),
            open_prose(arguments.corpus),
            arguments.lengths,
            arguments.documents,
            arguments.questions,
            arguments.seed,
            num_facts=arguments.facts,
            overwrite_probability=arguments.overwritten,
        )
    except ValueError as error:
        raise SystemExit(f"bench recall: {error}") from error
    run_id = uuid.uuid4().hex[:8]
    with (
        bench_server(arguments.base_url, arguments.model, arguments.store) as server,
        Client(server.base_url, arguments.api_key) as client,
    ):
        recall = Recall(client, items, run_id, arguments.concurrency)
        readings = recall.read()
        with (
            server.second() if arguments.second_server else server.killed_and_started() as base_url,
            open_asker(base_url, arguments.api_key, through_openai=arguments.openai) as asker,
        ):
            answers = recall.ask(asker, arguments.writing)
        recall.forget()
    rows = summarise(answers)
    for row in rows:
        print(row)
    if arguments.plot is not None:
        draw_recall(curves(rows), arguments.plot)
    document = {
        **report.header("recall"),
        "model": arguments.model.name,
        "prose": "generated" if arguments.corpus is None else "books",
        "answered_by": "second process" if arguments.second_server else "same" if arguments.base_url else "restarted",
        "through": "openai" if arguments.openai else "clients",
        "writing": arguments.writing,
        "seed": arguments.seed,
        "num_documents": arguments.documents,
        "num_questions": arguments.questions,
        "results": [row.to_json() for row in rows],
        "ingest_tokens_per_second_per_stream": sum(r.num_tokens for r in readings) / sum(r.seconds for r in readings),
    }
    records = {"readings": [asdict(reading) for reading in readings], "answers": [asdict(answer) for answer in answers]}
    report.publish(document, records, arguments.json)


class Recall:
    """One workload on one server, which may be another process from one method to the next."""

    def __init__(self, client: Client, items: list[Item], run_id: str, concurrency: int) -> None:
        self._client = client
        self._items = items
        self._run_id = run_id
        self._concurrency = concurrency

    def read(self) -> list[IngestResult]:
        """Ingest every document into a session of its own."""

        def read_one(item: Item) -> IngestResult:
            return self._client.ingest(self._session_of(item), BytesIO(item.document.text.encode()))

        return self._in_parallel(read_one, self._items)

    def ask(self, asker: Asker, writing: bool = False, conditions: Sequence[str] = CONDITIONS) -> list[Answer]:
        """Every question under each condition. With `writing`, `on` comes last: its turns change the sessions."""
        answers: list[Answer] = []
        for condition in reversed(conditions):
            asked = [(condition, item) for item in self._items]
            if condition == "on" and writing:
                groups = self._in_parallel(lambda pair: self._ask_in_order(asker, pair[1]), asked)
                answers += [answer for group in groups for answer in group]
            else:
                single = [(condition, item, question) for _, item in asked for question in item.document.questions]
                answers += self._in_parallel(lambda one: self._ask_one(asker, *one, read_only=True), single)
        return answers

    def forget(self) -> None:
        for item in self._items:
            self._client.delete_session(self._session_of(item))

    def _ask_in_order(self, asker: Asker, item: Item) -> list[Answer]:
        return [self._ask_one(asker, "on", item, question, read_only=False) for question in item.document.questions]

    def _ask_one(self, asker: Asker, condition: str, item: Item, question: Question, *, read_only: bool) -> Answer:
        session_id = None
        if condition != "off":
            session_id = self._session_of(item if condition == "on" else self._other(item))
        answer = asker(question.text, session_id, read_only=read_only)
        return Answer(
            length=item.length,
            document=item.number,
            condition=condition,
            kind=str(question.kind),
            question=question.text,
            expected=question.answer,
            answer=answer,
            is_right=is_right(answer, question),
            chance=1 / question.num_answers,
        )

    def _session_of(self, item: Item) -> str:
        return f"recall-{self._run_id}-{item.length}-{item.number}"

    def _other(self, item: Item) -> Item:
        """The next document of the same length."""
        same = [other for other in self._items if other.length == item.length]
        return same[(item.number + 1) % len(same)]

    def _in_parallel(self, function: Callable[[T], R], arguments: Iterable[T]) -> list[R]:
        with ThreadPoolExecutor(self._concurrency) as pool:
            return list(pool.map(function, arguments))
