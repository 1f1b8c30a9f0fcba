"""One text of ten million tokens, read in chunk form: does the state stay finite, and how fast is it?

It ends early when its time is up, and says how far it has come.
"""

from __future__ import annotations

import random
import time
from itertools import islice

import torch

from atlas_model.checkpoint import load_checkpoint
from bench.gpu.parts import Notes, Settings
from bench.workload import open_prose

CALL_NUM_TOKENS = 8192
# Of prose that is made, and then read again and again: making it takes longer than reading it.
TILE_NUM_TOKENS = 32 * CALL_NUM_TOKENS
# Of its time: the rest is for the last call, which is not interrupted, and for what is told.
SHARE_FOR_READING = 0.9


@torch.inference_mode()
def measure(settings: Settings, notes: Notes) -> None:
    deadline = time.monotonic() + SHARE_FOR_READING * settings.seconds
    device = torch.device(settings.device)
    checkpoint = load_checkpoint(settings.model, device)
    model = checkpoint.model
    sentences = open_prose(None).passage(random.Random(settings.seed))
    tile_num_tokens = min(TILE_NUM_TOKENS, settings.long_num_tokens)
    prose = (token_id for sentence in sentences for token_id in checkpoint.tokenizer.encode(sentence.text + " "))
    tile = torch.tensor([list(islice(prose, tile_num_tokens))], device=device)
    state, num_read, began = model.initial_state(1), 0, time.monotonic()
    while num_read < settings.long_num_tokens and time.monotonic() < deadline:
        start = num_read % tile_num_tokens
        stop = min(start + CALL_NUM_TOKENS, tile_num_tokens, start + settings.long_num_tokens - num_read)
        _, state, _ = model.hidden(tile[:, start:stop], state)
        num_read += stop - start
        # Awaited, so that the clock above does not run ahead of the device.
        norms = torch.stack([torch.linalg.vector_norm(each.double()) for each in state.named_tensors().values()])
        is_finite = bool(norms.isfinite().all())
        seconds = time.monotonic() - began
        notes.figure("tokens read", num_read)
        notes.figure("tokens a second", num_read / seconds)
        if not is_finite:
            break
    notes.figure("all tokens were read", "yes" if num_read == settings.long_num_tokens else "no, its time was up")
    notes.check("tensors of the state that are not finite", int((~norms.isfinite()).sum()), 0)
