"""Times our side and each peer in turns, one pair after the other, and prints each row as soon as it is known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import torch

from bench.clock import seconds_in_turns
from bench.peers.contender import Contender, Phase
from bench.peers.rows import Measurement, Row


class Turns:
    """measurements: all so far. peers: the contenders of each package, with our side's vocabulary."""

    def __init__(
        self,
        ours: Contender,
        peers: Mapping[str, Sequence[Contender]],
        vocab_size: int,
        num_turns: int,
        num_decode_tokens: int,
    ) -> None:
        self.measurements: list[Measurement] = []
        self._ours = ours
        self._pairs = [(package, peer) for package, contenders in peers.items() for peer in contenders]
        self._vocab_size = vocab_size
        self._num_turns = num_turns
        self._num_decode_tokens = num_decode_tokens

    def prefill(self, num_rows: int, length: int) -> None:
        """Of every peer that takes part at this length."""
        token_ids = torch.randint(self._vocab_size, (num_rows, length))
        for package, peer in self._taking_part("prefill", length):
            seconds, peer_seconds = seconds_in_turns(
                [partial(self._ours.prefill, token_ids), partial(peer.prefill, token_ids)], self._num_turns
            )
            name = peer.description.name
            self._add(Measurement(package, name, "prefill", num_rows, length, length, seconds, peer_seconds))

    def decode(self, num_rows: int, position: int) -> None:
        """Of every peer that takes part at this position. Each turn goes on where the last one ended."""
        num_tokens = self._num_decode_tokens
        pairs = list(self._taking_part("decode", position))
        # One more turn than is timed goes before them.
        room = num_tokens * (self._num_turns + 1)
        with self._ours.writing(num_rows, position, room * len(pairs)) as write:
            for package, peer in pairs:
                with peer.writing(num_rows, position, room) as peer_write:
                    seconds, peer_seconds = seconds_in_turns(
                        [partial(write, num_tokens), partial(peer_write, num_tokens)], self._num_turns
                    )
                name = peer.description.name
                self._add(Measurement(package, name, "decode", num_rows, position, num_tokens, seconds, peer_seconds))

    def _taking_part(self, phase: Phase, length: int) -> Iterator[tuple[str, Contender]]:
        for package, peer in self._pairs:
            described = peer.description
            if phase in described.phases and (described.max_length is None or length <= described.max_length):
                yield package, peer

    def _add(self, measurement: Measurement) -> None:
        self.measurements.append(measurement)
        print(Row.of(measurement), flush=True)
