"""`python -m bench peers`: ours beside other people's models of the same shape, with random weights, in one process.

Same width, depth, vocabulary and about as many parameters; each peer is run in the ways that its package offers for
speed, and all that is not chosen here is its default. Every pair takes turns, so that whatever else the machine does
meets both; a ratio is the median of the turns' own. Prefill is from a prompt to its next token; decode is the mean of
so many tokens behind a position, each chosen from the logits. Ours is the engine core, as a user gets it, without HTTP.

The packages come with the extra `peers`; llama-cpp-python is compiled while it is installed, which takes a compiler and
some minutes. Each has a module of its own, which is imported when the peer is asked for.
"""

from __future__ import annotations

import argparse
import importlib
from dataclasses import asdict
from typing import cast

import torch

from atlas_model.presets import PRESETS
from bench import report
from bench.peers.atlas import Atlas
from bench.peers.contender import Peer
from bench.peers.rows import HEADINGS, Row, fastest_of_each_package
from bench.peers.turns import Turns
from bench.workload import parse_counts, parse_length

PEERS = {
    "atlas-mac": "bench.peers.atlas",
    "titans-pytorch": "bench.peers.titans",
    "transformers": "bench.peers.llama",
    "llama.cpp": "bench.peers.llama_cpp",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=PEERS, metavar="NAME", help="default: all")
    parser.add_argument("--preset", default="demo", choices=PRESETS, help="the shape of all models")
    parser.add_argument("--prefill-lengths", type=parse_counts, default="1024,8192", help="tokens of a prompt")
    parser.add_argument("--positions", type=parse_counts, default="1024,8192,65536", help="where decoding begins")
    parser.add_argument(
        "--batch-size", type=parse_length, default=8, help="rows at once, at the first length and position; 1 is none"
    )
    parser.add_argument("--decode-tokens", type=parse_length, default=32, help="tokens decoded a turn")
    parser.add_argument("--turns", type=parse_length, default=5, help="how often each pair is timed")
    parser.add_argument("--threads", type=parse_length, default=2, help="of each; as many idle cores are needed")
    report.add_json_argument(parser)


def run(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads)
    config = PRESETS[arguments.preset]
    modules = {name: _load(name) for name in arguments.peers}
    ours = Atlas("atlas", config, arguments.batch_size)
    peers = {name: module.contenders(config, arguments.batch_size) for name, module in modules.items()}
    descriptions = [each.description for each in (ours, *(peer for each in peers.values() for peer in each))]
    for each in descriptions:
        print(
            f"{each.name:<24} {each.size.num_parameters:>11,} parameters, {each.size.num_parameters_per_token:>11,} a"
            f" token; {each.package}: {each.settings}"
        )
    print(HEADINGS)
    turns = Turns(ours, peers, config.vocab_size, arguments.turns, arguments.decode_tokens)
    for num_rows, length in _sizes(arguments.prefill_lengths, arguments.batch_size):
        turns.prefill(num_rows, length)
    for num_rows, position in _sizes(arguments.positions, arguments.batch_size):
        turns.decode(num_rows, position)
    rows = [Row.of(measured) for measured in turns.measurements]
    fastest = fastest_of_each_package(rows)
    print("the fastest of each package:", *fastest, sep="\n")
    document: report.Json = {
        **report.header("peers"),
        "preset": arguments.preset,
        "num_threads": torch.get_num_threads(),
        "decode_tokens": arguments.decode_tokens,
        "models": [asdict(each) for each in descriptions],
        "rows": [asdict(row) for row in rows],
        "fastest": [asdict(row) for row in fastest],
    }
    report.publish(document, {"turns": [asdict(measured) for measured in turns.measurements]}, arguments.json)


def _sizes(lengths: list[int], batch_size: int) -> list[tuple[int, int]]:
    """Rows and length: each length with one row, the first with many too."""
    return [(1, length) for length in lengths] + [(batch_size, lengths[0])] * (batch_size > 1)


def _load(name: str) -> Peer:
    """Raises SystemExit, naming the package, when it is not installed."""
    try:
        return cast(Peer, importlib.import_module(PEERS[name]))
    except ModuleNotFoundError as error:
        raise SystemExit(
            f"bench peers: {name} needs the package {error.name}: pip install -c constraints.txt -e '.[peers]'"
        ) from error
