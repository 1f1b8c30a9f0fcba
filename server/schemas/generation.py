"""What a request may ask of an answer, whatever the answer is to: its length and ends, its randomness, its session.

What a sampling value may be is decided by `SamplingParams`.
"""

from typing import Annotated

from pydantic import Field, StringConstraints

from engine.errors import InvalidRequest
from engine.sampling.sampling_params import SamplingParams
from server.input.strict_json import canonical
from server.schemas.base import Body, Metadata

DEFAULT_MAX_TOKENS = 512
MAX_NUM_CHOICES = 16

# JSON's names are strings.
TokenName = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,9}$")]


class StreamOptions(Body):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class GenerationRequest(Body):
    """The fields that all kinds of generating requests have."""

    model: str | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Annotated[int, Field(lt=2**63)] | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[TokenName, float] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    user: Annotated[str, StringConstraints(max_length=512)] | None = None
    metadata: Metadata | None = None
    session_id: str | None = None
    read_only: bool | None = None

    @property
    def num_choices(self) -> int:
        """To each prompt."""
        return 1

    @property
    def num_answers(self) -> int:
        """To all prompts."""
        return self.num_choices

    @property
    def may_answer_nothing(self) -> bool:
        """Whether no tokens at all can be asked for."""
        return False

    @property
    def num_top_logprobs(self) -> int | None:
        """How many alternatives are told with the log-probability of each token; None tells nothing."""
        return None

    @property
    def num_top_prompt_logprobs(self) -> int | None:
        """The same for the prompt's tokens."""
        return None

    def to_sampling(self, max_tokens_limit: int) -> SamplingParams:
        """Raises InvalidRequest naming the field."""
        return SamplingParams(
            max_tokens=self._max_tokens_within(max_tokens_limit),
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            # 0 and -1 are how vLLM's clients say "all of them".
            top_k=None if self.top_k in (None, 0, -1) else self.top_k,
            min_p=self.min_p or 0.0,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            repetition_penalty=1.0 if self.repetition_penalty is None else self.repetition_penalty,
            logit_bias=tuple((int(name), bias) for name, bias in (self.logit_bias or {}).items()),
            seed=self.seed,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            ignore_eos=bool(self.ignore_eos),
            min_tokens=self.min_tokens or 0,
            logprobs=self.num_top_logprobs,
            prompt_logprobs=self.num_top_prompt_logprobs,
        )

    def digest_source(self) -> bytes:
        """What makes this request what it is; how the answer travels is no part of it."""
        return canonical(self.model_dump(exclude={"stream", "stream_options"}, exclude_none=True))

    def _max_tokens_within(self, limit: int) -> int:
        param, value = self._max_tokens()
        if value is None:
            return min(DEFAULT_MAX_TOKENS, limit)
        least = 0 if self.may_answer_nothing else 1
        if not least <= value <= limit:
            raise InvalidRequest(f"{param} is between {least} and {limit} here", param=param)
        return value

    def _max_tokens(self) -> tuple[str, int | None]:
        """The limit that is asked for, after the field that asks for it."""
        raise NotImplementedError


class ChoicesRequest(GenerationRequest):
    """The fields of requests that are answered with choices."""

    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    n: Annotated[int, Field(ge=1, le=MAX_NUM_CHOICES)] | None = None

    @property
    def includes_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def has_running_usage(self) -> bool:
        """As vLLM's clients ask for it, which is nothing without `include_usage`."""
        return (
            self.includes_usage and self.stream_options is not None and bool(self.stream_options.continuous_usage_stats)
        )

    @property
    def num_choices(self) -> int:
        return self.n or 1

    def _max_tokens(self) -> tuple[str, int | None]:
        return "max_tokens", self.max_tokens
