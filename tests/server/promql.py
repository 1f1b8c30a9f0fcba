"""As much of PromQL as tells which series an expression asks for, without a Prometheus."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

# `name{matchers}`: all that we scrape begins with one of these.
_SELECTOR = re.compile(r"\b((?:atlas|process)_\w+|up)\b(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)")
_SAMPLE = re.compile(r"(\w+)(?:\{(.*)\})? \S+")
_LABEL = re.compile(r'(\w+)="([^"]*)"')


@dataclass(frozen=True, slots=True)
class Selector:
    """matchers: label, operator, value."""

    metric: str
    matchers: tuple[tuple[str, str, str], ...]


def selectors(expression: str) -> list[Selector]:
    return [Selector(found[1], tuple(_MATCHER.findall(found[2] or ""))) for found in _SELECTOR.finditer(expression)]


def grouping_labels(expression: str) -> set[str]:
    """What the expression groups by."""
    return {label.strip() for group in _GROUPING.findall(expression) for label in group.split(",")}


def series_of(exposition: str) -> Mapping[str, Mapping[str, set[str]]]:
    """The metrics of a /metrics, with the values that each of their labels has."""
    series: dict[str, dict[str, set[str]]] = {}
    for name, labels in _samples(exposition):
        known = series.setdefault(name, {})
        for label, value in _LABEL.findall(labels):
            known.setdefault(label, set()).add(value)
    return series


def _samples(exposition: str) -> Iterator[tuple[str, str]]:
    for line in exposition.splitlines():
        if not line.startswith("#"):
            found = _SAMPLE.fullmatch(line)
            assert found, line
            yield found[1], found[2] or ""
