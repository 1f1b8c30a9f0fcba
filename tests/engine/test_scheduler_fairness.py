"""Who waits for whom, in virtual time: a step takes as long as the tokens that it feeds, and nothing sleeps."""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from engine.config import EngineConfig
from engine.sampling.sampling_params import SamplingParams
from engine.scheduling.scheduler import Batch, Scheduler
from engine.sequence import Priority, Sequence

CONFIG = EngineConfig(
    max_num_sequences=8,
    max_num_waiting=1000,
    max_num_batched_tokens=64,
    max_num_interleaved_tokens=16,
    max_num_piece_tokens=32,
)


def chat(name: str, num_tokens: int, tenant: str = "default", num_answered: int = 1) -> Sequence:
    return Sequence(name, range(num_tokens), SamplingParams(max_tokens=num_answered), tenant=tenant)


def document(name: str, num_tokens: int, tenant: str = "default") -> Sequence:
    return Sequence(name, range(num_tokens), tenant=tenant, priority=Priority.BACKGROUND)


@dataclass
class House:
    """A scheduler and what the core would do with its batches. `now` counts tokens."""

    scheduler: Scheduler
    now: int = 0
    batches: list[Batch] = field(default_factory=list)
    admitted: list[str] = field(default_factory=list)
    ended: dict[str, int] = field(default_factory=dict)
    fed: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, config: EngineConfig = CONFIG, memory_chunk_size: int = 1) -> "House":
        return cls(Scheduler(config, memory_chunk_size))

    def add(self, *sequences: Sequence) -> None:
        for sequence in sequences:
            self.scheduler.add(sequence)

    def step(self) -> Batch:
        self.admitted += [sequence.sequence_id for sequence in self.scheduler.admit()]
        batch = self.scheduler.schedule()
        assert batch is not None
        self.batches.append(batch)
        self.now += batch.num_padded_tokens
        for piece in batch.pieces:
            sequence = piece.sequence
            sequence.mark_fed(piece.num_tokens)
            self.fed[sequence.sequence_id] += piece.num_tokens
            if sequence.is_prefilling:
                continue
            if sequence.params is not None:
                sequence.generated_token_ids.append(1)
                sequence.next_token_id = 1
            if sequence.params is None or len(sequence.generated_token_ids) == sequence.params.max_tokens:
                self.scheduler.remove(sequence)
                self.ended[sequence.sequence_id] = self.now
        return batch

    def run(self, until: Callable[[], bool] | None = None) -> None:
        while self.scheduler.has_work and not (until is not None and until()):
            self.step()


@pytest.mark.parametrize("seed", range(20))
def test_every_sequence_ends_and_is_fed_each_token_once_whoever_comes_when(seed: int) -> None:
    rng = random.Random(seed)
    config = EngineConfig(
        max_num_sequences=rng.choice((1, 2, 5)),
        max_num_waiting=1000,
        max_num_batched_tokens=rng.choice((16, 64)),
        max_num_interleaved_tokens=rng.choice((1, 16)),
        max_num_piece_tokens=rng.choice((7, 32)),
    )
    house, num_tokens = House.of(config, rng.choice((1, 5, 16))), {}
    for number in range(60):
        make, tenant, length = rng.choice((chat, chat, document)), f"tenant {rng.randrange(4)}", rng.randrange(1, 200)
        sequence = make(f"{number}", length, tenant)
        if sequence.params is not None:
            sequence.params = SamplingParams(max_tokens=rng.randrange(1, 30))
        num_tokens[sequence.sequence_id] = length + (sequence.params.max_tokens - 1 if sequence.params else 0)
        house.add(sequence)
        for _ in range(rng.randrange(4)):
            if house.scheduler.has_work:
                house.step()
    house.run()
    assert house.fed == num_tokens
    assert house.ended.keys() == num_tokens.keys()


@pytest.mark.parametrize("seed", range(5))
def test_who_decodes_waits_for_one_prefill_step_of_the_bound_and_no_longer(seed: int) -> None:
    rng = random.Random(seed)
    house = House.of()
    house.add(*(chat(f"chat {number}", 1, num_answered=200) for number in range(4)))
    house.step()
    house.add(document("shelf of books", 10_000_000))
    last_decoded = house.now
    for number in range(300):
        if rng.random() < 0.1:
            house.add(chat(f"late {number}", rng.randrange(1, 300), f"tenant {rng.randrange(3)}"))
        batch = house.step()
        if not batch.is_prefill:
            assert house.now - last_decoded <= CONFIG.max_num_interleaved_tokens + batch.num_tokens
            assert len(batch.pieces) >= 4
            last_decoded = house.now
    assert house.fed["chat 0"] > 100


def test_the_budget_beside_decoding_is_the_one_that_the_core_has_measured_but_never_above_the_configured_one() -> None:
    for measured, expected in ((5, 5), (16, 16), (999, 16)):
        scheduler = Scheduler(CONFIG)
        house = House(scheduler)
        house.add(chat("chat", 1, num_answered=9), document("book", 1000))
        house.step()
        house.step()
        batch = scheduler.schedule(measured)
        assert batch is not None
        assert (batch.is_prefill, batch.is_paced, batch.num_tokens) == (True, True, expected)


def test_a_question_beside_decoding_is_bounded_by_the_configuration_and_not_by_the_pace_of_documents() -> None:
    scheduler = Scheduler(CONFIG)
    house = House(scheduler)
    house.add(chat("chat", 1, num_answered=9), document("book", 1000))
    house.step()
    house.step()
    house.add(chat("question", 100))
    house.step()
    house.step()
    batch = scheduler.schedule(5)
    assert batch is not None
    assert [piece.sequence.sequence_id for piece in batch.pieces] == ["question"]
    assert (batch.is_prefill, batch.is_paced, batch.num_tokens) == (True, False, CONFIG.max_num_interleaved_tokens)


def test_a_question_is_read_before_a_document_that_was_there_first() -> None:
    house = House.of()
    house.add(document("book", 1000), chat("question", 100))
    house.run(until=lambda: "question" in house.ended)
    assert house.fed["book"] == 0


def test_documents_have_their_share_of_the_tokens_while_questions_never_end() -> None:
    house = House.of()
    house.add(document("book", 10**6))
    number, asked_at = 0, 0
    while house.now < 20_000:
        if house.now >= asked_at:
            house.add(chat(f"question {number}", 60))
            number, asked_at = number + 1, house.now + 30
        house.step()
    share = house.fed["book"] / house.fed.total()
    assert CONFIG.background_share <= share + 0.01
    assert share <= 1.5 * CONFIG.background_share


def test_a_document_alone_has_all_of_the_tokens_and_takes_no_slot_beyond_half() -> None:
    house = House.of()
    house.add(*(document(f"book {number}", 500) for number in range(20)))
    house.step()
    assert (house.scheduler.num_running, house.scheduler.num_waiting) == (4, 16)
    house.add(*(chat(f"chat {number}", 5, num_answered=100) for number in range(4)))
    house.step()
    assert house.scheduler.num_background_running == 4
    assert house.scheduler.num_running == 8
    house.run()
    assert len(house.ended) == 24


def test_one_slot_is_shared_in_turns_by_documents_and_questions() -> None:
    config = EngineConfig(max_num_sequences=1, max_num_waiting=100)
    house = House.of(config)
    house.add(*(document(f"book {number}", 10) for number in range(3)), *(chat(f"chat {n}", 10) for n in range(3)))
    house.run()
    assert house.admitted == ["book 0", "chat 0", "book 1", "chat 1", "book 2", "chat 2"]


def test_a_document_gets_a_slot_while_more_questions_wait_than_there_are_slots() -> None:
    house = House.of()
    house.add(*(chat(f"chat {number}", 5, num_answered=20) for number in range(100)), document("book", 10))
    house.run(until=lambda: "book" in house.ended)
    assert len(house.admitted) <= 2 * CONFIG.max_num_sequences


def test_one_request_does_not_wait_for_the_hundred_of_another_tenant() -> None:
    house = House.of()
    house.add(*(chat(f"greedy {number}", 20, "greedy", num_answered=5 + number % 7) for number in range(100)))
    house.step()
    house.add(chat("modest", 20, "modest", num_answered=5))
    house.run(until=lambda: "modest" in house.admitted)
    assert len(house.ended) == 1
    house.run()
    assert len(house.ended) == 101


def test_tenants_take_turns_on_the_only_slot() -> None:
    house = House.of(EngineConfig(max_num_sequences=1, max_num_waiting=100))
    house.add(*(chat(f"greedy {number}", 5, "greedy") for number in range(50)))
    house.step()
    house.add(*(chat(f"modest {number}", 5, "modest") for number in range(2)))
    house.run()
    assert house.admitted[:6] == ["greedy 0", "modest 0", "greedy 1", "modest 1", "greedy 2", "greedy 3"]


def test_tenants_who_both_have_many_requests_share_the_slots() -> None:
    house = House.of()
    house.add(*(chat(f"a {number}", 5, "a", num_answered=9 + number % 7) for number in range(100)))
    house.step()
    house.add(*(chat(f"b {number}", 5, "b", num_answered=9 + number % 5) for number in range(60)))
    house.run(until=lambda: len(house.ended) >= 50 and house.scheduler.num_running == 8)
    held = Counter(sequence.tenant for sequence in house.scheduler.running)
    assert held == {"a": 4, "b": 4}


def test_tenants_share_prefill_by_tokens_and_not_by_requests() -> None:
    house = House.of(EngineConfig(max_num_sequences=16, max_num_batched_tokens=32, max_num_piece_tokens=32))
    house.add(*(chat(f"greedy {number}", 300, "greedy") for number in range(8)), chat("modest", 300, "modest"))
    house.run(until=lambda: "modest" in house.ended)
    of_others = house.fed.total() - house.fed["modest"]
    assert abs(of_others - 300) <= 2 * 32


def test_documents_of_tenants_share_what_documents_have() -> None:
    house = House.of(EngineConfig(max_num_sequences=16, max_num_batched_tokens=32, max_num_piece_tokens=32))
    house.add(*(document(f"greedy {number}", 10**5, "greedy") for number in range(7)), document("one", 10**5, "modest"))
    house.run(until=lambda: house.now >= 5000)
    assert abs(house.fed["one"] - 2500) <= 64


def test_pieces_end_where_the_memorys_chunks_do() -> None:
    house = House.of(CONFIG, memory_chunk_size=10)
    book = document("book", 104)
    house.add(book)
    ends = []
    while house.scheduler.has_work:
        house.step()
        ends.append(book.position)
    assert ends == [30, 60, 90, 104]


def test_a_piece_that_began_within_a_chunk_brings_the_next_ones_to_the_borders() -> None:
    config = EngineConfig(max_num_batched_tokens=32, max_num_piece_tokens=32)
    for position, expected in ((3, [30, 60, 90, 103]), (29, [60, 90, 120, 129])):
        house = House.of(config, memory_chunk_size=10)
        book = document("book", 100)
        book.position = position
        house.add(book)
        ends = []
        while house.scheduler.has_work:
            house.step()
            ends.append(book.position)
        assert ends == expected


def test_a_budget_below_a_chunk_is_used_all_the_same() -> None:
    house = House.of(EngineConfig(max_num_batched_tokens=4, max_num_piece_tokens=4), memory_chunk_size=10)
    house.add(document("book", 23))
    house.run()
    assert [batch.num_tokens for batch in house.batches] == [4, 4, 2, 4, 4, 2, 3]
