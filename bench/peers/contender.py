"""What each model in the comparison can be asked: to read a prompt, and to write on behind one.

Promises: every contender runs on torch's thread count, in float32 unless its name says otherwise, picks the likeliest
token, and raises FloatingPointError when its logits are not finite, so that no figure is of a model that has broken.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from atlas_model.config import AtlasConfig

Phase = Literal["prefill", "decode"]
Write = Callable[[int], None]
"""Goes on by so many tokens a row."""


@dataclass(frozen=True, slots=True)
class Size:
    """num_parameters: all of them. num_parameters_per_token: without a table of embeddings that is only looked up in;
    one that is the output layer too counts in both."""

    num_parameters: int
    num_parameters_per_token: int


@dataclass(frozen=True, slots=True)
class Description:
    """package: with its version. settings: how the model is run, in words. phases: what is measured of it.

    max_length: the longest prompt, and the farthest position, that it is measured at; None is any. Beyond it, reading
    alone takes minutes.
    """

    name: str
    package: str
    settings: str
    size: Size
    phases: tuple[Phase, ...] = ("prefill", "decode")
    max_length: int | None = None


class Contender(Protocol):
    @property
    def description(self) -> Description: ...

    def prefill(self, token_ids: Tensor) -> None:
        """Reads int64 [B, T] from nothing and picks the next token of each row."""

    def writing(self, num_rows: int, position: int, room: int) -> AbstractContextManager[Write]:
        """Rows that stand `position` tokens from their start and may go on by `room` tokens."""


class Peer(Protocol):
    """What a module of this folder offers: the ways in which one package is run."""

    def contenders(self, config: AtlasConfig, num_rows: int) -> list[Contender]:
        """Random weights in the shape of `config`; at most `num_rows` rows at once."""


def likeliest(logits: Tensor) -> Tensor:
    """Ids of the largest logits, [B, V] -> int64 [B, 1]. Raises FloatingPointError when they are not finite."""
    largest, token_ids = logits.max(-1, keepdim=True)
    if not all(math.isfinite(value) for value in largest.flatten().tolist()):
        raise FloatingPointError("the logits are not finite")
    return token_ids
