"""Runs one turn: text as it comes, then the answer, which is only told once it is committed."""

import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from engine.sequence import FinishReason, SequenceOutput
from engine.sessions import Answer, SessionManager, StoredTurn, TurnRequest, Usage
from server.frames.frame import TELLING_NUM_BYTES, Frame, Said
from server.input.bodies import off_loop_if_large
from server.metrics import Metrics
from server.middleware import RequestContext


@dataclass(frozen=True, slots=True)
class Opened:
    """The turn has its session, the one that it writes to if it does; nothing has been said yet."""

    base_version: int
    session_id: str | None


@dataclass(frozen=True, slots=True)
class Completed:
    """The whole answer, committed if the turn writes. `is_replay` when it was committed by an earlier request.
    num_told: tokens whose log-probabilities it has."""

    body: Mapping[str, Any]
    is_replay: bool
    num_told: int = 0


AnswerEvent = Opened | Said | Completed


async def answer(
    sessions: SessionManager, request: TurnRequest, frame: Frame, metrics: Metrics, context: RequestContext
) -> AsyncGenerator[AnswerEvent, None]:
    """Opened, then Said, then Completed. Closing it early takes the turn back, unless its commit has begun.

    Raises RateLimited and RequestTooCostly, before anything is said, beside what a turn does. Whatever ends it, the
    request's line in the log has what was read and written for it.
    """
    watch = _Stopwatch(metrics, context)
    outcome = FinishReason.ABORT
    # The choices of which something was said.
    told: set[int] = set()
    try:
        context.allowance.check_tokens()
        async with sessions.turn(request) as turn:
            if isinstance(turn, StoredTurn):
                outcome = FinishReason.STOP
                yield Opened(turn.version - 1, turn.response["session"]["id"])
                yield Completed(turn.response, is_replay=True)
                return
            frame.opened(turn.session_id, turn.base_version + 1)
            max_num_generated = request.sampling.max_tokens * request.num_answers
            with context.allowance.reserved(turn.num_new_tokens + max_num_generated) as meter:
                yield Opened(turn.base_version, turn.session_id)
                meter.num_tokens = turn.num_new_tokens
                try:
                    async with aclosing(turn.outputs()) as outputs:
                        async for choice, output in outputs:
                            watch.saw(choice, output)
                            meter.num_tokens += len(output.token_ids)
                            if output.text or output.logprobs:
                                prompt = None
                                if choice not in told:
                                    told.add(choice)
                                    prompt = turn.prompt(choice)
                                running_usage = turn.usage if frame.has_running_usage else None
                                yield Said(choice, output.text, output.logprobs, prompt, running_usage)
                finally:
                    watch.used(turn.usage)
            answers, usage, session = turn.answers, turn.usage, turn.session()
            num_told = _num_told(answers)
            body = await off_loop_if_large(num_told * TELLING_NUM_BYTES, lambda: frame.body(answers, usage, session))
            await turn.commit(body)
            outcome = answers[0].finish_reason
        yield Completed(body, is_replay=False, num_told=num_told)
    except Exception:
        outcome = FinishReason.ERROR
        raise
    finally:
        watch.ended(outcome)


def _num_told(answers: Sequence[Answer]) -> int:
    prompts = (answer.prompt for answer in answers if answer.prompt is not None)
    return sum(len(answer.logprobs) for answer in answers) + sum(len(prompt.logprobs) for prompt in prompts)


class _Stopwatch:
    """Turns the outputs of a turn into the latencies that clients see. A request has one first token, and one time in
    the queue, in prefill and in decode: its first choice's; every choice has gaps of its own."""

    def __init__(self, metrics: Metrics, context: RequestContext) -> None:
        self._metrics = metrics
        self._note = context.note
        self._arrived = context.started
        # Of each choice, when its latest token came.
        self._previous: dict[int, float] = {}

    def saw(self, choice: int, output: SequenceOutput) -> None:
        now = time.monotonic()
        if output.token_ids:
            if not self._previous:
                self._metrics.first_token_seconds.observe(now - self._arrived)
                self._note["first_token_seconds"] = round(now - self._arrived, 6)
                self._note["queue_seconds"] = round(output.timings.queue_seconds, 6)
            if choice in self._previous:
                self._metrics.inter_token_seconds.observe(now - self._previous[choice])
            self._previous[choice] = now
        if output.finish_reason is not None and choice == 0:
            self._metrics.queue_seconds.observe(output.timings.queue_seconds)
            self._metrics.prefill_seconds.observe(output.timings.prefill_seconds)
            self._metrics.decode_seconds.observe(output.timings.decode_seconds)

    def used(self, usage: Usage) -> None:
        self._note["prompt_tokens"] = usage.num_prompt_tokens
        self._note["cached_tokens"] = usage.num_cached_tokens
        self._note["completion_tokens"] = usage.num_completion_tokens

    def ended(self, outcome: FinishReason) -> None:
        self._note["finish_reason"] = outcome.value
        self._metrics.request_seconds.observe(time.monotonic() - self._arrived)
        self._metrics.finished(outcome.value)
