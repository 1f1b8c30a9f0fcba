import pytest

from engine.config import EngineConfig
from engine.errors import QueueFull
from engine.scheduling.scheduler import Batch, Scheduler
from engine.sequence import Sequence


def sequence(name: str, num_tokens: int) -> Sequence:
    return Sequence(name, range(num_tokens))


def scheduler_with(config: EngineConfig, **num_tokens: int) -> tuple[Scheduler, dict[str, Sequence]]:
    scheduler = Scheduler(config)
    sequences = {name: sequence(name, count) for name, count in num_tokens.items()}
    for each in sequences.values():
        scheduler.add(each)
    scheduler.admit()
    return scheduler, sequences


def run(batch: Batch | None) -> dict[str, int]:
    """What the core would do with the batch: feed it, and sample when all is fed."""
    assert batch is not None
    for piece in batch.pieces:
        piece.sequence.mark_fed(piece.num_tokens)
        if not piece.sequence.is_prefilling:
            piece.sequence.next_token_id = 1
    return {piece.sequence.sequence_id: piece.num_tokens for piece in batch.pieces}


def test_slots_are_given_first_come_first_served() -> None:
    scheduler = Scheduler(EngineConfig(max_num_sequences=2))
    sequences = [sequence(name, 3) for name in "abcd"]
    for each in sequences:
        scheduler.add(each)
    assert scheduler.admit() == sequences[:2]
    assert scheduler.admit() == []
    scheduler.remove(sequences[0])
    scheduler.remove(sequences[2])
    assert scheduler.admit() == [sequences[3]]
    assert (scheduler.num_running, scheduler.num_waiting) == (2, 0)


def test_the_queue_is_full_when_slots_and_places_are_taken_and_not_before() -> None:
    scheduler = Scheduler(EngineConfig(max_num_sequences=2, max_num_waiting=1))
    for name in "abc":
        scheduler.add(sequence(name, 1))
    with pytest.raises(QueueFull):
        scheduler.add(sequence("d", 1))
    scheduler.admit()
    with pytest.raises(QueueFull):
        scheduler.add(sequence("d", 1))
    scheduler.remove(scheduler.running[0])
    scheduler.add(sequence("d", 1))


def test_nothing_running_is_nothing_to_do() -> None:
    assert Scheduler(EngineConfig()).schedule() is None


def test_a_long_feed_and_those_who_decode_take_turns() -> None:
    config = EngineConfig(max_num_batched_tokens=64, max_num_interleaved_tokens=16, max_num_piece_tokens=64)
    scheduler, _ = scheduler_with(config, reader=5, book=1000)
    steps = [run(scheduler.schedule()) for _ in range(7)]
    assert steps == [
        {"reader": 5},
        {"reader": 1},
        {"book": 16},
        {"reader": 1},
        {"book": 16},
        {"reader": 1},
        {"book": 16},
    ]


def test_a_long_feed_alone_uses_the_whole_budget() -> None:
    scheduler, _ = scheduler_with(EngineConfig(max_num_batched_tokens=64, max_num_piece_tokens=100), book=1000)
    assert run(scheduler.schedule()) == {"book": 64}


def test_a_short_question_does_not_wait_for_the_end_of_a_book() -> None:
    scheduler, _ = scheduler_with(EngineConfig(max_num_piece_tokens=32), book=1000, question=5)
    assert run(scheduler.schedule()) == {"book": 32}
    assert run(scheduler.schedule()) == {"question": 5}


def test_two_books_take_turns_when_the_budget_holds_one_piece() -> None:
    config = EngineConfig(max_num_batched_tokens=32, max_num_piece_tokens=32)
    scheduler, _ = scheduler_with(config, one=100, two=100)
    assert [run(scheduler.schedule()) for _ in range(4)] == [{"one": 32}, {"two": 32}, {"one": 32}, {"two": 32}]


def test_prefill_batches_hold_pieces_of_similar_length_within_the_padded_budget() -> None:
    config = EngineConfig(max_num_batched_tokens=40, max_num_piece_tokens=32)
    scheduler, _ = scheduler_with(config, a=10, b=3, c=6, d=12, e=11, f=100)
    # b and f are too short and too long for a, and a fourth row of 12 would be beyond the budget.
    assert run(scheduler.schedule()) == {"a": 10, "c": 6, "d": 12}


def test_on_a_cpu_long_pieces_go_one_by_one_and_short_ones_together() -> None:
    scheduler, _ = scheduler_with(EngineConfig(), one=2100, two=2100, a=128, b=129, c=65, d=128)
    steps = [run(scheduler.schedule()) for _ in range(3)]
    assert steps == [{"one": 1024}, {"two": 1024}, {"a": 128, "c": 65, "d": 128}]


def test_on_another_device_long_pieces_share_a_batch() -> None:
    scheduler, _ = scheduler_with(EngineConfig(device="cuda"), one=1100, two=1100, three=1100)
    assert run(scheduler.schedule()) == {"one": 1024, "two": 1024}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_how_long_a_piece_of_a_batch_may_be_is_a_setting(device: str) -> None:
    config = EngineConfig(device=device, max_num_batchable_tokens=300)
    scheduler, _ = scheduler_with(config, a=301, b=301, c=300)
    assert run(scheduler.schedule()) == {"a": 301}
    scheduler, _ = scheduler_with(config, c=300, d=200, a=301)
    assert run(scheduler.schedule()) == {"c": 300, "d": 200}


def test_everything_that_decodes_decodes_in_one_batch() -> None:
    scheduler, _ = scheduler_with(EngineConfig(), a=4, b=4, c=4)
    assert run(scheduler.schedule()) == {"a": 4, "b": 4, "c": 4}
    assert run(scheduler.schedule()) == {"a": 1, "b": 1, "c": 1}
