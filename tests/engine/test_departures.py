"""Outputs that wait for their states. The events are the tests' own: on a CPU there are none."""

from dataclasses import dataclass
from typing import cast

import torch

from engine.device.departures import Departures
from engine.device.transfers import HostCopy
from engine.sequence import SequenceOutput
from tests.tiny import tiny_checkpoint


@dataclass(slots=True)
class Event:
    """Of a copy that ends when it is told to, or waited for."""

    has_happened: bool = False

    def query(self) -> bool:
        return self.has_happened

    def synchronize(self) -> None:
        self.has_happened = True


def departing(names: str) -> tuple[Departures, list[Event]]:
    departures, events = Departures(), [Event() for _ in names]
    for name, event in zip(names, events, strict=True):
        copy = HostCopy(tiny_checkpoint().model.initial_state(1), cast(torch.cuda.Event, event))
        departures.add(copy, SequenceOutput(name))
    return departures, events


def arrived(departures: Departures, *, wait: bool = False) -> list[str]:
    return [output.sequence_id for output in departures.arrived(wait=wait)]


def test_an_output_is_held_until_its_state_has_arrived_and_is_given_once() -> None:
    departures, events = departing("abc")
    assert arrived(departures) == []
    events[0].has_happened = True
    assert arrived(departures) == ["a"]
    assert arrived(departures) == []
    assert len(departures) == 2


def test_outputs_keep_their_order() -> None:
    departures, events = departing("abc")
    events[1].has_happened = events[2].has_happened = True
    assert arrived(departures) == []
    events[0].has_happened = True
    assert arrived(departures) == ["a", "b", "c"]


def test_who_waits_gets_all_and_every_state_was_waited_for() -> None:
    departures, events = departing("abc")
    assert arrived(departures, wait=True) == ["a", "b", "c"]
    assert all(event.has_happened for event in events)
    assert len(departures) == 0
