"""What no model of this size can do, and no server should, said before it is queued. Pure."""

from collections.abc import Collection, Iterable

from engine.errors import InvalidRequest
from engine.sampling.sampling_params import MAX_NUM_LOGPROBS, MAX_NUM_LOGPROBS_TOGETHER, SamplingParams
from engine.sequence import Sequence


def check_sequence(sequence: Sequence, vocab_size: int) -> None:
    """Raises InvalidRequest for ids that the model does not have, and for more numbers about a prompt than are kept for
    it."""
    token_ids, params = sequence.prompt_token_ids, sequence.params
    _check_ids(token_ids, vocab_size, None)
    if params is not None:
        _check_ids(dict(params.logit_bias), vocab_size, "logit_bias")
        _check_ids(params.stop_token_ids, vocab_size, "stop_token_ids")
    num_told = _num_told(len(token_ids), sequence.prompt_logprobs)
    if num_told > MAX_NUM_LOGPROBS:
        what = f"logprobs of this prompt would be {num_told} numbers, of at most {MAX_NUM_LOGPROBS}"
        raise InvalidRequest(what, param="logprobs")


def check_together(prompts: Iterable[Sequence], params: SamplingParams, num_choices: int) -> None:
    """Raises InvalidRequest for more numbers than one request is told about its prompts and the answers to each."""
    of_answer = _num_told(params.max_tokens, params.logprobs)
    of_prompts = (_num_told(len(each.prompt_token_ids), each.prompt_logprobs) for each in prompts)
    num_told = num_choices * sum(of_prompt + of_answer for of_prompt in of_prompts)
    if num_told > MAX_NUM_LOGPROBS_TOGETHER:
        what = f"logprobs of this request could be {num_told} numbers, of at most {MAX_NUM_LOGPROBS_TOGETHER}"
        raise InvalidRequest(what, param="logprobs")


def _num_told(num_tokens: int, num_top: int | None) -> int:
    return 0 if num_top is None else num_tokens * (1 + num_top)


def _check_ids(token_ids: Collection[int], vocab_size: int, param: str | None) -> None:
    if token_ids and (min(token_ids) < 0 or max(token_ids) >= vocab_size):
        raise InvalidRequest(f"a token id is out of the vocabulary, which has {vocab_size}", param=param)
