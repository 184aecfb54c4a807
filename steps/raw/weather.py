"""`weather-reports`: SYNTHETIC reports on the weather with a line that sums each up, by seeded chance."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from steps.raw import RawData, RawSample

REPORTS, SEED = 900, 20_262
PLACES = [
    "the coast", "the valley", "the north", "the islands", "the hills", "the city", "the border", "the lakes",
]  # fmt: skip
DAYS = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
SKIES = {
    "rain": [
        "showers are expected to last all day",
        "heavy rain moves in from the west",
        "it will pour for hours",
    ],
    "sun": ["not a cloud is in sight", "the sky stays bright and clear", "there will be plenty of sunshine"],
    "snow": [
        "white flakes fall from noon on",
        "up to ten inches of snow may settle",
        "a blizzard is on its way",
    ],
    "fog": ["drivers will hardly see the road", "thick mist hangs over the fields", "the haze will not lift"],
}
WINDS = {
    "calm": ["hardly a leaf moves", "the air is still"],
    "storm": ["gusts tear at the roofs", "gales blow"],
}
FILLERS = [
    "the office thanks all its readers", "last week was much the same", "more is to come in the evening",
    "farmers have asked for a longer outlook", "the record of 1954 still stands",
]  # fmt: skip


def weather_reports() -> RawData:
    """900 reports of four or five sentences; the target names the sky, the place, the day and the wind."""
    return RawData(_reports())


def _reports() -> Iterator[RawSample]:
    random, seen = np.random.default_rng(SEED), set[str]()

    def one(choices: list[str]) -> str:
        return str(random.choice(choices))

    while len(seen) < REPORTS:
        place, day, sky, wind = one(PLACES), one(DAYS), one(list(SKIES)), one(list(WINDS))
        sentences = [f"on {day} we look at {place}", one(SKIES[sky]), one(WINDS[wind]), one(FILLERS)]
        if random.random() < 0.5:
            sentences.append(one(FILLERS))
        head, *rest = sentences
        text = ". ".join([head, *(rest[at] for at in random.permutation(len(rest)))]) + "."
        if text in seen:
            continue
        seen.add(text)
        yield RawSample(
            f"made by seeded chance, number {len(seen)}",
            text,
            sky,
            id=f"report-{len(seen):04}",
            target=f"{sky} and {wind} for {place} on {day}",
        )
