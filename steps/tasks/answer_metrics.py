"""What answers are judged by: exact match and F1 as the official script of SQuAD 2.0 has them. No torch.

Rajpurkar, Jia and Liang, Know What You Don't Know: Unanswerable Questions for SQuAD, 2018. For questions that
have an answer these are the metrics of SQuAD 1.1 too, but where an answer is nothing but an article or signs.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

_ARTICLES = re.compile(r"\b(a|an|the)\b", re.UNICODE)
_NO_SIGNS = str.maketrans("", "", string.punctuation)


def normalised(text: str) -> str:
    """In lower case, without ASCII punctuation, English articles and further blanks."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_SIGNS)).split())


def exact(answer: str, said: str) -> float:
    """1 where both are the same when normalised."""
    return float(normalised(answer) == normalised(said))


def f1(answer: str, said: str) -> float:
    """Harmonic mean of precision and recall of words, each as often as it is there."""
    gold, found = normalised(answer).split(), normalised(said).split()
    if not gold or not found:
        # No answer is right where there is none, and nowhere else.
        return float(gold == found)
    same = sum((Counter(gold) & Counter(found)).values())
    # As the official script: adding up first would round otherwise.
    precision, recall = same / len(found), same / len(gold)
    return 2 * precision * recall / (precision + recall) if same else 0.0


def best(metric: Callable[[str, str], float], answers: Sequence[str], said: str) -> float:
    """The best over all answers that are right; none at all is the empty one."""
    gold = [answer for answer in answers if normalised(answer)] or [""]
    return max(metric(answer, said) for answer in gold)


def scores(answers: Sequence[Sequence[str]], said: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """Each question's F1 and exact match, shape (questions,)."""
    pairs = list(zip(answers, said, strict=True))
    return {
        name: np.array([best(metric, right, one) for right, one in pairs], dtype=np.float64)
        for name, metric in (("squad_f1", f1), ("exact_match", exact))
    }
