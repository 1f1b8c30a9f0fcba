"""A run on disk: the checkpoint so far, one file of what all processes share, one per process of where its rows stand.

Promises: whenever a run is killed, the folder holds one whole save or none, of one step; rows go to other processes
when a run is resumed by another number of them. Leaves what is in the files to the loop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from atlas_model.checkpoint import save_checkpoint
from atlas_model.model import AtlasModel
from atlas_model.text import ChatFormat, Tokenizer
from atlas_model.training.processes import Processes

Rows = Mapping[str, Mapping[str, Any]]

_VERSION = 2
_STATE_FILE = "training_state.pt"
_EARLIER_STATE_FILE = "training_state.0.pt"


class ResumeError(ValueError):
    """A folder whose run cannot be gone on with exactly; the message says what differs."""


def has_save(directory: Path) -> bool:
    """Whether there is a run to resume. Raises ResumeError for one of a format that is not read any more."""
    if (directory / _STATE_FILE).is_file():
        return True
    if (directory / _EARLIER_STATE_FILE).is_file():
        raise ResumeError(
            f"{directory / _EARLIER_STATE_FILE} is of an earlier version and cannot be gone on with; "
            f"a new run in another folder can start from its weights: --start-from {directory}"
        )
    return False


def write_save(directory: Path, processes: Processes, shared: Mapping[str, Any], rows: Rows) -> None:
    """Save a step, `shared["step"]`, from all processes at once. The folder is the same for all of them.

    rows: tensors and lists by kind and name, whose first dimension are this process's rows.
    """
    step = shared["step"]
    _write(directory / f"training_rows.{step}.{processes.rank}.pt", rows)
    processes.wait()
    if processes.rank == 0:
        _write(directory / _STATE_FILE, {"version": _VERSION, "num_processes": processes.count, **shared})
        for path in directory.glob("training_rows.*"):
            if path.name.split(".")[1] != str(step):
                path.unlink()


def write_checkpoint(
    directory: Path,
    model: AtlasModel,
    tokenizer: Tokenizer,
    chat_format: ChatFormat,
    weights_dtype: torch.dtype,
) -> None:
    """As `save_checkpoint`; each file takes the place of the last save's when it is whole."""
    new = directory / "checkpoint.new"
    save_checkpoint(new, model, tokenizer, chat_format, weights_dtype)
    for path in new.iterdir():
        path.replace(directory / path.name)
    new.rmdir()


def read_save(directory: Path) -> tuple[dict[str, Any], Rows]:
    """What was shared, and the rows of all the processes that there were, in order; on the CPU. Raises ResumeError."""
    shared = _read(directory / _STATE_FILE)
    if shared["version"] != _VERSION:
        raise ResumeError(f"{directory / _STATE_FILE} is of version {shared['version']}, not {_VERSION}")
    ranks = range(shared["num_processes"])
    parts = [_read(directory / f"training_rows.{shared['step']}.{rank}.pt") for rank in ranks]
    return shared, {
        kind: {name: _joined([part[kind][name] for part in parts]) for name in parts[0][kind]} for kind in parts[0]
    }


def difference(saved: Any, now: Any, name: str) -> str | None:
    """Where two plain values first differ, said in words; None when they are equal."""
    if saved == now:
        return None
    if isinstance(saved, dict) and isinstance(now, dict) and saved.keys() == now.keys():
        pairs = [(saved[key], now[key], f"{name}.{key}") for key in saved]
    elif isinstance(saved, list) and isinstance(now, list) and len(saved) == len(now):
        pairs = [(one, other, f"{name}[{index}]") for index, (one, other) in enumerate(zip(saved, now, strict=True))]
    else:
        return f"{name} was {saved!r} and is {now!r}"
    return next(found for pair in pairs if (found := difference(*pair)) is not None)


def _joined(parts: Sequence[Any]) -> Any:
    if isinstance(parts[0], torch.Tensor):
        return torch.cat(list(parts))
    return [value for part in parts for value in part]


def _write(path: Path, values: Mapping[str, Any]) -> None:
    torch.save(dict(values), path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def _read(path: Path) -> dict[str, Any]:
    try:
        values: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    except FileNotFoundError as error:
        raise ResumeError(f"{path} is missing: the save is not whole") from error
    return values
