"""Images, one label each."""

from __future__ import annotations

from steps.tasks.of_classes import OfClasses
from steps.tasks.of_images import OfImages


class ImageClassification(OfClasses, OfImages):
    """Task `image-classification`."""

    name = "image-classification"
