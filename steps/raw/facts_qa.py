"""`facts-qa`: synthetic paragraphs with questions, some of which they do not answer.

Made by seeded chance from the lists below; none of these buildings stands anywhere. The test split has kinds
of buildings, names and towns of its own, and half of its questions are put as none elsewhere is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from steps.raw import RawData, RawSample

SEED = 2026
# Paragraphs of each split, and questions on each.
SIZES = {"train": 40, "validation": 12, "test": 28}
# What a paragraph tells, and how many of these facts are asked for; one more is asked for in vain.
TOLD, ASKED = 3, 2
ANSWERABLE, UNANSWERABLE = "answerable", "unanswerable"


@dataclass(frozen=True)
class Fact:
    """Something to tell of a building.

    Attributes:
        told: sentences, with {it} the building and {a} what is asked for.
        asked: questions of all splits.
        asked_in_test: questions of the test split alone.
    """

    told: tuple[str, ...]
    asked: tuple[str, ...]
    asked_in_test: tuple[str, ...]


FACTS = {
    "year": Fact(
        ("{it} was built in {a}.", "Work on {it} was finished in {a}."),
        ("When was {it} built?", "In which year was {it} finished?"),
        ("What year does {it} date from?",),
    ),
    "person": Fact(
        ("It was designed by {a}.", "The plans were drawn by {a}."),
        ("Who designed {it}?", "Who was the architect of {it}?"),
        ("Who drew the plans of {it}?",),
    ),
    "town": Fact(
        ("It stands on a hill above {a}.", "It lies on the outskirts of {a}."),
        ("Where is {it}?", "Near which town is {it}?"),
        ("In which place can {it} be found?",),
    ),
    "material": Fact(
        ("Its walls are made of {a}.", "The whole building is of {a}."),
        ("What is {it} made of?", "Which material was used for {it}?"),
        ("Of what are the walls of {it}?",),
    ),
    "height": Fact(
        ("It is {a} metres high.", "Its roof is {a} metres above the ground."),
        ("How high is {it}?", "How many metres high is {it}?"),
        ("What is the height of {it}?",),
    ),
    "day": Fact(
        ("Visitors may come every {a}.", "Guided tours are held each {a}."),
        ("On which day can one visit {it}?", "When are visitors let in at {it}?"),
        ("On what day of the week do tours of {it} take place?",),
    ),
    "owner": Fact(
        ("Today it belongs to {a}.", "Since the war it has been owned by {a}."),
        ("Who owns {it}?", "To whom does {it} belong?"),
        ("Who is the owner of {it}?",),
    ),
}
KINDS = (
    "mill", "lighthouse", "bridge", "chapel", "castle", "museum", "theatre", "library", "tower",
    "monastery", "station", "market hall", "observatory", "brewery", "school", "palace", "granary",
    "bathhouse",
)  # fmt: skip
ADJECTIVES = (
    "old", "white", "upper", "lower", "great", "little", "round", "red", "northern", "royal", "green",
)  # fmt: skip
FIRST = (
    "Anna", "Boris", "Clara", "Daniel", "Elena", "Greta", "Jonas", "Karin", "Oscar", "Rosa", "Tomas",
    "Wanda",
)  # fmt: skip
LAST = (
    "Adler", "Becker", "Castillo", "Dubois", "Eriksson", "Gruber", "Jensen", "Kowalski", "Moreau",
    "Novak", "Petrov", "Weber",
)  # fmt: skip
TOWNS = (
    "Altenau", "Birkfeld", "Carlow", "Dornach", "Eisenerz", "Falun", "Granville", "Hallein", "Imst",
    "Jesenice", "Kalmar", "Lannion", "Murnau", "Narvik", "Orleans", "Pirna", "Rovinj", "Sligo",
)  # fmt: skip
MATERIALS = (
    "red brick", "grey granite", "oak", "yellow sandstone", "concrete", "white marble", "iron", "slate",
)  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
OWNERS = (
    "the city council", "a family of bakers", "the university", "the railway company",
    "a group of artists", "the local diocese", "an insurance firm", "the rowing club", "the state",
)  # fmt: skip


def facts_qa() -> RawData:
    """240 synthetic questions on 80 paragraphs in three splits."""
    return RawData(_samples(np.random.default_rng(SEED)))


def _samples(rng: np.random.Generator) -> Iterator[RawSample]:
    names = [f"the {adjective} {kind}" for kind in KINDS for adjective in ADJECTIVES]
    # Kinds of buildings stay on one side, whatever they are called besides.
    border = len(ADJECTIVES) * (len(KINDS) * 2 // 3)
    sides = [rng.permutation(border), border + rng.permutation(len(names) - border)]
    for split, size in SIZES.items():
        test = split == "test"
        for at in range(size):
            name = names[sides[test][at if test or split == "train" else SIZES["train"] + at]]
            yield from _paragraph(name, f"{split}-{at:02}", split, rng)


def _paragraph(name: str, place: str, split: str, rng: np.random.Generator) -> Iterator[RawSample]:
    """The questions on one paragraph."""
    keys = list(FACTS)
    order = [keys[int(at)] for at in rng.permutation(len(keys))]
    told, others = order[:TOLD], order[TOLD:]
    context, answers = "", dict[str, tuple[int, str]]()
    for key in told:
        answer = _value(key, rng, test=split == "test")
        before, _, after = _one(FACTS[key].told, rng).partition("{a}")
        before = before.replace("{it}", name)
        # A paragraph says first what it is about.
        before = _about(before, name) if not context else before
        sentence = before[0].upper() + before[1:]
        context += " " * bool(context)
        answers[key] = len(context) + len(sentence), answer
        context += sentence + answer + after.replace("{it}", name)
    asked = [*(told[int(at)] for at in rng.permutation(TOLD)[:ASKED]), others[0]]
    for key in asked:
        new = split == "test" and rng.random() < 0.5
        question = _one(FACTS[key].asked_in_test if new else FACTS[key].asked, rng).format(it=name)
        yield RawSample(
            f"facts-qa: {place} {key}",
            question,
            ANSWERABLE if key in answers else UNANSWERABLE,
            id=f"{place}-{key}",
            split=split,
            group=place,
            pair=context,
            target={"answers": [list(answers[key])] if key in answers else []},
        )


def _about(sentence: str, name: str) -> str:
    """The sentence with the building's name in the place of `It`."""
    for pronoun, said in (("It ", f"{name} "), ("Its ", f"{name}'s "), ("it ", f"{name} ")):
        if sentence.startswith(pronoun) or (pronoun == "it " and f" {pronoun}" in sentence):
            return sentence.replace(pronoun, said, 1)
    return sentence if name in sentence else f"Of {name} we know this: {sentence[0].lower()}{sentence[1:]}"


def _value(key: str, rng: np.random.Generator, *, test: bool) -> str:
    """What is told; names and towns of the test split are its own."""

    def part(names: tuple[str, ...]) -> tuple[str, ...]:
        border = len(names) * 2 // 3
        return names[border:] if test else names[:border]

    if key == "year":
        return str(rng.integers(1400, 1990))
    if key == "height":
        return str(rng.integers(8, 95))
    if key == "person":
        return f"{_one(part(FIRST), rng)} {_one(part(LAST), rng)}"
    return _one({"town": part(TOWNS), "material": MATERIALS, "day": DAYS, "owner": OWNERS}[key], rng)


def _one(values: tuple[str, ...], rng: np.random.Generator) -> str:
    return values[int(rng.integers(len(values)))]
