"""`python -m bench NAME`: one measurement. The last line of standard output is one JSON document."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

# The folder, and in it the benches: each is the module of its name.
ROOMS = {
    "recall": {
        "recall": "does a session know what it has read, by length, after a kill -9",
        "chain": "one text of many tokens: the memory's norms, and what is still known",
        "codecs": "what a snapshot's codec costs in recall, and what it saves in bytes",
    },
    "serving": {
        "load": "latency and throughput under load: closed or open loop, one kind of request or a mix",
        "beside": "what a long document that is being read costs those who read answers",
        "latency": "one request at a time: first token and the gaps after it, by the prompt's length",
        "resume": "going on with a session, by tier, against reading the same text again",
        "compare": "the same stateless load on our server and on another one of OpenAI's kind, in turns",
        "http_cost": "what HTTP costs the server's processor per token, beside the engine",
    },
    "wire": {
        "event_cost": "what an event costs the server's processor when the engine costs nothing",
    },
    "engine": {
        "throughput": "tokens a second of the engine alone, without HTTP",
        "roofline": "decode steps and prefill pieces beside the machine's limit",
        "profile": "where the time of a prefill piece and of a decode step goes, by part",
        "context_length": "what a token costs and a snapshot weighs, by how much was read before",
        "cost": "what saving, loading and a sample of the memory cost",
    },
    "memory": {
        "capacity": "how many random pairs a memory holds, by key width, degree and depth",
        "kernels": "the chunk form beside its matrix products alone and beside the naive loop, rule by rule",
        "omega_window": "what a longer Omega window costs in prefill and in decode",
    },
    "store": {
        "store": "what committing and resuming through Redis costs, in time, in memory and to Redis' other clients",
    },
    "peers": {
        "peers": "other people's models of the same shape beside ours: titans-pytorch, transformers, llama.cpp",
    },
    "gpu": {
        "gpu_check": "a CUDA device against the CPU: the same numbers, and how fast",
    },
}
BENCHES = {name: (room, what) for room, benches in ROOMS.items() for name, what in benches.items()}


class _DefaultsFormatter(argparse.HelpFormatter):
    """Says each option's default where its text does not."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        default = action.default
        if not action.help or "default" in action.help or default in (None, [], argparse.SUPPRESS) or default is False:
            return action.help
        return f"{action.help} (default: %(default)s)"


def main(arguments: Sequence[str]) -> None:
    """Only the chosen bench is imported: each needs other things. Raises SystemExit with one line of reason."""
    overview = argparse.ArgumentParser(prog="python -m bench", formatter_class=argparse.RawDescriptionHelpFormatter)
    overview.epilog = "\n".join(f"  {name:<14} {what}" for name, (_, what) in BENCHES.items())
    overview.add_argument("bench", choices=BENCHES, metavar="NAME")
    name = overview.parse_args(arguments[:1]).bench
    room, what = BENCHES[name]
    bench = importlib.import_module(f"bench.{room}.{name}")
    failures = importlib.import_module("bench.failures").FAILURES
    parser = argparse.ArgumentParser(
        prog=f"python -m bench {name}", description=what, formatter_class=_DefaultsFormatter
    )
    bench.add_arguments(parser)
    try:
        bench.run(parser.parse_args(arguments[1:]))
    except failures as error:
        raise SystemExit(f"bench {name}: {error}") from error


if __name__ == "__main__":
    main(sys.argv[1:])
