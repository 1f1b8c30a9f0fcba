"""The engine's one thread, and the bridge between it and an event loop.

The thread owns the core and the device. The loop never touches a tensor: commands cross to the thread in one queue, and
after each step one call brings that step's outputs back. What a caller sees is `generate`, an async iterator with at
most one message per step, `generate_choices`, several of them as one, and `feed`. Leaving an iterator early aborts its
sequences; a thread that dies, or that `watch` finds hanging, ends every open one with EngineDead. Sessions, texts and
tokens are somebody else's.
"""

import asyncio
import logging
import sys
import threading
import traceback
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from functools import partial
from queue import Empty, SimpleQueue

import torch

from atlas_model.checkpoint import Checkpoint
from engine.choices import as_if_alone, choices_from, shared_part
from engine.config import MIN_STEP_TIMEOUT_SECONDS, EngineConfig
from engine.core import EngineCore
from engine.errors import Draining, EngineDead, InvalidRequest
from engine.failpoints import failpoint
from engine.mailbox import Mailbox
from engine.scheduling.places import Places
from engine.sequence import FinishReason, Sequence, SequenceOutput, SequenceState
from engine.telemetry import EngineStats
from engine.threads import default_num_threads

_logger = logging.getLogger(__name__)

# A thread without work looks so often for slots to zero.
IDLE_SECONDS = MIN_STEP_TIMEOUT_SECONDS / 2
WATCH_SECONDS = 0.5


class Engine:
    """Bound to the event loop that calls `start`; every method but `stats` and `is_alive` is called on that loop."""

    def __init__(self, checkpoint: Checkpoint, config: EngineConfig) -> None:
        self._config = config
        self._step_timeout_seconds = config.step_timeout_seconds or step_timeout_seconds(
            checkpoint.model.num_parameters, config.max_num_batched_tokens
        )
        self._core = EngineCore(checkpoint, config)
        self._stats = self._core.stats()
        self._inbox: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        # Where the outputs of a sequence go, until its last one has been delivered.
        self._streams: dict[str, Mailbox[SequenceOutput]] = {}
        # For the sequences that open iterators have, or may still add: no more than the core takes.
        self._places = Places(config.max_num_sequences + config.max_num_waiting, is_multi_tenant=config.is_multi_tenant)
        self._is_draining = False
        self._is_cut_short = False
        self._has_ended = False
        self._is_hanging = False
        # Of the thread: it goes on counting as long as it lives, with work or without.
        self._num_rounds = 0

    def start(self) -> None:
        """Starts the thread. Call it once, on the running loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    @property
    def config(self) -> EngineConfig:
        return self._config

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive() and not self._has_ended

    def stats(self) -> EngineStats:
        """The numbers after the latest step."""
        return self._stats

    async def watch(self) -> str:
        """Returns, in words, how the thread has ended: it died, or a step takes longer than `step_timeout_seconds`. By
        then whoever waited for it has been told.

        Counts the watcher's own rounds and no clock, so that the time for which the whole process was stopped (a
        debugger, a suspended machine) is not taken for a step's.
        """
        num_rounds, num_silent = self._num_rounds, 0
        while self.is_alive:
            await asyncio.sleep(WATCH_SECONDS)
            num_silent = 0 if self._num_rounds != num_rounds else num_silent + 1
            num_rounds = self._num_rounds
            if num_silent * WATCH_SECONDS > self._step_timeout_seconds:
                self._is_hanging = True
                _logger.error("the engine hangs in\n%s", self._stack())
                self._end()
                return f"a step of the engine has taken more than {self._step_timeout_seconds:.0f} s"
        return "the engine died"

    async def generate(self, sequence: Sequence) -> AsyncGenerator[SequenceOutput, None]:
        """Yields what each step produced for `sequence`; the last output has a `finish_reason`.

        Nothing runs before the first `anext`, which raises Draining, EngineDead, QueueFull or InvalidRequest when the
        sequence is not taken. Afterwards raises what ended the sequence, or EngineDead. Close the iterator
        (`contextlib.aclosing`) or cancel its task to abort: the slot is free within a step.
        """
        with self.places(sequence.tenant, 1):
            async with aclosing(self._run_all([sequence])) as outputs:
                async for output in outputs:
                    yield output

    async def generate_choices(
        self, prompts: list[Sequence], num_choices: int
    ) -> AsyncGenerator[tuple[int, SequenceOutput], None]:
        """As `generate`, for so many answers to each prompt, which is fed once: each output with its answer's number,
        those to the first prompt first. The caller holds `places` for them.

        The first answer to a prompt is what `generate` would give, and the only one of several that leaves a state;
        what fails one of them ends them all. More of them than slots take turns.
        """
        if num_choices == 1:
            numbers = {prompt.sequence_id: number for number, prompt in enumerate(prompts)}
            async with aclosing(self._run_all(prompts)) as outputs:
                async for output in outputs:
                    yield numbers[output.sequence_id], output
            return
        for prompt in prompts:
            self._core.check(prompt)
        shared: dict[str, SequenceOutput] = {}
        parts = [shared_part(prompt) for prompt in prompts]
        try:
            async with aclosing(self._run_all(parts)) as outputs:
                async for output in outputs:
                    shared[output.sequence_id] = output
            choices: list[Sequence] = []
            told: dict[str, tuple[int, SequenceOutput]] = {}
            for prompt in prompts:
                of_prompt = shared[prompt.sequence_id]
                assert of_prompt.state is not None
                for choice in choices_from(prompt, of_prompt.state, num_choices):
                    told[choice.sequence_id] = len(choices), of_prompt
                    choices.append(choice)
            async with aclosing(self._run_all(choices)) as outputs:
                async for output in outputs:
                    number, of_prompt = told[output.sequence_id]
                    yield number, as_if_alone(output, of_prompt)
        finally:
            for prompt, part in zip(prompts, parts, strict=True):
                prompt.mark_fed(len(part.fed_token_ids))
            for output in shared.values():
                if output.state is not None:
                    self.forget(output.state)

    async def feed(self, sequence: Sequence, *, has_begun: bool = False) -> SequenceOutput:
        """Feeds a sequence that has no sampling parameters; returns its last output, which holds the state.

        As `generate`, but one that goes on with what `has_begun` is never refused for want of a place: it waits.
        """
        assert sequence.params is None
        async with self._next_place(sequence.tenant, has_begun), aclosing(self._run_all([sequence])) as outputs:
            return [output async for output in outputs][-1]

    @contextmanager
    def places(self, tenant: str, num_places: int) -> Iterator[None]:
        """Room for so many sequences of this tenant at once, to be taken before anything is loaded for them.

        Raises QueueFull, Draining, EngineDead.
        """
        self._check_taking()
        with self._places.hold(tenant, num_places):
            yield

    def forget(self, state: SequenceState) -> None:
        """Nobody will start from this state: a slot that still has it is zeroed now, and not when it is needed."""
        self._inbox.put(partial(self._core.forget, state))

    async def drain(self, timeout_seconds: float) -> None:
        """Takes no more sequences and waits for the open ones. When the time is up, those that are writing end with
        `length` (and a state to commit) and the others with Draining."""
        self._is_draining = True
        self._places.dismiss(Draining("the server is shutting down"))
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._places.wait_until_all_free()
        except TimeoutError:
            self._is_cut_short = True
            self._inbox.put(self._core.cut_short)
            await self._places.wait_until_all_free()

    async def stop(self) -> None:
        """Ends the thread after the step that runs; whatever is still open gets EngineDead. Does not wait for
        one that hangs. Twice is safe."""
        self._is_draining = True
        if self._thread.is_alive():
            self._inbox.put(None)
            if not self._is_hanging:
                await asyncio.to_thread(self._thread.join)

    @asynccontextmanager
    async def _next_place(self, tenant: str, has_begun: bool) -> AsyncIterator[None]:
        self._check_taking()
        if not has_begun:
            with self._places.hold(tenant, 1):
                yield
            return
        async with self._places.wait(tenant):
            yield

    async def _run_all(self, sequences: list[Sequence]) -> AsyncGenerator[SequenceOutput, None]:
        """What the sequences have to say, as it comes, until all have ended. For callers who have places for them."""
        stream = self._open(sequences)
        num_open = len(sequences)
        try:
            while num_open:
                output = await stream.get()
                if output.error is not None:
                    raise output.error
                num_open -= output.finish_reason is not None
                yield output
        finally:
            for sequence in sequences:
                if self._streams.get(sequence.sequence_id) is stream:
                    del self._streams[sequence.sequence_id]
                    self._inbox.put(partial(self._core.abort, sequence.sequence_id))

    def _open(self, sequences: list[Sequence]) -> Mailbox[SequenceOutput]:
        self._check_running()
        if self._is_cut_short:
            raise Draining("the server is shutting down")
        for sequence in sequences:
            if sequence.sequence_id in self._streams:
                raise InvalidRequest(f"sequence {sequence.sequence_id} is already running")
            self._core.check(sequence)
        stream: Mailbox[SequenceOutput] = Mailbox()
        for sequence in sequences:
            self._streams[sequence.sequence_id] = stream
            self._inbox.put(partial(self._core.add, sequence))
        return stream

    def _check_taking(self) -> None:
        self._check_running()
        if self._is_draining:
            raise Draining("the server is shutting down")

    def _check_running(self) -> None:
        if self._has_ended or not self._thread.is_alive():
            raise EngineDead("the engine is not running")

    def _deliver(self, outputs: list[SequenceOutput]) -> None:
        for output in outputs:
            stream = self._streams.get(output.sequence_id)
            if stream is None:
                continue
            stream.put(output)
            if output.finish_reason is not None:
                del self._streams[output.sequence_id]

    def _end(self) -> None:
        self._has_ended = True
        self._places.dismiss(EngineDead("the engine has stopped"))
        reason = FinishReason.ERROR
        self._deliver(
            [
                SequenceOutput(sequence_id, finish_reason=reason, error=EngineDead("the engine has stopped"))
                for sequence_id in list(self._streams)
            ]
        )

    def _stack(self) -> str:
        """Where the thread is, for the log."""
        frame = sys._current_frames().get(self._thread.ident or 0)
        return "".join(traceback.format_stack(frame))

    def _run(self) -> None:
        try:
            torch.set_num_threads(self._config.num_threads or default_num_threads())
            self._serve()
        except BaseException:
            # Boundary: whatever ended the thread, nobody may be left waiting for it.
            _logger.exception("the engine died")
        finally:
            self._post(self._end)

    def _serve(self) -> None:
        while True:
            failpoint("engine.round")
            self._num_rounds += 1
            while True:
                try:
                    command = self._inbox.get(block=not self._core.has_work, timeout=IDLE_SECONDS)
                except Empty:
                    break
                if command is None:
                    return
                command()
            outputs = self._core.step()
            self._stats = self._core.stats()
            if outputs:
                self._post(partial(self._deliver, outputs))

    def _post(self, callback: Callable[[], None]) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:
            # The loop is closed: those who waited on it are gone.
            _logger.warning("the event loop closed before the engine stopped")


def step_timeout_seconds(num_parameters: int, max_num_batched_tokens: int) -> float:
    """What no step takes that makes progress: two minutes, and as long as its products take a machine of 10⁹
    multiply-adds a second, about a hundredth of one present core's rate."""
    return 120.0 + num_parameters * max_num_batched_tokens / 1e9
