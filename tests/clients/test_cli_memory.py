"""How samples of a memory are shown, without a server."""

import pytest

from clients import MemorySample, ProtocolError, SessionMemory
from clients.cli_memory import plot_samples, samples_table

Layer = dict[str, float | None]


def sample(position: int, *layers: Layer) -> MemorySample:
    return MemorySample(position, 0.0, tuple({"layer": index, **layer} for index, layer in enumerate(layers)))


def test_each_layer_is_drawn_on_its_own_scale_and_what_is_not_told_is_a_gap() -> None:
    samples = [
        sample(1000, {"norm": 0.0, "update_norm": None}, {"norm": 20.0, "update_norm": 1.0}),
        sample(2000, {"norm": 7.0, "update_norm": 0.5}, {"norm": 10.0, "update_norm": None}),
        sample(3000, {"norm": 1.0, "update_norm": 0.5}, {"norm": 15.0, "update_norm": None}),
    ]
    assert plot_samples(samples).splitlines() == [
        "norm",
        "  layer 0  ▁█▂  0 to 7, last 1",
        "  layer 1  █▁▅  10 to 20, last 15",
        "update by a token",
        "  layer 0   ▁▁  0.5 to 0.5, last 0.5",
        "  layer 1  ▁    1 to 1, last –",
        "3 samples, from token 1,000 to token 3,000",
    ]


def test_what_does_not_change_is_one_line_and_what_is_never_told_none() -> None:
    samples = [sample(position, {"retention": 1.0, "memory_share": None}) for position in (10, 20)]
    assert plot_samples(samples).splitlines() == [
        "retention, local times global: 1 throughout",
        "2 samples, from token 10 to token 20",
    ]


@pytest.mark.parametrize("num_samples", [1, 2, 8, 9, 64])
def test_a_table_has_at_most_eight_rows_from_the_first_sample_to_the_last(num_samples: int) -> None:
    samples = [sample(100 * (index + 1), {"norm": 1.0}) for index in range(num_samples)]
    table = samples_table(samples)
    assert table.row_count == min(num_samples, 8)
    positions = [str(cell) for cell in table.columns[0].cells]
    assert positions[0] == "100"
    assert positions[-1] == f"{100 * num_samples:,}"
    assert len(set(positions)) == len(positions)


@pytest.mark.parametrize(
    ("samples", "named"),
    [
        (None, "samples"),
        ([{"position": 1, "time": 1.0}], "layers"),
        ([{"position": "1", "time": 1.0, "layers": []}], "position"),
        ([{"position": 1, "time": 1.0, "layers": [{"norm": 1.0}]}], "layer"),
        ([{"position": 1, "time": 1.0, "layers": [{"layer": 0, "norm": "1"}]}], "norm"),
        ([{"position": at, "time": 1.0, "layers": [{"layer": at}]} for at in (1, 2)], "different layers"),
    ],
)
def test_samples_that_are_none_are_a_protocol_error(samples: object, named: str) -> None:
    with pytest.raises(ProtocolError, match=named):
        SessionMemory.parse({"id": "s", "version": 1, "position": 9, "heads": [], "samples": samples})
