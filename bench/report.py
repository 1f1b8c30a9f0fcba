"""What every bench hands out: a header that says where and how it was measured, one JSON document, one last line.

Promises: the last line of standard output is that document; `--json` writes it, with the raw records, to a file.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

Json = dict[str, object]

ROOT = Path(__file__).resolve().parent.parent
SHIPPED_MODEL = ROOT / "atlas_model" / "pretrained" / "atlas-demo"
RESULTS = ROOT / "bench" / "results"
PICTURE_SUFFIXES = (".png", ".svg", ".pdf")
CPU_INFO = Path("/proc/cpuinfo")


def add_json_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the document, raw records included, to FILE")


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    add_json_argument(parser)
    parser.add_argument("--plot", type=_picture, metavar="FILE", help="draw the result to FILE (png, svg or pdf)")


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base-url", metavar="URL", help="a running server; without it, one of our own is started")
    parser.add_argument("--api-key", default=os.environ.get("ATLAS_API_KEY"), help="default: ATLAS_API_KEY")
    add_model_argument(parser)


def add_model_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", type=Path, default=SHIPPED_MODEL, metavar="DIR", help="checkpoint folder; default: the shipped one"
    )


def _picture(text: str) -> Path:
    """Refused before anything is measured."""
    path = Path(text)
    if path.suffix not in PICTURE_SUFFIXES:
        raise argparse.ArgumentTypeError(f"none of {', '.join(PICTURE_SUFFIXES)}: {text!r}")
    return path


def header(bench: str) -> Json:
    """Hardware, command, versions, commit and date: without them a figure cannot be compared with another."""
    return {
        "bench": bench,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", "-m", "bench", *sys.argv[1:]]),
        "version": _version(),
        "commit": _commit(),
        "cpu": _cpu_model(),
        "num_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
    }


def publish(document: Json, records: Mapping[str, object], path: Path | None) -> None:
    """Write document and records to the file, print the document alone as the last line."""
    if path is not None:
        write({**document, **records}, path)
    print(json.dumps(document, ensure_ascii=False, allow_nan=False), flush=True)


def write(document: Json, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def _version() -> str:
    """That of the tree, which need not be installed."""
    version: str = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    return version


def _commit() -> str | None:
    """The commit of the tree, marked when the tree differs from it; None outside a repository."""
    try:
        commit = _git("rev-parse", "HEAD")
        return f"{commit}-modified" if _git("status", "--porcelain", "--untracked-files=no") else commit
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _cpu_model() -> str:
    if CPU_INFO.exists():
        for line in CPU_INFO.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
