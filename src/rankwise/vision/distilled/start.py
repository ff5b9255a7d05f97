"""Where the head's adapter starts: at the least squares from the base's features to the teachers' logits.

    min over D:  Σ |D x - (t - W₀ x)|² + α |D|²,     BA = V Vᵀ D,   V the first directions of the answers D x

``x`` are the base's unit features ``(n, d)``, ``t`` the teachers' logits ``(n, classes)``; α is the one of the least
error on pictures that are left out, one at a time. Of all products of the rank, the one that is kept changes the
ridge's answers least. A narrow cone of features has almost all of its length along one direction: steps of a gradient
would learn that one first and the others, which tell classes apart, hardly at all.
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.linear_model import RidgeCV
from torch import Tensor

STRENGTHS = np.logspace(-6, 3, 19)
MOST = 8192  # views that the start is read from


def least_squares(features: Tensor, taught: Tensor, rows: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """``A (rank, d)`` and ``B (classes, rank)``, B's columns orthonormal.

    Parameters
    ----------
    features : Tensor
        ``(n, d)``.
    taught : Tensor
        Logits ``(n, classes)``.
    rows : Tensor
        W₀ ``(classes, d)``, to which the fit is drawn.
    rank : int
        Of the product, at most ``min(classes, d)``.

    Examples
    --------
    >>> import torch
    >>> from rankwise.vision.distilled.start import least_squares
    >>> x = torch.eye(4).repeat(5, 1)
    >>> down, up = least_squares(x, 2 * x, torch.eye(4), rank=4)
    >>> torch.allclose(up @ down, torch.eye(4), atol=1e-3)
    True
    """
    x, apart = features.double(), (taught - features @ rows.T).double()
    found = RidgeCV(alphas=STRENGTHS, fit_intercept=False).fit(x.cpu().numpy(), apart.cpu().numpy())
    change = torch.from_numpy(found.coef_).to(x)
    gram = change @ (x.T @ x) @ change.T  # of the answers, (classes, classes)
    up = torch.linalg.eigh(gram).eigenvectors.flip(-1)[:, :rank]
    return (up.T @ change).float(), up.float()
