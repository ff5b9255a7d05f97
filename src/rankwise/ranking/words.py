"""Texts as words: nothing is downloaded, and every step can be replaced by one of your own.

Words are runs of letters (and digits), in lower case; a character of a script that is written without spaces is a word.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection
from functools import lru_cache

__all__ = ["STOPWORDS", "content_words", "plain_words", "singular"]

_ALONE = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # Thai, Lao, Japanese, Chinese
_WORDS = re.compile(rf"[{_ALONE}]|(?:(?![{_ALONE}])[^\W_])+")
_LETTERS = re.compile(rf"[{_ALONE}]|(?:(?![{_ALONE}])[^\W\d_])+")

# English words that carry grammar rather than matter, and what an apostrophe parts from them
_GRAMMAR = """
a about above after again against all also am an and any are aren as at be because been before being below between both
but by can could couldn d did didn do does doesn doing don down during each few for from further had hadn has hasn have
haven having he her here hers herself him himself his how i if in into is isn it its itself just ll m may me might more
most must my myself no nor not now of off on once only or other our ours ourselves out over own re s same shall she
should shouldn so some such t than that the their theirs them themselves then there these they this those through to too
under until up upon ve very was wasn we were weren what when where which while who whom whose why will with won would
wouldn you your yours yourself yourselves
"""
STOPWORDS = frozenset(_GRAMMAR.split())


def plain_words(text: str) -> list[str]:
    """Words and numbers in lower case; of English text those of the package rouge-score.

    Examples
    --------
    >>> from rankwise.ranking import plain_words
    >>> plain_words("Trump's 2 rule-changes")
    ['trump', 's', '2', 'rule', 'changes']
    """
    return _WORDS.findall(unicodedata.normalize("NFKC", text).lower())


def content_words(
    text: str, *, stopwords: Collection[str] = STOPWORDS, lemma: Callable[[str], str] | None = None
) -> list[str]:
    """Words without digits and stopwords, each by its lemma.

    Parameters
    ----------
    stopwords : collection of str
        Words that are dropped, in lower case; empty for languages other than English.
    lemma : callable, optional
        The form that stands for a word, such as a stemmer's; `singular` by default, ``str`` leaves words as they are.

    Examples
    --------
    >>> from rankwise.ranking import content_words
    >>> content_words("The 2 rules, and their critics")
    ['rule', 'critic']
    """
    found = _LETTERS.findall(unicodedata.normalize("NFKC", text).lower())
    return [(lemma or singular)(word) for word in found if word not in stopwords]


@lru_cache(maxsize=100_000)
def singular(word: str) -> str:
    """An English word without the ending of the plural (Harman, How effective is suffixing?, JASIS 1991).

    Examples
    --------
    >>> from rankwise.ranking import singular
    >>> [singular(w) for w in ("cities", "rules", "bus", "pass")]
    ['city', 'rule', 'bus', 'pass']
    """
    if len(word) < 4:
        return word
    if word.endswith("ies"):
        return word if word.endswith(("eies", "aies")) else word[:-3] + "y"
    if word.endswith("es"):
        return word if word.endswith(("aes", "ees", "oes")) else word[:-1]
    return word[:-1] if word.endswith("s") and not word.endswith(("us", "ss")) else word
