"""Scores of generated answers: exact match and token F1 over normalised text, the best over all accepted answers.

Normalisation is SQuAD's: lower case, no punctuation, no articles, single spaces. An empty answer is wrong: scorers that
look for one text inside the other find it everywhere. Only what a model said is scored, never its prompt.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

PUNCTUATION = set(string.punctuation + "‘’´`")


def normalised(text: str) -> str:
    plain = "".join(letter for letter in text.lower() if letter not in PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", plain).split())


def exact_match(said: str, accepted: Sequence[str]) -> bool:
    """Whether it is one of the accepted answers."""
    return bool(answer := normalised(said)) and answer in map(normalised, accepted)


def contains(said: str, accepted: Sequence[str]) -> bool:
    """Whether one of the accepted answers stands in it, as whole words."""
    words = f" {normalised(said)} "
    return any(f" {answer} " in words for answer in map(normalised, accepted) if answer)


def contained(said: str, accepted: Sequence[str]) -> bool:
    """Whether an accepted answer stands in it, or it in one of them, as whole words: a lenient match, which LLM-KICK uses."""
    return contains(said, accepted) or bool(normalised(said) and any(contains(answer, [said]) for answer in accepted))


def f1(said: str, accepted: Sequence[str]) -> float:
    """Harmonic mean of precision and recall over words."""
    return max((_f1(normalised(said).split(), normalised(answer).split()) for answer in accepted), default=0.0)


def _f1(said: list[str], answer: list[str]) -> float:
    shared = sum((Counter(said) & Counter(answer)).values())
    return 2 * shared / (len(said) + len(answer)) if shared else 0.0


def recall(said: str, accepted: Sequence[str]) -> float:
    """Share of an answer's words that are said."""
    return max((_share(normalised(answer).split(), normalised(said).split()) for answer in accepted), default=0.0)


def precision_in(said: str, knowledge: str) -> float:
    """K-precision: share of what is said that stands in the text it was to be drawn from (arXiv 2307.16877)."""
    return _share(normalised(said).split(), normalised(knowledge).split())


def _share(words: list[str], among: list[str]) -> float:
    """Share of ``words`` that are ``among`` the others, each as often as it stands there."""
    return sum((Counter(words) & Counter(among)).values()) / len(words) if words else 0.0
