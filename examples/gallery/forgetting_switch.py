"""Which texts does a request to forget film reviews switch off, and how do routers turn likeness into a switch?"""

from pathlib import Path

import numpy as np

from rankwise.continual.unlearning.detector import Detector
from rankwise.continual.unlearning.features import LayerEncoder
from rankwise.continual.unlearning.router import ROUTERS, switch
from rankwise.data import sentiment
from rankwise.report.plots.continual import switches
from rankwise.report.plots.shared import save

encoder = LayerEncoder()
states = {
    domain: encoder(sentiment(domain, task="rating").head(300).texts)[0] for domain in ("movies", "nyt", "tweets")
}
detector = Detector.fit(states["movies"][:200])
unseen = {"film reviews, unseen": states["movies"][200:], "newspaper": states["nyt"], "tweets": states["tweets"]}
likeness = {name: detector.calibration.likeness(detector.scores(h)) for name, h in unseen.items()}
w = np.linspace(0, 1, 501)
curves = {name: ROUTERS[name](w, low=0.2, high=0.5, top=1.0) for name in ("soft", "released", "released-tofu")}
save(switches({n: switch(p) for n, p in likeness.items()}, w, curves), Path("forgetting_switch.png"))
