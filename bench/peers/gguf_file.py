"""A model of random weights as a GGUF file, which is all that llama.cpp loads. It has a vocabulary of bare ids."""

from __future__ import annotations

from pathlib import Path

import torch
from gguf import GGUFWriter

from bench.peers.recurrent_shapes import RecurrentShape


def write_gguf(path: Path, shape: RecurrentShape, product_dtype: torch.dtype) -> None:
    """product_dtype: of the matrices that are multiplied by, float32 or float16; everything else is float32."""
    torch.manual_seed(0)
    writer = GGUFWriter(path, shape.architecture)
    writer.add_tokenizer_model("no_vocab")
    for name, value in shape.values.items():
        key = f"{shape.architecture}.{name}"
        if isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            writer.add_float32(key, value)
    for name, tensor in shape.tensors.items():
        numbers = tensor.draw(tensor.shape)
        dtype = product_dtype if tensor.is_product else torch.float32
        writer.add_tensor(name, numbers.to(dtype).contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
