"""Which texts are written in another language than most."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

# Shorter texts are not told apart reliably; of longer ones the beginning says it.
LEAST, MOST = 100, 1000
# What is less certain is not told of.
CERTAIN = 0.99


def others(texts: Sequence[str]) -> list[str | None]:
    """For each text in another language than most of them: that language (ISO 639), else None.

    Found by py3langid, a naive Bayes classifier on sequences of bytes (Lui and Baldwin, langid.py, 2012).

    Args:
        texts: of which those of at least 100 characters are judged, by their first 1,000.
    """
    long = {place: text[:MOST] for place, text in enumerate(texts) if len(text) >= LEAST}
    if not long:
        return [None] * len(texts)
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    found = {place: identifier.classify(text) for place, text in long.items()}
    most, _ = Counter(language for language, _ in found.values()).most_common(1)[0]
    odd = {
        place: language for place, (language, share) in found.items() if language != most and share >= CERTAIN
    }
    return [odd.get(place) for place in range(len(texts))]
