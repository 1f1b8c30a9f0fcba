"""Several answers to one prompt: the prompt is read once, and every choice goes on from the state that it leaves. Pure.

All but the prompt's last token is the shared part; each choice feeds the last one itself and samples from there. The
first choice is what the prompt alone would be answered with; the others have seeds of their own, and leave no state.
"""

from dataclasses import replace

from engine.sampling.sampler import choice_seed
from engine.sampling.sampling_params import SamplingParams
from engine.sequence import Sequence, SequenceOutput, SequenceState


def shared_part(prompt: Sequence) -> Sequence:
    """What is fed once. The prompt must be of two tokens at least."""
    num_pending = 0 if prompt.state is None else len(prompt.state.pending_token_ids)
    token_ids = prompt.prompt_token_ids[num_pending:-1]
    return Sequence(
        prompt.sequence_id,
        token_ids,
        state=prompt.state,
        shares_state=prompt.shares_state,
        prompt_logprobs=prompt.prompt_logprobs,
        next_prompt_token_id=prompt.prompt_token_ids[-1],
        tenant=prompt.tenant,
        priority=prompt.priority,
    )


def choices_from(prompt: Sequence, state: SequenceState, num_choices: int) -> list[Sequence]:
    """The choices, in order; `state` is what feeding the shared part has left."""
    assert prompt.params is not None
    return [
        Sequence(
            f"{prompt.sequence_id}-{choice}",
            prompt.prompt_token_ids[-1:],
            _params_of(prompt.params, choice),
            state,
            shares_state=True,
            leaves_state=prompt.leaves_state and choice == 0,
            opening=prompt.opening,
            earlier_token_ids=prompt.prompt_token_ids[:-1],
            tenant=prompt.tenant,
            priority=prompt.priority,
        )
        for choice in range(num_choices)
    ]


def as_if_alone(output: SequenceOutput, shared: SequenceOutput) -> SequenceOutput:
    """A choice's output, told as if the choice had read the whole prompt itself."""
    assert shared.fed_token_ids is not None
    return replace(
        output,
        num_prompt_tokens=shared.num_prompt_tokens + output.num_prompt_tokens,
        prompt_logprobs=shared.prompt_logprobs,
        timings=shared.timings + output.timings,
        resume=shared.resume,
        fed_token_ids=None if output.fed_token_ids is None else shared.fed_token_ids + output.fed_token_ids,
    )


def _params_of(params: SamplingParams, choice: int) -> SamplingParams:
    seed = None if params.seed is None else choice_seed(params.seed, choice)
    return replace(params, seed=seed, prompt_logprobs=None)
