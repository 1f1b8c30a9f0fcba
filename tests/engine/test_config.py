from typing import Any

import pytest

from engine.config import EngineConfig


@pytest.mark.parametrize(
    "values",
    [
        {"max_num_sequences": 0},
        {"max_num_waiting": -1},
        {"max_num_batched_tokens": 0},
        {"max_num_interleaved_tokens": 0},
        {"max_num_piece_tokens": -5},
        {"max_num_batchable_tokens": 0},
        {"max_state_norm": float("nan")},
        {"num_threads": 0},
        {"matmul_dtype": "float16"},
        {"native_kernels": "on"},
    ],
)
def test_a_setting_that_makes_no_sense_stops_the_process_and_names_itself(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        EngineConfig(**values)


def test_an_engine_without_a_queue_is_a_valid_choice() -> None:
    assert EngineConfig(max_num_waiting=0).max_num_waiting == 0
