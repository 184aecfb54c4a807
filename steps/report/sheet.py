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
        label: its class in the data, or a word for what is in it.
        predicted: the class that the best arm says; None where it was not asked, or there are no classes.
        split: train, validation or test.
        thumbnail: a small PNG, JPEG or WebP; None for texts.
        text: its text, or the name of its file.
        score: what it scores, in words, where nothing is right or wrong as a whole; empty otherwise.
    """

    x: float
    y: float
    label: str
    predicted: str | None
    split: str
    thumbnail: bytes | None = None
    text: str = ""
    score: str = ""


@dataclass(frozen=True)
class Mistake:
    """A test item that the best arm got wrong.

    Attributes:
        id: of the sample.
        label: its class in the data.
        predicted: what the best arm says.
        confidence: probability of `predicted`, 0 to 1.
        thumbnail: a small PNG, JPEG or WebP; None for texts.
        tokens: word pieces with their weight: above 0 where they speak for `predicted`; empty for images and
            for pairs of texts.
        text: its text, or the name of its file.
    """

    id: str
    label: str
    predicted: str
    confidence: float
    thumbnail: bytes | None = None
    tokens: list[tuple[str, float]] = field(default_factory=list)
    text: str = ""


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
class Told:
    """A test item beside what the best run said of it, where nothing is right or wrong as a whole.

    Attributes:
        id: of the sample.
        worst: one of those that score worst; else one that scores as most do.
        score: what it scores, in words.
        truth: in a few words.
        predicted: in a few words.
        pictures: captions with pictures, PNG, JPEG or WebP.
        marks: a text in pieces, each with what it is: "" plain, "right", "missed" or "wrong".
    """

    id: str
    worst: bool
    score: str
    truth: str
    predicted: str
    pictures: tuple[tuple[str, bytes], ...] = ()
    marks: tuple[tuple[str, str], ...] = ()


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
        cases: the worst test items and typical ones, where the task has no classes.
    """

    comparison: dict[str, Any]
    curves: dict[str, list[list[float]]]
    points: list[MapPoint] = field(default_factory=list)
    mistakes: list[Mistake] = field(default_factory=list)
    suspects: list[Suspect] = field(default_factory=list)
    duplicates: list[tuple[str, str]] = field(default_factory=list)
    cases: list[Told] = field(default_factory=list)
