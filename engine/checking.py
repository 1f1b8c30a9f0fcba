"""What of a sequence no model of this size can do, said before it is queued. Pure."""

from collections.abc import Collection

from engine.errors import InvalidRequest
from engine.sampling.sampling_params import MAX_NUM_LOGPROBS
from engine.sequence import Sequence


def check_sequence(sequence: Sequence, vocab_size: int) -> None:
    """Raises InvalidRequest for ids that the model does not have, and for more numbers about a prompt than are kept for
    it."""
    token_ids, params = sequence.prompt_token_ids, sequence.params
    _check_ids(token_ids, vocab_size, None)
    if params is not None:
        _check_ids(dict(params.logit_bias), vocab_size, "logit_bias")
        _check_ids(params.stop_token_ids, vocab_size, "stop_token_ids")
    num_told = 0 if sequence.prompt_logprobs is None else len(token_ids) * (1 + sequence.prompt_logprobs)
    if num_told > MAX_NUM_LOGPROBS:
        what = f"logprobs of this prompt would be {num_told} numbers, of at most {MAX_NUM_LOGPROBS}"
        raise InvalidRequest(what, param="logprobs")


def _check_ids(token_ids: Collection[int], vocab_size: int, param: str | None) -> None:
    if token_ids and (min(token_ids) < 0 or max(token_ids) >= vocab_size):
        raise InvalidRequest("a token id is out of the vocabulary", param=param)
