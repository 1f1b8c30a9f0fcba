"""The engine without its thread: `step()` is schedule, run, sample, stop, outputs, and can be called in a test.

Promises: the end is decided before the token that would pass it is fed; a slot whose sequence ends without a state is
zeroed and free when the call returns, and one whose sequence leaves a state stays resident for that state, and for
nobody else; one sequence's failure ends that sequence alone; nothing is dropped without an output.
Leaves policy to the scheduler, tensors to the runner and the pool, what a stop string is to `stopping`, and threads to
`engine`.
"""

import logging
import secrets
import time
from dataclasses import replace

import torch
from torch import Tensor

from atlas_model.checkpoint import Checkpoint
from atlas_model.packed_products import pack_products
from atlas_model.rounded_products import round_products
from atlas_model.shared_weights import with_shared_weights
from atlas_model.upload import upload
from engine.checking import check_sequence
from engine.config import EngineConfig
from engine.device.decode_steps import choose_decode_step
from engine.device.departures import Departures
from engine.device.device_memory import free_cached_memory, is_out_of_memory
from engine.device.model_runner import ModelRunner
from engine.device.numerics import set_float32_products
from engine.device.state_pool import StatePool, diverged_tensor
from engine.device.transfers import Transfers
from engine.errors import AtlasError, Draining, EngineOverloaded, InvalidRequest, MemoryDiverged
from engine.progress import Progress
from engine.sampling.adjustment import Adjustment
from engine.sampling.logprobs import TokenLogprob
from engine.sampling.sampler import Draw, Sampler
from engine.sampling.stopping import Stopping
from engine.scheduling.pace import PrefillPace
from engine.scheduling.scheduler import Batch, Piece, Scheduler
from engine.sequence import FinishReason, Resume, Sequence, SequenceOutput, SequenceState, Tier
from engine.snapshots.memory_samples import MemorySample
from engine.telemetry import Counters, EngineStats

_logger = logging.getLogger(__name__)


class EngineCore:
    """Not thread-safe: one thread calls everything but `check`."""

    def __init__(self, checkpoint: Checkpoint, config: EngineConfig) -> None:
        device = torch.device(config.device)
        set_float32_products(device, allow_tf32=config.allow_tf32)
        # The layers that are replaced are this engine's, and not those of another one of the same checkpoint.
        model = with_shared_weights(checkpoint.model.to(device))
        if config.matmul_dtype == "bfloat16":
            round_products(model)
        pack_products(model)
        self._tokenizer = checkpoint.tokenizer
        self._end_token_id = checkpoint.tokenizer.special.end
        self._vocab_size = model.config.vocab_size
        self._token_bytes = [self._tokenizer.decode_bytes(i) for i in range(self._tokenizer.vocab_size)]
        self._max_state_norm = config.max_state_norm
        self._memory_sample_tokens = config.memory_sample_tokens
        silent = [i for i in range(self._vocab_size) if i >= len(self._token_bytes) or not self._token_bytes[i]]
        with torch.inference_mode():
            self._initial_state = model.initial_state(1)
            self._pool = StatePool(model.config, config.max_num_sequences, device)
            self._sampler = Sampler(self._vocab_size, self._end_token_id, silent, device)
            self._transfers = Transfers(model.config, device, config.max_pinned_num_bytes)
            step = choose_decode_step(model, self._pool, device, config)
        self._departures = Departures()
        self._runner = ModelRunner(model, self._pool, device, step)
        self._device = device
        memory_chunk_sizes = model.config.memory_chunk_sizes or (model.config.memory.memory_chunk_size,)
        self._scheduler = Scheduler(config, max(memory_chunk_sizes))
        self._pace = PrefillPace(config.max_added_itl_seconds, config.max_num_interleaved_tokens)
        self._progress: dict[str, Progress] = {}
        self._outputs: list[SequenceOutput] = []
        self._counters = Counters()

    @property
    def has_work(self) -> bool:
        """Whether a step would do or say anything."""
        return bool(self._progress or self._outputs or self._departures)

    @property
    def num_free_slots(self) -> int:
        return self._pool.num_free

    def check(self, sequence: Sequence) -> None:
        """Raises InvalidRequest for what the model cannot do. Any thread may call it."""
        check_sequence(sequence, self._vocab_size)

    def add(self, sequence: Sequence) -> None:
        """Queues the sequence. Raises InvalidRequest or QueueFull; then nothing of it is kept."""
        self.check(sequence)
        if sequence.sequence_id in self._progress:
            raise InvalidRequest(f"sequence {sequence.sequence_id} is already running")
        self._scheduler.add(sequence)
        params = sequence.params
        stopping = None if params is None else Stopping(params, self._end_token_id, self._token_bytes, sequence.opening)
        seed = secrets.randbits(64) if params is None or params.seed is None else params.seed
        self._progress[sequence.sequence_id] = Progress(sequence, stopping, seed, time.monotonic())

    def abort(self, sequence_id: str) -> None:
        """Ends the sequence in whatever phase it is; one that has ended already is none."""
        progress = self._progress.get(sequence_id)
        if progress is not None:
            with torch.inference_mode():
                self._remove(progress, FinishReason.ABORT)

    def forget(self, state: SequenceState) -> None:
        """Zeroes the slot that is resident for a state from which nobody will start; harmless when none is."""
        with torch.inference_mode():
            self._pool.forget(state.tensors)

    def cut_short(self) -> None:
        """Ends everything now: what is writing with `length`, the rest with `abort` and Draining as its error. One that
        has met a stop string is left to end by itself."""
        with torch.inference_mode():
            for progress in list(self._progress.values()):
                token_id = progress.sequence.next_token_id
                if progress.stopping is not None and token_id is not None:
                    text = progress.detokenizer.push(progress.stopping.release_all())
                    self._finish(progress, FinishReason.LENGTH, (token_id, self._end_token_id), text)
                elif not progress.pending_after_feed:
                    self._remove(progress, FinishReason.ABORT, Draining("the server is shutting down"))

    def step(self) -> list[SequenceOutput]:
        """One batch through the model. At most one output a sequence, and nothing after its `finish_reason`."""
        with torch.inference_mode():
            self._admit()
            batch = self._scheduler.schedule(self._pace.num_tokens)
            if batch is not None:
                began = time.monotonic()
                self._counters.count_step(batch.num_tokens, batch.is_prefill)
                for progress, token_id, logprob in self._sample(*self._run(batch)):
                    try:
                        self._advance(progress, token_id, logprob)
                    except Exception as error:
                        # Boundary: a copy for which there is no memory ends its own sequence only.
                        self._fail(progress, error)
                if batch.is_paced:
                    self._runner.wait()
                    self._pace.observe(batch.num_padded_tokens, time.monotonic() - began)
            self._outputs += self._departures.arrived(wait=batch is None)
        outputs, self._outputs = self._outputs, []
        return outputs

    def stats(self) -> EngineStats:
        return EngineStats(
            num_running=self._scheduler.num_running,
            num_waiting=self._scheduler.num_waiting,
            num_background_running=self._scheduler.num_background_running,
            num_background_waiting=self._scheduler.num_background_waiting,
            num_slots=self._pool.num_slots,
            num_slots_in_use=self._pool.num_owned,
            num_resident_states=self._pool.num_resident,
            prompt_tokens_total=self._counters.prompt_tokens_total,
            generation_tokens_total=self._counters.generation_tokens_total,
            iteration_tokens=self._counters.iteration_tokens,
            max_num_paced_tokens=self._pace.num_tokens,
            queue_seconds=self._counters.queue_seconds,
            memory=self._counters.memory,
        )

    def check_integrity(self) -> None:
        """Asserts that every slot is owned by one running sequence, resident for a state whose bits it has, or zeroed
        and free; and that no sequence is lost."""
        self._outputs += self._departures.arrived(wait=True)
        self._pool.check_integrity([each.slot for each in self._scheduler.running if each.slot is not None])
        assert all(sequence.slot is None for sequence in self._scheduler.waiting), "a slot is held while waiting"
        known = {sequence.sequence_id for sequence in (*self._scheduler.running, *self._scheduler.waiting)}
        assert known == self._progress.keys(), "a sequence is neither waiting nor running"
        assert all(progress.num_copies <= 2 for progress in self._progress.values()), "copies of a state pile up"

    def _admit(self) -> None:
        self._pool.release_unreachable()
        for sequence in self._scheduler.admit():
            progress = self._progress[sequence.sequence_id]
            queue_seconds = progress.mark_admitted(time.monotonic())
            self._counters.count_admission(queue_seconds, sequence.priority)
            try:
                progress.resume = self._fill_slot(sequence)
            except Exception as error:
                # Boundary: a state that does not fit must end its own sequence only.
                self._fail(progress, error)

    def _fill_slot(self, sequence: Sequence) -> Resume | None:
        """Gives the sequence a slot with the state that it starts from."""
        began = time.monotonic()
        state = self._initial_state if sequence.state is None else sequence.state.tensors
        sequence.slot = self._pool.resume(state, is_shared=sequence.shares_state)
        tier = Tier.HOST if sequence.slot is None else Tier.DEVICE
        if sequence.slot is None:
            sequence.slot = self._pool.acquire()
            self._pool.load(sequence.slot, state)
        return None if sequence.state is None else Resume(tier, time.monotonic() - began)

    def _run(self, batch: Batch) -> tuple[list[Progress], list[Tensor]]:
        """Feeds the batch; ends those that only feed; returns those that go on, with their logits [n, V] in pieces."""
        if not batch.is_prefill:
            # So that neither rows nor logits are copied into another order.
            batch = replace(batch, pieces=tuple(sorted(batch.pieces, key=self._row)))
        try:
            logits = self._forward(batch)
        except Exception as error:
            # Boundary: no slot has changed; alone, each either goes on or is the one to blame.
            lacks_memory = is_out_of_memory(error)
            smaller = batch.halves() if lacks_memory else batch.rows()
            if not smaller:
                self._fail(self._progress[batch.pieces[0].sequence.sequence_id], error)
        else:
            return self._fed(batch, logits)
        # Not in the handler, where the error still holds what was allocated.
        if lacks_memory:
            _logger.warning("no memory for %d rows with %d tokens", len(batch.pieces), batch.num_tokens)
            free_cached_memory(self._device)
        run = [self._run(each) for each in smaller]
        return [one for writing, _ in run for one in writing], [one for _, rows in run for one in rows]

    def _fed(self, batch: Batch, logits: Tensor) -> tuple[list[Progress], list[Tensor]]:
        writing, rows = [], []
        for row, piece in enumerate(batch.pieces):
            progress = self._progress[piece.sequence.sequence_id]
            piece.sequence.mark_fed(piece.num_tokens)
            if piece.sequence.is_prefilling:
                continue
            if progress.pending_after_feed is not None:
                self._finish(progress, FinishReason.STOP, progress.pending_after_feed)
            elif progress.sequence.params is not None and progress.sequence.params.max_tokens == 0:
                self._finish(progress, FinishReason.LENGTH, (self._end_token_id,))
            else:
                writing.append(progress)
                rows.append(row)
        if len(rows) < len(batch.pieces):
            logits = logits.index_select(0, upload(rows, torch.int64, logits.device))
        return writing, [logits]

    def _row(self, piece: Piece) -> int:
        assert piece.sequence.slot is not None
        return self._pool.row(piece.sequence.slot)

    def _forward(self, batch: Batch) -> Tensor:
        slots, pieces = [], []
        for piece in batch.pieces:
            assert piece.sequence.slot is not None
            slots.append(piece.sequence.slot)
            pieces.append(piece.sequence.next_token_ids(piece.num_tokens))
        sequences = [piece.sequence for piece in batch.pieces]
        if not batch.is_prefill:
            positions = [sequence.position for sequence in sequences]
            return self._runner.decode(slots, [token_id for (token_id,) in pieces], positions)
        apart = self._memory_sample_tokens
        due = [row for row, each in enumerate(sequences) if each.memory_samples.is_due(each.position, apart)]
        targets = {row: each.next_targets(len(pieces[row])) for row, each in enumerate(sequences)}
        asked = {row: each for row, each in targets.items() if each is not None}
        prefilled = self._runner.prefill(slots, pieces, due, asked)
        for row, logprobs in prefilled.logprobs.items():
            self._progress[sequences[row].sequence_id].note_prompt(logprobs)
        for row, layers in prefilled.samples.items():
            sequence = sequences[row]
            sample = MemorySample(sequence.position, time.time(), layers)
            sequence.memory_samples = sequence.memory_samples.with_sample(sample, apart)
            self._counters.count_sample(layers)
        return prefilled.logits

    def _sample(self, writing: list[Progress], logits: list[Tensor]) -> list[tuple[Progress, int, TokenLogprob | None]]:
        """One token for each; those whose logits are not finite end here."""
        if not writing:
            return []
        try:
            draws = [self._draw(progress) for progress in writing]
            drawn = self._sampler.sample(logits[0] if len(logits) == 1 else torch.cat(logits), draws)
        except Exception as error:
            # Boundary: as in `_run`.
            if len(writing) == 1:
                self._fail(writing[0], error)
                return []
            rows = [row for part in logits for row in part.split(1)]
            return [each for one, row in zip(writing, rows, strict=True) for each in self._sample([one], [row])]
        now = time.monotonic()
        sampled = []
        for row, (progress, token_id) in enumerate(zip(writing, drawn.token_ids, strict=True)):
            progress.mark_prefilled(now)
            if token_id is None:
                assert progress.sequence.slot is not None
                layer = diverged_tensor(self._pool.copy(progress.sequence.slot), self._max_state_norm) or "logits"
                self._fail(progress, MemoryDiverged(f"{layer} is not finite", layer))
            else:
                sampled.append((progress, token_id, drawn.logprobs.get(row)))
        return sampled

    def _draw(self, progress: Progress) -> Draw:
        sequence, stopping = progress.sequence, progress.stopping
        assert sequence.params is not None
        assert stopping is not None
        if sequence.params.adjusts_logits and progress.adjustment is None:
            context = (*sequence.earlier_token_ids, *sequence.prompt_token_ids)
            progress.adjustment = Adjustment(sequence.params, context, self._vocab_size, self._device)
        return Draw(sequence.params, progress.seed, sequence.position, stopping.can_end, progress.adjustment)

    def _advance(self, progress: Progress, token_id: int, logprob: TokenLogprob | None) -> None:
        """Decides, before `token_id` is fed, what becomes of the sequence."""
        sequence, stopping = progress.sequence, progress.stopping
        assert stopping is not None
        verdict = stopping.accept(token_id)
        text = progress.detokenizer.push(verdict.released)
        new_token_ids: tuple[int, ...] = ()
        if token_id != self._end_token_id:
            new_token_ids = (token_id,)
            progress.note_token(token_id, logprob)
            self._counters.generation_tokens_total += 1

        if verdict.cut is not None:
            progress.rewind(verdict.cut, self._pool, self._tokenizer.encode)
            progress.pending_after_feed = (self._end_token_id,)
            if not sequence.is_prefilling:
                self._finish(progress, FinishReason.STOP, progress.pending_after_feed, text, new_token_ids)
                return
            text += progress.detokenizer.finish()
        elif verdict.finish_reason is not None:
            pending = (*new_token_ids, self._end_token_id)
            self._finish(progress, verdict.finish_reason, pending, text, new_token_ids)
            return
        else:
            progress.keep_way_back(self._pool)
            sequence.next_token_id = token_id
        self._outputs.append(progress.output(time.monotonic(), text, new_token_ids))

    def _finish(
        self,
        progress: Progress,
        reason: FinishReason,
        pending: tuple[int, ...],
        text: str = "",
        token_ids: tuple[int, ...] = (),
    ) -> None:
        """Ends the sequence with its state, unless that state is not fit to be kept."""
        sequence = progress.sequence
        assert sequence.slot is not None
        progress.mark_prefilled(time.monotonic())
        copy = None
        try:
            row = self._pool.copy(sequence.slot) if sequence.leaves_state else self._pool.read([sequence.slot])
            layer = diverged_tensor(row, self._max_state_norm)
            if layer is None and sequence.leaves_state:
                copy = self._transfers.to_host(row)
        except Exception as error:
            # Boundary: as above.
            self._fail(progress, error)
            return
        if layer is not None:
            self._fail(progress, MemoryDiverged(f"{layer} is not finite or too large", layer))
            return
        text += progress.detokenizer.finish()
        if copy is None:
            self._drop(progress)
            self._outputs.append(progress.output(time.monotonic(), text, token_ids, reason))
            return
        state = SequenceState(copy.state, sequence.tokens_digest, pending, sequence.memory_samples)
        slot, sequence.slot = sequence.slot, None
        self._pool.keep(slot, copy.state)
        self._drop(progress)
        self._departures.add(copy, progress.output(time.monotonic(), text, token_ids, reason, state))

    def _fail(self, progress: Progress, error: Exception) -> None:
        if is_out_of_memory(error):
            error = EngineOverloaded("the device has no memory for this request now")
        elif not isinstance(error, AtlasError):
            _logger.error("sequence %s failed", progress.sequence.sequence_id, exc_info=error)
            cause, error = error, AtlasError("the model could not process this request")
            error.__cause__ = cause
        self._remove(progress, FinishReason.ERROR, error)

    def _remove(self, progress: Progress, reason: FinishReason, error: Exception | None = None) -> None:
        self._drop(progress)
        self._outputs.append(progress.output(time.monotonic(), finish_reason=reason, error=error))

    def _drop(self, progress: Progress) -> None:
        sequence = progress.sequence
        self._scheduler.remove(sequence)
        del self._progress[sequence.sequence_id]
        if sequence.slot is not None:
            self._pool.release(sequence.slot)
            sequence.slot = None
