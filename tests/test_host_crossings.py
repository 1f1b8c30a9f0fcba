"""The recorder that the tests of synchronisation rely on: what it must see, and what it must let pass."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.host_crossings import Crossing, HostCrossings

DEVICE = torch.device("cpu")


def host_row() -> Tensor:
    return torch.tensor([0, 2])


CROSSINGS: dict[str, tuple[str, Callable[[Tensor], object]]] = {
    "a number read": ("item", lambda x: x.sum().item()),
    "a decision": ("__bool__", lambda x: bool((x > 0).any())),
    "a float": ("__float__", lambda x: float(torch.linalg.vector_norm(x))),
    "a list": ("tolist", lambda x: x.tolist()),
    "a copy to the host": ("to", lambda x: x.to("cpu")),
    "another": ("cpu", lambda x: x.cpu()),
    "a comparison": ("equal", lambda x: torch.equal(x, x)),
    "places that are counted": ("nonzero", lambda x: (x > 0).nonzero()),
    "a mask as an index": ("__getitem__", lambda x: x[x > 0]),
    "a mask that is written through": ("__setitem__", lambda x: x.__setitem__(x > 0, 0.0)),
    "a list as an index": ("__getitem__", lambda x: x[[0, 2]]),
    "an index on the host": ("__getitem__", lambda x: x[host_row()]),
    "rows picked on the host": ("index_select", lambda x: x.index_select(0, host_row())),
    "an operand on the host": ("add", lambda x: x + torch.zeros(3)),
    "values put on the device": ("tensor", lambda x: torch.tensor([1.0], device=DEVICE)),
    "values like a device's": ("new_tensor", lambda x: x.new_tensor([1.0])),
    "an upload that is waited for": ("to", lambda x: host_row().to(DEVICE)),
}

NO_CROSSINGS: dict[str, Callable[[Tensor], object]] = {
    "arithmetic": lambda x: x * 2.0 + x.sum(),
    "a slice": lambda x: x[1:3].clone(),
    "an index on the device": lambda x: x[torch.arange(2, device=DEVICE)],
    "a mask that is selected by": lambda x: torch.where(x > 0, x, 0.0),
    "a slot that is zeroed": lambda x: x[1].zero_(),
    "another dtype": lambda x: x.to(torch.float64),
    "an upload that is not waited for": lambda x: x[host_row().to(DEVICE, non_blocking=True)],
    "a number of the host's as an operand": lambda x: x * torch.tensor(2.0),
    "reading what lies on the host": lambda x: (host_row() + 1).tolist(),
}


@pytest.mark.parametrize("case", CROSSINGS)
def test_what_makes_the_host_wait_is_recorded_with_its_place(case: str) -> None:
    name, computation = CROSSINGS[case]
    x = torch.rand(3)
    with HostCrossings() as crossings:
        computation(x)
    assert [found.name for found in crossings.found] == [name]
    assert crossings.found[0].where.startswith("tests/test_host_crossings.py:")


@pytest.mark.parametrize("case", NO_CROSSINGS)
def test_what_a_device_does_by_itself_is_not_recorded(case: str) -> None:
    x = torch.rand(3)
    with HostCrossings() as crossings:
        NO_CROSSINGS[case](x)
    assert crossings.found == []


def test_nothing_is_recorded_before_or_after() -> None:
    x = torch.rand(3)
    x.tolist()
    with HostCrossings() as crossings:
        pass
    x.tolist()
    assert crossings.found == list[Crossing]()
