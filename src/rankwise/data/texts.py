"""Four domains of sentences rated by twenty people each (Hutto & Gilbert, ICWSM 2014; MIT licence).

Movie review snippets (10.6k), New York Times editorial sentences (5.2k), tweets (4.2k) and Amazon review sentences
(3.7k), each with the mean of its ratings from -4 (extremely negative) to 4 (extremely positive). They come from the
vaderSentiment 3.3.2 source archive.

* ``polarity``: negative (0) or positive (1); sentences whose mean rating lies within ±0.5 are dropped as neutral.
* ``rating``: the mean itself.

Amazon and NYT sentences name their document; a movie snippet or tweet is its own document. Of sentences that are equal
after case folding only the first is kept, so none can stand on both sides of a split.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator

from rankwise.archive import Archive, members
from rankwise.data.corpus import Corpus
from rankwise.nearest import unknown

NEUTRAL_BAND = 0.5
DOMAINS = {
    "movies": "movieReviewSnippets",
    "nyt": "nytEditorialSnippets",
    "tweets": "tweets",
    "amazon": "amazonReviewSnippets",
}
DOCUMENTS = ("amazon", "nyt")
_ARCHIVE = Archive(
    package="vaderSentiment",
    version="3.3.2",
    sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    source=True,
)
_OUTER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"


def documents(domain: str) -> Corpus:
    """Running text: the sentences of each Amazon review or NYT editorial in their order, a text a document, unlabelled.

    Raises
    ------
    ValueError
        A domain whose texts are single sentences.

    Examples
    --------
    >>> from rankwise.data import documents
    >>> documents("tweets")  # documents("nyt") gives whole editorials
    Traceback (most recent call last):
    ValueError: ...amazon, nyt...
    """
    if domain not in DOCUMENTS:
        raise unknown("text", domain, (*DOCUMENTS, "papers"))
    sentences: dict[str, list[tuple[int, str]]] = {}
    for name, _, text in _rows(domain):
        document, _, number = name.partition("_")
        sentences.setdefault(document, []).append((int(number), text))
    texts = [" ".join(text for _, text in sorted(parts)) for parts in sentences.values()]
    return Corpus(name=f"text:{domain}", texts=texts, labels=[], groups=[f"{domain}/{d}" for d in sentences])


def sentiment(domain: str, *, task: str = "polarity") -> Corpus:
    """One domain as a `Corpus`; fetched on first use and cached.

    Raises
    ------
    ValueError
        Unknown domain or task (the nearest is offered), or a row of the file that is not id, number, text.

    Examples
    --------
    >>> from rankwise.data import sentiment
    >>> sentiment("movie")  # sentiment("movies").split() gives train, validation and test
    Traceback (most recent call last):
    ValueError: ...movies...
    """
    if domain not in DOMAINS:
        raise unknown("sentiment domain", domain, DOMAINS)
    if task not in ("polarity", "rating"):
        raise unknown("sentiment task", task, ("polarity", "rating"))
    texts, ratings, groups = [], [], []
    seen: set[str] = set()
    for name, rating, text in _rows(domain):
        if text.casefold() in seen:
            continue
        seen.add(text.casefold())
        texts.append(text)
        ratings.append(rating)
        groups.append(f"{domain}/{name.partition('_')[0]}")
    corpus = Corpus(name=f"sentiment:{domain}", texts=texts, labels=ratings, groups=groups)
    if task == "rating":
        return corpus
    polar = corpus.where(lambda i: abs(ratings[i]) > NEUTRAL_BAND)
    return Corpus(
        name=polar.name,
        texts=polar.texts,
        labels=[int(r > 0) for r in polar.labels],
        groups=polar.groups,
        label_names=["negative", "positive"],
    )


def lexicon() -> dict[str, float]:
    """Words and their mean rating, -4 to 4, by ten people each (the lexicon of VADER)."""
    names = ["vaderSentiment-3.3.2/vaderSentiment/vader_lexicon.txt"]
    path = members(_ARCHIVE, names, folder="data/lexicon-3.3.2") / "vader_lexicon.txt"
    rows = (line.split("\t") for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    return {row[0]: float(row[1]) for row in rows}


def _rows(domain: str) -> Iterator[tuple[str, float, str]]:
    """Id, mean rating and text of every row of a domain's file."""
    names = [f"{_OUTER}::hutto_ICWSM_2014/{stem}_GroundTruth.txt" for stem in DOMAINS.values()]
    path = members(_ARCHIVE, names, folder="data/sentiment-3.3.2") / f"{DOMAINS[domain]}_GroundTruth.txt"
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        row = line.split("\t")
        if len(row) != 3:
            raise ValueError(f"{path}, line {number}: 3 tab-separated columns expected, found {len(row)}")
        yield row[0], float(row[1]), re.sub(r"\s+", " ", html.unescape(row[2])).strip()
