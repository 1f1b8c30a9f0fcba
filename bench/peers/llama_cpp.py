"""Recurrent models in llama.cpp, through llama-cpp-python's low-level functions: its own batches, no text, no copies.

Each of `recurrent_shapes` with weights of 32 and of 16 bits; states and sums are float32 in all. Batch sizes are the
library's defaults; a prompt asks for the logits of its last token alone.
"""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import llama_cpp
import torch
from torch import Tensor

from atlas_model.config import AtlasConfig
from bench.clock import seconds_in_turns
from bench.peers.contender import Contender, Description, Size, Write, likeliest
from bench.peers.gguf_file import write_gguf
from bench.peers.recurrent_shapes import RecurrentShape, mamba_shape, rwkv7_shape

TRIAL_NUM_TOKENS = 256
TRIAL_NUM_TURNS = 5
_RowIds = ctypes.POINTER(llama_cpp.llama_seq_id)
# What the library says while it loads would stand among the rows.
_ignore = llama_cpp.llama_log_callback(lambda level, text, data: None)


class LlamaCppError(RuntimeError):
    """The library refused a model or a batch."""


class LlamaCpp:
    def __init__(self, name: str, shape: RecurrentShape, dtype: torch.dtype, num_rows: int) -> None:
        llama_cpp.llama_log_set(_ignore, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.gguf"
            write_gguf(path, shape, dtype)
            params = llama_cpp.llama_model_default_params()
            params.use_mmap = False
            self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise LlamaCppError(f"the loader refused {name}")
        self._context = self._open_context(num_rows)
        self._max_num_tokens = llama_cpp.llama_n_batch(self._context)
        self._row_ids = [_array(llama_cpp.llama_seq_id, [row]) for row in range(num_rows)]
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._vocab_size = shape.tensors["token_embd.weight"].shape[0]
        size = Size(shape.num_parameters, shape.num_parameters_per_token)
        package = f"llama-cpp-python {metadata.version('llama-cpp-python')}"
        bits = "float16" if dtype == torch.float16 else "float32"
        decode, prefill = self._choose_num_threads()
        settings = f"{bits} weights, threads that were fastest in a trial: {prefill} in prefill, {decode} in decode"
        self.description = Description(name, package, settings, size)

    def _open_context(self, num_rows: int) -> Any:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = 2**20
        params.n_seq_max = num_rows
        context = llama_cpp.llama_init_from_model(self._model, params)
        if not context:
            raise LlamaCppError("no context could be made")
        return context

    def _choose_num_threads(self) -> tuple[int, int]:
        """For decoding and for prefill, each up to torch's number: for a model this small, more may well be slower."""
        counts = range(1, torch.get_num_threads() + 1)
        prompt = torch.randint(self._vocab_size, (1, TRIAL_NUM_TOKENS))
        decode_seconds, prefill_seconds = [], []
        with self.writing(1, 1, TRIAL_NUM_TOKENS * len(counts)) as write:
            for count in counts:
                llama_cpp.llama_set_n_threads(self._context, count, count)
                decode_seconds.append(_fastest_seconds(partial(write, TRIAL_NUM_TOKENS // 8)))
        for count in counts:
            llama_cpp.llama_set_n_threads(self._context, count, count)
            prefill_seconds.append(_fastest_seconds(partial(self.prefill, prompt)))
        decode = counts[decode_seconds.index(min(decode_seconds))]
        prefill = counts[prefill_seconds.index(min(prefill_seconds))]
        llama_cpp.llama_set_n_threads(self._context, decode, prefill)
        return decode, prefill

    def prefill(self, token_ids: Tensor) -> None:
        self.read(token_ids)

    @contextmanager
    def writing(self, num_rows: int, position: int, room: int) -> Iterator[Write]:
        token_ids = self.read(torch.randint(self._vocab_size, (num_rows, position)))

        def write(num_tokens: int) -> None:
            nonlocal token_ids, position
            for _ in range(num_tokens):
                token_ids = self.feed(token_ids, position)
                position += 1

        yield write

    def num_parameters(self) -> int:
        """As the library counts them."""
        return int(llama_cpp.llama_model_n_params(self._model))

    def state_bytes(self) -> bytes:
        """The first row's state, as the library would save it."""
        num_bytes = llama_cpp.llama_state_seq_get_size(self._context, 0)
        buffer = (ctypes.c_uint8 * num_bytes)()
        llama_cpp.llama_state_seq_get_data(self._context, buffer, num_bytes, 0)
        return bytes(buffer)

    def read(self, token_ids: Tensor) -> Tensor:
        """From nothing; in batches of as many tokens of each row as the library takes at once."""
        llama_cpp.llama_memory_clear(self._memory, True)
        num_tokens = max(1, self._max_num_tokens // len(token_ids))
        starts = range(0, token_ids.shape[1], num_tokens)
        for start in starts:
            chosen = self.feed(token_ids[:, start : start + num_tokens], start, wants_logits=start == starts[-1])
        return chosen

    def feed(self, token_ids: Tensor, position: int, wants_logits: bool = True) -> Tensor:
        """Feeds int64 [B, T] -> the likeliest next ids [B, 1]; without logits, the ids that were fed last."""
        num_rows, num_tokens = token_ids.shape
        places = range(position, position + num_tokens)
        status = llama_cpp.llama_decode(
            self._context,
            llama_cpp.llama_batch(
                n_tokens=num_rows * num_tokens,
                token=_array(llama_cpp.llama_token, token_ids.flatten().tolist()),
                pos=_array(llama_cpp.llama_pos, [*places] * num_rows),
                n_seq_id=_array(ctypes.c_int32, [1] * (num_rows * num_tokens)),
                seq_id=_array(_RowIds, [row_id for row_id in self._row_ids[:num_rows] for _ in places]),
                logits=_array(ctypes.c_int8, ([0] * (num_tokens - 1) + [int(wants_logits)]) * num_rows),
            ),
        )
        if status != 0:
            raise LlamaCppError(f"llama_decode: status {status}")
        if not wants_logits:
            return token_ids[:, -1:]
        last = [(row + 1) * num_tokens - 1 for row in range(num_rows)]
        return likeliest(torch.stack([self._logits(index) for index in last]))

    def _logits(self, index: int) -> Tensor:
        pointer = llama_cpp.llama_get_logits_ith(self._context, index)
        address = ctypes.cast(pointer, ctypes.c_void_p).value
        assert address is not None
        return torch.frombuffer((ctypes.c_float * self._vocab_size).from_address(address), dtype=torch.float32)


def _fastest_seconds(call: Callable[[], object]) -> float:
    (seconds,) = seconds_in_turns([call], TRIAL_NUM_TURNS)
    return min(seconds)


def _array(kind: Any, values: Sequence[Any]) -> Any:
    return (kind * len(values))(*values)


def contenders(config: AtlasConfig, num_rows: int) -> list[Contender]:
    return [
        LlamaCpp(f"{shape.architecture}-{bits}", shape, dtype, num_rows)
        for shape in (rwkv7_shape(config), mamba_shape(config))
        for bits, dtype in (("f32", torch.float32), ("f16", torch.float16))
    ]
