"""How long a committed session takes to go on from the device, from the host and from a local store."""

from __future__ import annotations

from atlas_model.checkpoint import load_checkpoint
from bench.cost_resume import measure_resume
from bench.gpu.parts import Notes, Settings


def measure(settings: Settings, notes: Notes) -> None:
    checkpoint = load_checkpoint(settings.model, settings.device)
    cost = measure_resume(checkpoint, 5 * settings.num_rounds, device=settings.device)
    notes.figure("from the device, seconds", cost.device_seconds)
    notes.figure("from the host, seconds", cost.host_seconds)
    notes.figure("from the local store, seconds", cost.store_seconds)
