"""What a caller may ask of one generation: its length, its ends and its randomness.

Checked where it is built, so that every refusal comes before anything runs; nothing here is accepted and then ignored.
"""

import math
from dataclasses import dataclass

from engine.errors import InvalidRequest, InvalidUnicode

MAX_NUM_STOPS = 16
MAX_STOP_NUM_BYTES = 1024


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Raises InvalidRequest, whose `param` names the field, when a value is out of its range.

    temperature: 0 takes the most likely token; otherwise logits are divided by it.
    top_k, top_p: keep the k most likely tokens, then the fewest of them that hold `top_p` of the mass.
    seed: None draws one when the sequence is added. Draws depend on the seed and the position alone.
    stop: strings that end the answer and do not appear in it.
    ignore_eos: the model cannot end its message: `<end>` is never sampled.
    min_tokens: no end, by `<end>` or by a stop string, before so many tokens.
    """

    max_tokens: int = 512
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    min_tokens: int = 0

    def __post_init__(self) -> None:
        _require(self.max_tokens >= 1, "max_tokens", "must be at least 1")
        _require(math.isfinite(self.temperature) and self.temperature >= 0, "temperature", "must be 0 or more")
        _require(0 < self.top_p <= 1, "top_p", "must be above 0 and at most 1")
        _require(self.top_k is None or self.top_k >= 1, "top_k", "must be at least 1")
        _require(self.seed is None or -(2**63) <= self.seed < 2**64, "seed", "must fit in 64 bits")
        _require(0 <= self.min_tokens <= self.max_tokens, "min_tokens", "must be between 0 and max_tokens")
        _require(len(self.stop) <= MAX_NUM_STOPS, "stop", f"must be at most {MAX_NUM_STOPS} strings")
        for stop in self.stop:
            _require(stop != "", "stop", "must not hold an empty string")
            try:
                encoded = stop.encode("utf-8")
            except UnicodeEncodeError as error:
                raise InvalidUnicode("stop holds a lone surrogate", param="stop") from error
            _require(len(encoded) <= MAX_STOP_NUM_BYTES, "stop", f"must be at most {MAX_STOP_NUM_BYTES} bytes each")

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0


def _require(condition: bool, param: str, what: str) -> None:
    if not condition:
        raise InvalidRequest(f"{param} {what}", param=param)
