"""Decode steps and prefill pieces beside the machine's limit, as `python -m bench roofline` measures them."""

from __future__ import annotations

import torch

from atlas_model.checkpoint import load_checkpoint
from bench.engine.machine import Machine
from bench.engine.roofline_steps import StepCost, measure_decode, measure_prefill
from bench.engine.stepper import chunk_period
from bench.gpu.parts import Notes, Settings

# More than a device's cache holds.
BUFFER_NUM_BYTES = 2**28
PIECE_ROWS = (1, 4)
PIECE_NUM_TOKENS = 1024


@torch.inference_mode()
def measure(settings: Settings, notes: Notes) -> None:
    device = torch.device(settings.device)
    model = load_checkpoint(settings.model, device).model
    machine = Machine(device, settings.num_rounds, BUFFER_NUM_BYTES)
    for name, rate in machine.bandwidth.items():
        notes.figure(f"memory, {name}, bytes a second", rate)
    for dtype in (torch.float32, torch.bfloat16):
        notes.figure(f"products of {dtype}, operations a second", machine.product_rate(dtype))
    for batch_size in settings.batch_sizes:
        cost = measure_decode(model, batch_size, machine, is_aligned=False)
        _note(notes, f"decode, {batch_size} rows", cost)
    num_tokens = PIECE_NUM_TOKENS // chunk_period(model) * chunk_period(model)
    for rows in PIECE_ROWS:
        cost = measure_prefill(model, rows, num_tokens, machine, is_aligned=True)
        _note(notes, f"prefill, {rows} rows of {num_tokens:,} tokens", cost)


def _note(notes: Notes, name: str, cost: StepCost) -> None:
    notes.figure(f"{name}, seconds", cost.seconds)
    notes.figure(f"{name}, times its limit", cost.factor)
    notes.figure(f"{name}, share of products in its limit", cost.products_seconds / cost.limit_seconds)
