"""Facts: questions have one right answer, overwriting changes it, and the synthetic prose stays out of the way."""

import random
import re
from itertools import pairwise

import pytest

from atlas_model.training.synthetic_prose import WORDS
from atlas_model.training.tasks import ALL_KINDS, Fact, Kind, World, chance_level
from atlas_model.training.vocabulary import (
    ATTRIBUTE_THINGS,
    ATTRIBUTES,
    FAVOURITES,
    LOCKED_SIDES,
    LOCKED_THINGS,
    NAMES,
    OBJECTS,
    PLACES,
)

BABI_NAMES = {"John", "Mary", "Sandra", "Daniel", "Fred", "Jeff", "Bill"}
BABI_PLACES = {"bedroom", "kitchen", "garden", "hallway", "bathroom", "office"}


def tell(seed: int, number: int, overwrite_probability: float = 0.0, kinds: tuple[Kind, ...] = ALL_KINDS) -> list[Fact]:
    world = World(random.Random(seed), kinds)
    return [world.tell(overwrite_probability) for _ in range(number)]


def test_a_fact_states_its_answer_and_what_the_question_names() -> None:
    for fact in tell(seed=0, number=400):
        assert re.search(rf"\b{fact.answer}\b", fact.text), fact
        for name in (fact.key.subject, fact.key.aspect):
            assert name in fact.text, fact
            assert name in fact.question, fact
        assert not re.search(rf"\b{fact.answer}\b", fact.question), fact


def test_without_overwriting_every_fact_has_its_own_key() -> None:
    facts = tell(seed=1, number=300)
    assert len({fact.key for fact in facts}) == 300


def test_an_overwriting_fact_has_the_same_key_and_another_answer_and_the_latest_holds() -> None:
    world = World(random.Random(2), [Kind.ATTRIBUTE, Kind.CODE])
    answers: dict[object, list[str]] = {}
    for _ in range(300):
        fact = world.tell(overwrite_probability=0.5)
        answers.setdefault(fact.key, []).append(fact.answer)
    assert len(answers) < 200
    assert all(a != b for told in answers.values() for a, b in pairwise(told))
    assert {fact.key: fact.answer for fact in world.latest} == {key: told[-1] for key, told in answers.items()}


def test_a_world_is_told_by_its_seed() -> None:
    assert tell(3, 50, 0.3) == tell(3, 50, 0.3)
    assert tell(3, 50, 0.3) != tell(4, 50, 0.3)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_world_of_one_kind_tells_only_that_and_says_how_likely_a_guess_is(kind: Kind) -> None:
    facts = tell(5, 40, kinds=(kind,))
    assert {fact.key.kind for fact in facts} == {kind}
    assert 1 / max(fact.num_answers for fact in facts) <= chance_level(kind) <= 1 / min(f.num_answers for f in facts)
    assert chance_level(kind) < 0.1


def test_a_world_that_has_run_out_of_keys_says_so() -> None:
    world = World(random.Random(6), [Kind.LOCATION])
    for _ in NAMES:
        world.tell()
    with pytest.raises(ValueError, match="no keys are left"):
        world.tell()


def test_the_benchmark_s_names_and_places_are_among_ours() -> None:
    assert set(NAMES) >= BABI_NAMES
    assert set(PLACES) >= BABI_PLACES
    assert set(OBJECTS) >= {"apple", "football", "milk"}


@pytest.mark.parametrize("words", [NAMES, PLACES, OBJECTS, ATTRIBUTE_THINGS, LOCKED_SIDES, LOCKED_THINGS])
def test_no_word_is_in_a_list_twice(words: tuple[str, ...]) -> None:
    assert len(set(words)) == len(words)


def test_synthetic_prose_uses_no_word_of_a_key_or_an_answer() -> None:
    values = {value for values in (*ATTRIBUTES.values(), *FAVOURITES.values()) for value in values}
    assert not WORDS & {*NAMES, *PLACES, *OBJECTS, *ATTRIBUTE_THINGS, *LOCKED_THINGS, *values}
