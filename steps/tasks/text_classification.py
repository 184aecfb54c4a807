"""Texts, one label each."""

from __future__ import annotations

from steps.tasks.of_classes import OfClasses
from steps.tasks.of_texts import OfTexts


class TextClassification(OfClasses, OfTexts):
    """Task `text-classification`."""

    name = "text-classification"
