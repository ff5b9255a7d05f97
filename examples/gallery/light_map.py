"""A photograph against the light, the map that a network learned without pairs, and the photograph with its light."""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_sample_images

from rankwise.report.plots.shared import save
from rankwise.report.plots.vision import before_and_after
from rankwise.vision import BacklitEnhancer

photographs = load_sample_images().images
crops = [p[y : y + 96, x : x + 96] for p in photographs for y in range(0, 330, 96) for x in range(0, 540, 96)]
well, others = np.stack(crops[::2]), np.stack(crops[1::2])
y, x = np.mgrid[0:1:96j, 0:1:96j] - 0.5
shade = 1 - 0.85 / (1 + np.exp(20 * (np.hypot(x, y) - 0.4)))  # a foreground in its own shadow
dark = (others * shade[..., None]).astype(np.uint8)

enhancer = BacklitEnhancer("clip-cifar10", preset="small", rounds=2)
enhancer.fit(dark, well)

photograph = photographs[0][20:404, 100:484]
y, x = np.mgrid[0:1:384j, 0:1:384j] - 0.5
against = (photograph * (1 - 0.85 / (1 + np.exp(20 * (np.hypot(x, y) - 0.4))))[..., None]).astype(np.uint8)
figure = before_and_after(against, enhancer.illumination(against), enhancer.enhance(against))
save(figure, Path("light_map.png"))
