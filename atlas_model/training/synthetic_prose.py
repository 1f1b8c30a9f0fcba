"""Prose from a small grammar, for places without a corpus and as a share of the training's distractors.

Promises: no word that a fact's key or answer is made of, no sentence that looks like a fact. Leaves books to `prose`.
"""

import random
from collections.abc import Iterator

from atlas_model.training.prose import Sentence


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_PEOPLE = _words(
    """
    merchant sailor widow gardener soldier stranger traveller clerk painter cook shepherd doctor lawyer carpenter
    fisherman governess judge musician poet priest sergeant schoolmaster servant tailor watchman miner butler nurse
    printer barber uncle cousin neighbour grandmother captain bishop beggar landlord scholar blacksmith
    """
)
_ADJECTIVES = _words(
    """
    weary patient cheerful gloomy proud gentle stubborn curious nervous honest idle clever timid restless solemn pale
    thoughtful anxious merry silent careless faithful lonely generous foolish polite humble bitter eager drowsy
    """
)
_MATTERS = _words(
    """
    rumour quarrel promise lesson argument accident ceremony journey memory silence storm winter harvest rain thunder
    letter bargain mistake misfortune debt speech prayer wedding funeral dream holiday fever song proverb lawsuit
    shadow moonlight dust smoke echo river road hillside meadow sky evening morning
    """
)
_QUALITIES = _words(
    """
    long strange endless sudden bright quiet distant dreadful pleasant bitter terrible ordinary famous curious gentle
    peculiar unexpected tedious sorrowful splendid doubtful forgotten familiar harmless
    """
)
_ACTS = _words(
    """
    remembered described regretted praised feared admired dreaded mentioned ignored enjoyed blamed cursed avoided
    considered explained expected forgave imagined mocked pitied postponed questioned recalled suspected welcomed
    """
)
_MOODS = _words(
    """
    sighed laughed waited trembled whispered coughed nodded smiled hesitated listened slept shivered wept yawned
    blushed frowned paused wondered complained grumbled murmured stumbled
    """
)
_MANNERS = _words(
    """
    slowly quietly bravely gravely suddenly calmly sadly warmly coldly gladly bitterly politely carelessly patiently
    softly loudly reluctantly eagerly solemnly wearily honestly
    """
)
_TIMES = (
    "in those days",
    "towards midnight",
    "before dawn",
    "after supper",
    "all that summer",
    "for many years",
    "on the following day",
    "an hour later",
    "at last",
    "once or twice a week",
    "during the long voyage",
    "when the bells had stopped",
    "every now and again",
    "without any warning",
)
_TEMPLATES = (
    "The {adjective} {person} {act} the {quality} {matter}.",
    "{Time}, the {person} {mood} and {act} every {matter}.",
    "{Manner} and without a word the {person} {mood}, for no {matter} lasts for ever.",
    "Nobody {act} the {matter} more {manner} than the {adjective} {person}.",
    '"What a {quality} {matter}!" cried the {person}, and {mood} {manner}.',
    "It was a {quality} {matter}, and the {person} {mood} {time}.",
    "There had been some {quality} {matter} between the {person} and the {other}, which both of them {act}.",
    "If the {other} {mood}, the {person} {mood2} twice as {manner}.",
    "{Time} a {adjective} {person} {act} such a {matter}, but the {other} only {mood}.",
    "Neither the {person} nor the {adjective} {other} {act} that {quality} {matter} {time}.",
    '"You cannot mean it," said the {person} {manner}; "think of the {matter}."',
    "So it went on {time}: one {mood}, another {mood2}, and the {matter} was as {quality} as ever.",
    "Some {act} the {matter}, others {mood}, and a {adjective} {person} did both {time}.",
    "Of the {quality} {matter} there was little to tell, though the {person} {manner} tried.",
)

WORDS = frozenset((*_PEOPLE, *_ADJECTIVES, *_MATTERS, *_QUALITIES, *_ACTS, *_MOODS, *_MANNERS))


class SyntheticProse:
    """Endless sentences of the grammar, in paragraphs of two to eight."""

    def passage(self, rng: random.Random) -> Iterator[Sentence]:
        """Endless sentences; each is drawn by itself."""
        while True:
            num_sentences = rng.randint(2, 8)
            for i in range(num_sentences):
                yield Sentence(_sentence(rng), ends_paragraph=i == num_sentences - 1)


def _sentence(rng: random.Random) -> str:
    time, manner = rng.choice(_TIMES), rng.choice(_MANNERS)
    person, other = rng.sample(_PEOPLE, 2)
    mood, mood2 = rng.sample(_MOODS, 2)
    return rng.choice(_TEMPLATES).format(
        person=person,
        other=other,
        adjective=rng.choice(_ADJECTIVES),
        matter=rng.choice(_MATTERS),
        quality=rng.choice(_QUALITIES),
        act=rng.choice(_ACTS),
        mood=mood,
        mood2=mood2,
        manner=manner,
        Manner=manner.capitalize(),
        time=time,
        Time=time.capitalize(),
    )
