"""Pairs of texts, one label each: does the one follow from the other, do they say the same."""

from __future__ import annotations

from steps.tasks.of_classes import OfClasses
from steps.tasks.of_texts import OfPairs


class TextPairClassification(OfClasses, OfPairs):
    """Task `text-pair-classification`."""

    name = "text-pair-classification"
