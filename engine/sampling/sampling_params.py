"""What a caller may ask of one generation: its length, its ends, its randomness, and what is told about it.

Checked where it is built, so that every refusal comes before anything runs; nothing here is accepted and then ignored.
Whether the model has the token ids that are named here is for the core to say.
"""

import math
from dataclasses import dataclass

from engine.errors import InvalidRequest, InvalidUnicode

MAX_NUM_STOPS = 16
MAX_STOP_NUM_BYTES = 1024
MAX_NUM_STOP_TOKENS = 64
MAX_NUM_BIASES = 1024
MAX_BIAS = 100.0
MAX_PENALTY = 2.0
MAX_REPETITION_PENALTY = 100.0
MAX_NUM_TOP_LOGPROBS = 20
# What is told about one answer, or kept about one prompt: its tokens and their alternatives together.
MAX_NUM_LOGPROBS = 2**17
# The same about all answers and prompts of one request: a quarter of a gigabyte of them.
MAX_NUM_LOGPROBS_TOGETHER = 2**20


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Raises InvalidRequest, whose `param` names the field, when a value is out of its range.

    max_tokens: 0 reads the prompt and answers nothing.
    repetition_penalty: divides the positive logits, and multiplies the others, of the tokens that this call has fed or
        sampled (Keskar et al. 2019, CTRL). What lies in the memory has no ids, so it is not among them.
    presence_penalty, frequency_penalty: taken off the logit of every token of the answer so far, once, and as often as
        it occurs (OpenAI's formula).
    logit_bias: added to the logits of these tokens, after the penalties; one that writes nothing stays unsaid.
    temperature: 0 takes the most likely token; otherwise logits are divided by it.
    min_p, top_k, top_p: keep the tokens at least `min_p` times as likely as the likeliest, of them the k most likely,
        and of those the fewest that hold `top_p` of their mass.
    seed: None draws one when the sequence is added. Draws depend on the seed and the position alone.
    stop: strings that end the answer and do not appear in it.
    stop_token_ids: tokens that do.
    ignore_eos: the model cannot end its message: `<end>` is never sampled.
    min_tokens: no end, by `<end>`, a stop string or a stop token, before so many tokens.
    logprobs: None tells nothing; otherwise the log-probability of each token of the answer is told, and those of so
        many of the most likely tokens in its place. Before bias, penalties and temperature (`logprobs`).
    prompt_logprobs: the same for the tokens of the prompt.
    """

    max_tokens: int = 512
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        _require(self.max_tokens >= 0, "max_tokens", "must be 0 or more")
        _require(math.isfinite(self.temperature) and self.temperature >= 0, "temperature", "must be 0 or more")
        _require(0 < self.top_p <= 1, "top_p", "must be above 0 and at most 1")
        _require(self.top_k is None or self.top_k >= 1, "top_k", "must be at least 1")
        _require(0 <= self.min_p <= 1, "min_p", "must be between 0 and 1")
        for param in ("presence_penalty", "frequency_penalty"):
            _require(-MAX_PENALTY <= getattr(self, param) <= MAX_PENALTY, param, "must be between -2 and 2")
        is_bounded = 1 / MAX_REPETITION_PENALTY <= self.repetition_penalty <= MAX_REPETITION_PENALTY
        _require(is_bounded, "repetition_penalty", "must be between 0.01 and 100")
        _require(len(self.logit_bias) <= MAX_NUM_BIASES, "logit_bias", f"must be of at most {MAX_NUM_BIASES} tokens")
        are_bounded = all(-MAX_BIAS <= bias <= MAX_BIAS for _, bias in self.logit_bias)
        _require(are_bounded, "logit_bias", "must be between -100 and 100")
        num_biased = len({token_id for token_id, _ in self.logit_bias})
        _require(num_biased == len(self.logit_bias), "logit_bias", "must name each token once")
        _require(self.seed is None or -(2**63) <= self.seed < 2**64, "seed", "must fit in 64 bits")
        _require(0 <= self.min_tokens <= self.max_tokens, "min_tokens", "must be between 0 and max_tokens")
        for param in ("logprobs", "prompt_logprobs"):
            number = getattr(self, param)
            is_possible = number is None or 0 <= number <= MAX_NUM_TOP_LOGPROBS
            _require(is_possible, param, f"must be between 0 and {MAX_NUM_TOP_LOGPROBS}")
        num_told = 0 if self.logprobs is None else self.max_tokens * (1 + self.logprobs)
        _require(num_told <= MAX_NUM_LOGPROBS, "logprobs", f"times max_tokens must be at most {MAX_NUM_LOGPROBS}")
        are_few = len(self.stop_token_ids) <= MAX_NUM_STOP_TOKENS
        _require(are_few, "stop_token_ids", f"must be at most {MAX_NUM_STOP_TOKENS} tokens")
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

    @property
    def adjusts_logits(self) -> bool:
        """Whether it changes scores by which tokens they are."""
        has_penalty = self.presence_penalty != 0 or self.frequency_penalty != 0 or self.repetition_penalty != 1
        return has_penalty or bool(self.logit_bias)


def _require(condition: bool, param: str, what: str) -> None:
    if not condition:
        raise InvalidRequest(f"{param} {what}", param=param)
