"""All that the report is made from: the comparison, and what is too large or too bulky for its JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class MapPoint:
    """One sample on the map of the embeddings.

    Attributes:
        x: across, in the units of the projection.
        y: up.
        label: its class in the data.
        predicted: what the best arm says; None where it was not asked.
        split: train, validation or test.
        thumbnail: a small PNG, JPEG or WebP; None for texts.
        text: its text, or the name of its file.
    """

    x: float
    y: float
    label: str
    predicted: str | None
    split: str
    thumbnail: bytes | None = None
    text: str = ""


@dataclass(frozen=True)
class Mistake:
    """A test item that the best arm got wrong.

    Attributes:
        id: of the sample.
        label: its class in the data.
        predicted: what the best arm says.
        confidence: probability of `predicted`, 0 to 1.
        thumbnail: a small PNG, JPEG or WebP; None for texts.
        tokens: word pieces with their weight: above 0 where they speak for `predicted`; empty for images.
    """

    id: str
    label: str
    predicted: str
    confidence: float
    thumbnail: bytes | None = None
    tokens: list[tuple[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Suspect:
    """A sample whose label is likely wrong.

    Attributes:
        id: of the sample.
        split: train, validation or test.
        label: its class in the data.
        suggested: the class that the network would give it.
        confidence: probability of `suggested`, 0 to 1.
        thumbnail: a small PNG, JPEG or WebP; None for texts.
        text: its text, or the name of its file.
    """

    id: str
    split: str
    label: str
    suggested: str
    confidence: float
    thumbnail: bytes | None = None
    text: str = ""


@dataclass(frozen=True)
class Sheet:
    """What `pages.report` shows.

    Attributes:
        comparison: as in comparison.json.
        curves: by arm, for each run the metric on validation after each epoch.
        points: the map of the embeddings.
        mistakes: the most confident first.
        suspects: the most suspicious first.
        duplicates: pairs of ids that are nearly the same sample.
    """

    comparison: dict[str, Any]
    curves: dict[str, list[list[float]]]
    points: list[MapPoint] = field(default_factory=list)
    mistakes: list[Mistake] = field(default_factory=list)
    suspects: list[Suspect] = field(default_factory=list)
    duplicates: list[tuple[str, str]] = field(default_factory=list)
