"""A Llama-shaped transformer of the package transformers, which keeps the keys and values of all it has read.

Its caches are filled with random entries, for reading 65,536 tokens takes it a minute and what is in a cache does not
change how long a step takes. Four ways, since none is the fastest everywhere:

    llama            as `generate` runs it: a cache that grows, torch's fused attention
    llama-compiled   a cache of fixed size and a compiled step, the package's fast path
    llama-eager      a cache of fixed size, attention as plain products
    llama-grouped    the same with a quarter of the key-value heads, as later Llamas have
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata

import torch
from torch import Tensor
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, StaticCache

from atlas_model.config import AtlasConfig
from bench.peers.contender import Contender, Description, Phase, Size, Write, likeliest
from bench.peers.shapes import llama_shape


class Llama:
    def __init__(
        self,
        name: str,
        settings: str,
        config: AtlasConfig,
        *,
        is_static: bool,
        is_compiled: bool = False,
        attention: str = "sdpa",
        heads_per_key: int = 1,
    ) -> None:
        torch.manual_seed(0)
        self._config = LlamaConfig(**llama_shape(config, heads_per_key), attn_implementation=attention)
        self._model = LlamaForCausalLM(self._config).eval()
        self._is_static = is_static
        self.step = torch.compile(self._model, fullgraph=True, dynamic=False) if is_compiled else self._model
        size = sum(parameter.numel() for parameter in self._model.parameters())
        # How a prompt is read depends on neither the cache nor the step.
        phases: tuple[Phase, ...] = ("decode",) if is_static else ("prefill", "decode")
        package = f"transformers {metadata.version('transformers')}"
        self.description = Description(name, package, settings, Size(size, size), phases)

    @torch.inference_mode()
    def prefill(self, token_ids: Tensor) -> None:
        likeliest(self._model(token_ids, use_cache=True, logits_to_keep=1).logits[:, -1])

    @contextmanager
    def writing(self, num_rows: int, position: int, room: int) -> Iterator[Write]:
        with torch.inference_mode():
            cache = self.filled_cache(num_rows, position, room)
            token_ids = torch.randint(self._config.vocab_size, (num_rows, 1))

        @torch.inference_mode()
        def write(num_tokens: int) -> None:
            nonlocal token_ids
            for _ in range(num_tokens):
                token_ids = likeliest(self.step(token_ids, past_key_values=cache, use_cache=True).logits[:, -1])

        yield write

    def filled_cache(self, num_rows: int, position: int, room: int) -> DynamicCache | StaticCache:
        config = self._config
        cache = (
            StaticCache(config=config, max_cache_len=position + room)
            if self._is_static
            else DynamicCache(config=config)
        )
        shape = (num_rows, config.num_key_value_heads, position, config.head_dim)
        for layer in range(config.num_hidden_layers):
            cache.update(torch.randn(shape), torch.randn(shape), layer)
        return cache


def contenders(config: AtlasConfig, num_rows: int) -> list[Contender]:
    assert config.attention is not None
    grouped = config.attention.num_heads // llama_shape(config, 4)["num_key_value_heads"]
    return [
        Llama("llama", "cache that grows, fused attention", config, is_static=False),
        Llama("llama-compiled", "cache of fixed size, compiled step", config, is_static=True, is_compiled=True),
        Llama("llama-eager", "cache of fixed size, plain attention", config, is_static=True, attention="eager"),
        Llama(
            "llama-grouped",
            f"cache of fixed size, plain attention, {grouped} heads to a key",
            config,
            is_static=True,
            attention="eager",
            heads_per_key=grouped,
        ),
    ]
