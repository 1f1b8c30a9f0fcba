"""One session of a bench, saved and loaded through a store as the server does it, encoding and decoding included."""

from __future__ import annotations

import time

import torch

from atlas_model.config import AtlasConfig
from atlas_model.state import State, state_spec
from engine.sequence import SequenceState
from engine.sessions.storage import PART_NUM_BYTES
from engine.snapshots.codecs import Codec
from engine.snapshots.snapshot import SessionRecord, coded_record, decode_snapshot, encode_snapshot
from engine.stores.base import Head, NewGeneration, SessionKey, Store, new_generation_id


class StoredSession:
    """`extra` is stored with every generation, as the answers of the last turns are."""

    def __init__(
        self,
        store: Store,
        session_id: str,
        config: AtlasConfig,
        fingerprint: str,
        state: SequenceState,
        extra: bytes,
        codec: Codec = Codec.NONE,
    ) -> None:
        self.key = SessionKey("bench", session_id)
        self.head: Head | None = None
        self._store = store
        self._config = config
        self._fingerprint = fingerprint
        self._record = SessionRecord(state=state, created=time.time())
        self._extra = extra
        self._codec = codec

    def save(self) -> Head:
        record = coded_record(self._record, self._config, self._codec)
        snapshot = encode_snapshot(record, self._fingerprint, PART_NUM_BYTES, self._codec)
        now = time.time()
        new = NewGeneration(
            generation=new_generation_id(),
            parts=snapshot.parts,
            digest=snapshot.digest,
            position=self._record.state.position,
            created=now,
            updated=now,
            extra=self._extra,
        )
        self.head = self._store.commit(self.key, self.head, new)
        return self.head

    def load(self) -> SessionRecord:
        return load_session(self._store, self.key, self._config, self._fingerprint)


def load_session(store: Store, key: SessionKey, config: AtlasConfig, fingerprint: str) -> SessionRecord:
    head, parts = store.load(key)
    return decode_snapshot(parts, config, fingerprint, head.digest)


def random_state(config: AtlasConfig) -> SequenceState:
    """Random numbers in every tensor: what a state weighs and no more."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randn(1, *each.shape, generator=generator, dtype=torch.float32).to(each.dtype)
        for name, each in state_spec(config).items()
    }
    tensors["position"] = torch.tensor([1_000])
    return SequenceState(State.from_named_tensors(config, tensors), bytes(16))
