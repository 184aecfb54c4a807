"""`towns-ner`: synthetic sentences on people, places and firms, to try token classification on.

Made by seeded chance from the lists below, so nothing in them is news of anyone. No name of the test split is
in train or validation, and a third of its sentences are built as none there: who learns names or sentences by
heart does not win.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from steps.raw import RawData, RawSample

SEED = 2026
# Sentences of each split.
SIZES = {"train": 100, "validation": 50, "test": 100}

FIRST = (
    "Anna", "Boris", "Clara", "Daniel", "Elena", "Farid", "Greta", "Hassan", "Ingrid", "Jonas", "Karin",
    "Liam", "Maria", "Nadia", "Oscar", "Priya", "Quentin", "Rosa", "Samuel", "Tomas", "Ursula", "Victor",
    "Wanda", "Xavier", "Yasmin", "Zofia", "Amara", "Bruno", "Chloe", "Dmitri", "Emeka", "Fatima",
    "Gustav", "Helena", "Ivan", "Julia",
)  # fmt: skip
LAST = (
    "Adler", "Becker", "Castillo", "Dubois", "Eriksson", "Ferrari", "Gruber", "Hoffmann", "Ivanova",
    "Jensen", "Kowalski", "Larsen", "Moreau", "Novak", "Okafor", "Petrov", "Quist", "Rossi", "Schmidt",
    "Tanaka", "Ueda", "Vargas", "Weber", "Young", "Zimmer", "Andersen", "Bianchi", "Costa", "Dahl",
    "Engel", "Fischer", "Garcia", "Haddad", "Ito", "Jansen", "Keller",
)  # fmt: skip
PLACES = (
    "Berlin", "Lisbon", "Oslo", "Vienna", "Prague", "Dublin", "Madrid", "Athens", "Helsinki", "Warsaw",
    "Zurich", "Porto", "Lyon", "Turin", "Bergen", "Graz", "Gdansk", "Cork", "Seville", "Tampere",
    "New York", "Cape Town", "Buenos Aires", "Norway", "Portugal", "Kenya", "Chile", "Japan", "Canada",
    "Ireland", "Hungary", "Morocco", "Peru", "Iceland", "Vietnam", "Greece",
)  # fmt: skip
STEMS = (
    "Nordwind", "Alpine", "Meridian", "Bluewater", "Ironbridge", "Solaris", "Redwood", "Harbour",
    "Summit", "Vertex", "Lakeside", "Falcon", "Granite", "Aurora", "Pioneer", "Silverline", "Evergreen",
    "Crescent", "Beacon", "Cobalt", "Orchard", "Delta", "Horizon", "Keystone", "Lumina", "Monarch",
    "Northgate", "Oakfield", "Polaris", "Quarry",
)  # fmt: skip
TRADES = (
    "Foods", "Energy", "Logistics", "Bank", "Software", "Motors", "Insurance", "Airlines", "Textiles",
    "Steel",
)  # fmt: skip

# {PER}, {LOC} and {ORG} are filled in.
COMMON = (
    "{PER} moved from {LOC} to {LOC} last spring.",
    "The board of {ORG} has chosen {PER} as its new head.",
    "{ORG} opened a second plant near {LOC}.",
    "According to {PER}, the harbour of {LOC} will be dredged next year.",
    "Shares of {ORG} fell after the talks with {ORG} had failed.",
    "In {LOC}, {PER} met the workers who had been on strike for a week.",
    "{PER} studied law in {LOC} before joining {ORG}.",
    "A spokesman for {ORG} declined to comment on the matter.",
    "Heavy rain closed the road between {LOC} and {LOC} on Monday.",
    "The prize went to {PER}, a teacher from {LOC}.",
    "{ORG} and {ORG} plan to share their ticket offices in {LOC}.",
    "After ten years at {ORG}, {PER} left to write a book.",
    "The mayor of {LOC}, {PER}, thanked the fire brigade.",
    "Tourists from {LOC} filled the hotels again this summer.",
    "{PER} and {PER} won the doubles in straight sets.",
    "The court ruled that {ORG} must repay its customers in {LOC}.",
    "Nobody was hurt when the old mill burned down on Sunday.",
    "The museum stays closed until the roof has been repaired.",
    "Prices of wheat and maize rose for the third month in a row.",
    "Children under twelve travel free on all night trains.",
    "Most of the apples had been picked before the frost came.",
    "The committee will publish its report in the autumn.",
    "Two bridges are to be painted before the winter.",
    "Sales of bicycles have doubled within five years.",
    "The library lends out tools as well as books.",
    "Doctors advise to drink more water on hot days.",
    "A lorry lost its load of sand on the motorway.",
    "The last tram leaves shortly after midnight.",
    "Engineers at {ORG} found the fault within an hour.",
    "{LOC} will host the games, not {LOC}, the jury said.",
    "Critics praised {PER} for her calm and careful playing.",
    "The new ferry links {LOC} with the islands twice a day.",
)
# Of the test split alone.
HELD_OUT = (
    "Farmers around {LOC} blame {ORG} for the dry wells.",
    "The letter, signed by {PER}, reached {LOC} only in March.",
    "{ORG} hired {PER} away from its rival {ORG}.",
    "Snow is expected in {LOC} by the end of the week.",
    "Before the match in {LOC}, {PER} twisted an ankle.",
    "The orchestra plays without a conductor tonight.",
    "Rents have risen faster than wages since the crisis.",
    "The old cinema is to become a hall for climbers.",
    "Beekeepers hope for a dry and sunny month.",
    "Unions accuse {ORG} of dismissing staff by text message.",
    "For {PER}, the road back to the top was long.",
)
# The lists that a name is made of, one word of each.
Lists = tuple[tuple[str, ...], ...]
_PARTS = re.compile(r"(\{[A-Z]+\})")


def towns_ner() -> RawData:
    """250 synthetic sentences in three splits, with people, places and firms."""
    return RawData(_samples(np.random.default_rng(SEED)))


def _samples(rng: np.random.Generator) -> Iterator[RawSample]:
    seen: set[str] = set()
    for split, size in SIZES.items():
        pool = _pool(held_out=split == "test")
        made = 0
        while made < size:
            templates = HELD_OUT if split == "test" and made % 3 == 0 else COMMON
            text, spans = _filled(templates[rng.integers(len(templates))], pool, rng)
            if text in seen:
                continue
            seen.add(text)
            yield RawSample(
                f"towns-ner: {split} {made}",
                text,
                min((str(label) for _, _, label in spans), default="none"),
                id=f"{split}-{made:03}",
                split=split,
                target={"spans": spans},
            )
            made += 1


def _pool(*, held_out: bool) -> dict[str, Lists]:
    """What names are made of: the last third of every list is for the test split alone."""

    def part(names: tuple[str, ...]) -> tuple[str, ...]:
        border = len(names) * 2 // 3
        return names[border:] if held_out else names[:border]

    return {"PER": (part(FIRST), part(LAST)), "LOC": (part(PLACES),), "ORG": (part(STEMS), TRADES)}


def _filled(
    template: str, pool: dict[str, Lists], rng: np.random.Generator
) -> tuple[str, list[list[int | str]]]:
    """A sentence and its spans."""
    text, spans = "", list[list[int | str]]()
    for part in _PARTS.split(template):
        if not _PARTS.fullmatch(part):
            text += part
            continue
        label = part.strip("{}")
        name = _name(label, pool, rng)
        spans.append([len(text), len(text) + len(name), label])
        text += name
    return text, spans


def _name(label: str, pool: dict[str, Lists], rng: np.random.Generator) -> str:
    """Some people go by their last name alone, and some firms by one that a person might have."""
    words = [names[rng.integers(len(names))] for names in pool[label]]
    chance = rng.random()
    if label == "PER" and chance < 0.3:
        return words[-1]
    if label == "ORG" and chance < 0.5:
        last = pool["PER"][-1]
        owner = last[rng.integers(len(last))]
        return words[0] if chance < 0.25 else f"{owner} {words[-1]}"
    return " ".join(words)
