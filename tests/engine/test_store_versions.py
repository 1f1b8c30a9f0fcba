"""Which generations a session keeps, the same for every store: the last ones, the named ones, what was gone back to."""

from dataclasses import replace

import pytest

from engine.errors import (
    CommitConflict,
    InvalidRequest,
    SessionNotFound,
    VersionNotFound,
)
from engine.stores.base import Head, IngestMark, SessionKey, Store
from engine.stores.succession import MAX_NUM_NAMED
from tests.engine.store_cases import KEY, NUM_KEPT, commit_number, generation_of, whole_number


def kept_versions(store: Store) -> list[int]:
    """Newest first; fails when one of them is not whole."""
    head = store.read_head(KEY)
    assert head is not None
    versions = [generation.version for generation in head.generations]
    for generation in head.generations:
        assert whole_number(store, version=generation.version) == generation.position
        assert store.load_extra(KEY, generation.version) == f"extra {generation.position}".encode()
    return versions


def test_the_last_generations_are_kept_and_older_ones_are_gone(store: Store) -> None:
    head = None
    for number in range(1, 6):
        head = commit_number(store, number, base=head)
        assert kept_versions(store) == list(range(number, max(0, number - 1 - NUM_KEPT), -1))
    for gone in (0, 1, 2, 6):
        with pytest.raises(VersionNotFound):
            store.load(KEY, gone)
        with pytest.raises(VersionNotFound):
            store.load_extra(KEY, gone)


def test_what_stood_before_an_ingest_is_kept_until_the_turn_after_it(store: Store) -> None:
    head = commit_number(store, 1, base=None)
    for number in (2, 3, 4):
        mark = IngestMark("document", number * 100)
        head = store.commit(KEY, head, replace(generation_of(number), open_ingest=mark))
        assert head.open_ingest == mark
        assert kept_versions(store) == [number, 1]
    for number, expected in ((5, [5, 1]), (6, [6, 5, 1]), (7, [7, 6, 5])):
        head = commit_number(store, number, base=head)
        assert kept_versions(store) == expected


def name(store: Store, version: int, name: str | None) -> Head:
    head = store.name_version(KEY, version, name)
    assert store.read_head(KEY) == head
    return head


def test_a_named_generation_is_kept_until_it_loses_its_name(store: Store) -> None:
    commit_number(store, 1, base=None)
    head = name(store, 1, "first")
    for number in range(2, 7):
        head = commit_number(store, number, base=head)
    assert kept_versions(store) == [6, 5, 4, 1]
    assert head.find("first") == head.find(1)
    head = name(store, 5, "fifth")
    assert kept_versions(store) == [6, 5, 4, 1]
    assert name(store, 5, "fifth") == head
    head = name(store, 1, None)
    assert kept_versions(store) == [6, 5, 4, 1]
    commit_number(store, 7, base=head)
    assert kept_versions(store) == [7, 6, 5, 4]
    with pytest.raises(VersionNotFound):
        store.load(KEY, 1)


def test_a_version_has_one_name_and_does_not_lose_it_to_another(store: Store) -> None:
    commit_number(store, 1, base=None)
    head = name(store, 1, "first")
    with pytest.raises(InvalidRequest, match="named first"):
        store.name_version(KEY, 1, "other")
    assert store.read_head(KEY) == head


def test_the_version_that_was_gone_back_to_is_kept_before_newer_ones(store: Store) -> None:
    head = commit_number(store, 1, base=None)
    for number in range(2, 7):
        head = store.commit(KEY, head, replace(generation_of(number), continues=1))
        assert kept_versions(store) == [number, *([number - 1] if number > 2 else []), 1]
    assert kept_versions(store) == [6, 5, 1]
    commit_number(store, 7, base=head)
    assert kept_versions(store) == [7, 6, 5]


def test_names_are_few_and_each_is_given_once(store: Store) -> None:
    head = commit_number(store, 1, base=None)
    for number in range(2, MAX_NUM_NAMED + 3):
        head = name(store, number - 1, f"n{number}") if number <= MAX_NUM_NAMED + 1 else head
        head = commit_number(store, number, base=head)
    for taken in ("n2", "one!", "", "7", "a b", "x" * 65, "n\n"):
        with pytest.raises(InvalidRequest):
            store.name_version(KEY, MAX_NUM_NAMED + 1, taken)
    with pytest.raises(InvalidRequest, match="at most 16"):
        store.name_version(KEY, MAX_NUM_NAMED + 2, "new")
    with pytest.raises(VersionNotFound):
        store.name_version(KEY, 999, "new")
    assert store.read_head(KEY) == head
    with pytest.raises(SessionNotFound):
        store.name_version(SessionKey("tenant", "absent"), 1, "new")


def test_versions_that_a_commit_drops_are_gone_and_what_was_before_them_is_kept(store: Store) -> None:
    head = None
    for number in range(1, 4):
        head = commit_number(store, number, base=head)
    store.commit(KEY, head, replace(generation_of(4), continues=1, drops_since=2))
    assert kept_versions(store) == [4, 1]
    for dropped in (2, 3):
        with pytest.raises(VersionNotFound):
            store.load_extra(KEY, dropped)


def test_other_metadata_is_no_new_version_and_fences_writers_off(store: Store) -> None:
    first = commit_number(store, 1, base=None)
    described = store.set_metadata(KEY, {"topic": "demo"})
    assert store.read_head(KEY) == described
    assert (described.version, described.metadata) == (1, {"topic": "demo"})
    assert described.fence != first.fence
    assert kept_versions(store) == [1]
    assert store.set_metadata(KEY, {}).metadata == {}
    with pytest.raises(SessionNotFound):
        store.set_metadata(SessionKey("tenant", "absent"), {})


def test_a_writer_that_has_not_seen_a_new_name_is_refused_and_the_name_stays(store: Store) -> None:
    seen = commit_number(store, 1, base=None)
    named = name(store, 1, "first")
    with pytest.raises(CommitConflict):
        commit_number(store, 99, base=seen)
    assert store.read_head(KEY) == named
    assert commit_number(store, 2, base=named).find("first") is not None


def test_a_name_goes_with_its_session(store: Store) -> None:
    commit_number(store, 1, base=None)
    name(store, 1, "first")
    assert store.delete(KEY) is True
    head = commit_number(store, 2, base=None)
    assert head.find("first") is None
