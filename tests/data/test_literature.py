from rankwise.data import load, papers


def test_papers_are_whole_texts_in_the_order_of_their_lists():
    corpus = papers()
    assert len(corpus) == 250
    assert len(set(corpus.groups)) == 250
    assert corpus.groups[:2] == ["P06-1112", "2020.acl-main.528"]
    assert corpus.texts[0].startswith("Exploring Correlation of Dependency Relation Paths for Answer Extraction\n")
    assert min(map(len, corpus.texts)) > 9_000


def test_papers_are_read_by_name():
    assert load("text:papers", task="causal-lm").fingerprint() == papers().fingerprint()
