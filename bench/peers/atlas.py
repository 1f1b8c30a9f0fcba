"""Our own side: the engine core as a server drives it, without HTTP, with its default settings and random weights.

What is timed is what a user gets: scheduling, slots, sampling, stopping and text included. `atlas-mac` is the same with
the memory as context, the layout that titans-pytorch has.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from atlas_model.checkpoint import Checkpoint, load_checkpoint
from atlas_model.config import AtlasConfig
from atlas_model.model import AtlasModel
from bench import report
from bench.peers.contender import Contender, Description, Size, Write
from engine.config import EngineConfig
from engine.core import EngineCore
from engine.sampling.sampling_params import SamplingParams
from engine.sequence import Sequence


class Atlas:
    def __init__(self, name: str, config: AtlasConfig, num_rows: int) -> None:
        checkpoint = random_checkpoint(config)
        size = checkpoint.model.num_parameters
        settings = f"engine core, layout {config.layout}"
        self.description = Description(name, "atlas-serve", settings, Size(size, size))
        self._vocab_size = config.vocab_size
        self.core = EngineCore(checkpoint, EngineConfig(max_num_sequences=num_rows))

    def prefill(self, token_ids: Tensor) -> None:
        self._add(token_ids, max_tokens=1)
        while self.core.has_work:
            self._step()

    @contextmanager
    def writing(self, num_rows: int, position: int, room: int) -> Iterator[Write]:
        names = self._add(torch.randint(self._vocab_size, (num_rows, position)), room + num_rows)
        begun: set[str] = set()
        while len(begun) < num_rows:
            begun |= self._step().keys()

        def write(num_tokens: int) -> None:
            missing = num_tokens * num_rows
            while missing > 0:
                missing -= sum(self._step().values())

        try:
            yield write
        finally:
            for name in names:
                self.core.abort(name)
            while self.core.has_work:
                self.core.step()

    def _add(self, token_ids: Tensor, max_tokens: int) -> list[str]:
        params = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
        names = [f"row {row}" for row in range(len(token_ids))]
        for name, prompt in zip(names, token_ids.tolist(), strict=True):
            self.core.add(Sequence(name, prompt, params))
        return names

    def _step(self) -> dict[str, int]:
        """How many tokens each sequence has got."""
        tokens = {}
        for output in self.core.step():
            if output.error is not None:
                raise output.error
            if output.token_ids:
                tokens[output.sequence_id] = len(output.token_ids)
        return tokens


def random_checkpoint(config: AtlasConfig) -> Checkpoint:
    """A model of this configuration that was never trained, with the shipped tokenizer, whose speed is its own."""
    shipped = load_checkpoint(report.SHIPPED_MODEL)
    torch.manual_seed(0)
    return replace(shipped, model=AtlasModel(config).requires_grad_(False).eval())


def contenders(config: AtlasConfig, num_rows: int) -> list[Contender]:
    return [Atlas("atlas-mac", replace(config, layout="mac"), num_rows)]
