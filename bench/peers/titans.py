"""The package titans-pytorch: a transformer with a memory as context (Titans, section 4.1), driven as its own `sample`
drives it, with the cache of attention and memory.

Same width, depth, vocabulary, heads, feed-forward width, chunk (one gradient anchor each) and segment. Two ways:

    titans-pytorch            the leanest that the package has: a matrix for a memory, no momentum, a plain residual
                              stream, and keys and queries normalised as ours are
    titans-pytorch-defaults   what it does unless told otherwise: a memory of two layers, momentum, four streams

The longest step that a gradient may take is smaller than the package's: with its own, a memory with random weights is
soon not finite. That costs no time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Any

import torch
from titans_pytorch import MemoryAsContextTransformer, MemoryMLP
from torch import Tensor

from atlas_model.config import AtlasConfig
from bench.peers.contender import Contender, Description, Size, Write, likeliest
from bench.peers.shapes import titans_shape

MAX_STEP = 1e-2


class Titans:
    def __init__(
        self, name: str, settings: str, config: AtlasConfig, max_length: int, memory: dict[str, Any], **options: Any
    ) -> None:
        torch.manual_seed(0)
        memory_config = config.memory
        self._model = MemoryAsContextTransformer(
            **titans_shape(config),
            **options,
            neural_memory_kwargs={
                "dim_head": memory_config.value_width,
                "heads": memory_config.num_heads,
                "default_step_transform_max_lr": MAX_STEP,
                "qk_rmsnorm": True,
                **memory,
            },
        ).eval()
        num_parameters = sum(parameter.numel() for parameter in self._model.parameters())
        size = Size(num_parameters, num_parameters - config.vocab_size * config.width)
        package = f"titans-pytorch {metadata.version('titans-pytorch')}"
        self.description = Description(name, package, settings, size, max_length=max_length)
        self._vocab_size = config.vocab_size

    @torch.inference_mode()
    def prefill(self, token_ids: Tensor) -> None:
        logits, _ = self._model(token_ids, return_cache=True)
        likeliest(logits[:, -1])

    @contextmanager
    def writing(self, num_rows: int, position: int, room: int) -> Iterator[Write]:
        with torch.inference_mode():
            embedding = self._model.axial_pos_emb
            length = self._model.seq_len_with_longterm_mem(position + room)
            sides = embedding.maybe_derive_outer_dim(length, (self._model.neural_memory_segment_len,))
            positions = embedding(sides, return_factorized=True)
            token_ids = torch.randint(self._vocab_size, (num_rows, position))
            logits, cache = self._model(token_ids, return_cache=True, factorized_pos_emb=positions)

        @torch.inference_mode()
        def write(num_tokens: int) -> None:
            nonlocal token_ids, logits, cache
            for _ in range(num_tokens):
                token_ids = torch.cat((token_ids, likeliest(logits[:, -1])), dim=1)
                logits, cache = self._model(token_ids, cache=cache, return_cache=True, factorized_pos_emb=positions)

        yield write


def contenders(config: AtlasConfig, num_rows: int) -> list[Contender]:
    matrix = MemoryMLP(config.memory.value_width, depth=1)
    return [
        Titans(
            "titans-pytorch",
            "MAC, matrix memory, no momentum, one residual stream",
            config,
            8192,
            {"momentum": False},
            neural_memory_model=matrix,
            num_residual_streams=1,
        ),
        Titans("titans-pytorch-defaults", "MAC, two-layer memory, momentum, four residual streams", config, 1024, {}),
    ]
