import pytest

from rankwise.data import DOMAINS, sentiment
from rankwise.data.texts import lexicon


@pytest.mark.parametrize(
    ("domain", "at_least"), [("movies", 10_500), ("nyt", 5_100), ("tweets", 4_100), ("amazon", 3_600)]
)
def test_every_domain_is_there_and_rated(domain, at_least):
    corpus = sentiment(domain, task="rating")
    assert len(corpus) >= at_least
    assert all(-4 <= y <= 4 for y in corpus.labels)
    assert not any("&lt;" in t for t in corpus.texts)


def test_polarity_drops_the_neutral_band_and_keeps_the_sign():
    rated = dict(zip(sentiment("nyt", task="rating").texts, sentiment("nyt", task="rating").labels, strict=True))
    polar = sentiment("nyt")
    assert polar.label_names == ["negative", "positive"]
    for text, label in zip(polar.texts, polar.labels, strict=True):
        assert abs(rated[text]) > 0.5
        assert label == (rated[text] > 0)


@pytest.mark.parametrize("domain", list(DOMAINS))
def test_no_document_and_no_text_straddles_a_split(domain):
    splits = sentiment(domain, task="rating").split()
    for i, a in enumerate(splits):
        assert len(a) > 100
        for b in splits[i + 1 :]:
            assert not set(a.groups) & set(b.groups)
            assert not {t.casefold() for t in a.texts} & {t.casefold() for t in b.texts}


def test_splits_and_limits_are_the_same_every_time():
    one, two = sentiment("tweets").split(), sentiment("tweets").split()
    assert one == two
    assert one.train.head(50).texts == two.train.head(50).texts
    assert len(one.train.head(50)) == 50


def test_unknown_names_offer_the_nearest():
    with pytest.raises(ValueError, match="did you mean movies"):
        sentiment("movie")
    with pytest.raises(ValueError, match="polarity"):
        sentiment("movies", task="polarty")


def test_the_lexicon_rates_words_as_people_do():
    words = lexicon()
    assert len(words) > 7000
    assert words["charming"] > 1 > -1 > words["dull"]
