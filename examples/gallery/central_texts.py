"""How deep do tweets lie in a corpus of newspaper sentences, and how deep these themselves?"""

from pathlib import Path

from rankwise.data import sentiment
from rankwise.models.embedding import embed
from rankwise.prompting import depth_rank_test
from rankwise.report.plots.prompting import depths
from rankwise.report.plots.shared import save

first, second = (embed(sentiment(domain, task="rating").head(200).texts) for domain in ("nyt", "tweets"))
found = depth_rank_test(first, second)
save(depths(found.depths_f, found.depths_g, ["nyt", "tweets"]), Path("central_texts.png"))
