"""Truncated SVD: the leading ``k`` singular triplets by the fastest sound algorithm for the shape.

``A ≈ U diag(S) Vh`` with ``U: (..., m, k)``, ``S: (..., k)``, ``Vh: (..., k, n)``; leading dimensions are a batch of
equal-shaped matrices, decomposed together.

* ``gram``: eigendecomposition of the smaller of ``AᵀA`` and ``AAᵀ``, in float64. Exact for float32 and bfloat16 input
  down to ``σ ≈ 1e-8 σ₁``, since squaring costs half of float64's digits, which is all that float32 carries.
* ``randomized``: range finder with power iterations that keeps every block it has seen, ``[AΩ, AAᵀAΩ, …]`` (block
  Krylov: Musco & Musco, 2015, Algorithm 2; Halko, Martinsson & Tropp, 2011, keep the last). The error it leaves is
  known exactly on the way, ``‖A - QQᵀA‖_F² = ‖A‖_F² - ‖QᵀA‖_F²``, so it stops when another round would not lower it.
* ``full``: LAPACK's SVD, the choice for float64 input at high rank.

What people get wrong: comparing randomized singular *vectors* where two singular values nearly coincide. Compare the
subspaces (`rankwise.spectral.principal_angles`) or the approximation error.

All functions take real matrices of any finite size (complex ones, and NaN, are errors): a matrix whose squares would
leave its precision's range is divided by a power of four first.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from rankwise.spectral.accepted import exact_products, finite, scaled
from rankwise.spectral.symmetric import gram, symmetric_eigh

Method = Literal["auto", "gram", "randomized", "full"]
_AROUND = 32  # directions on either side of a cut that rounding may mix
_SMALL = 3e-4  # of λ₁: an eigenvalue above it is right to 1e-3 in float32
_CANCELS = 1e-4  # of ‖A‖²: what is left is taken entry by entry below it, where the difference has no digits
_INDEPENDENT = 1e-5  # of L's diagonal: above it a Cholesky factor in float64 leaves Q orthonormal to 1e-6
_PASSES, _MOST = 4, 0.5  # times that rows are freed of others: at least twice, until they keep most of their length
_SEPARATE = 1e-4  # of σ₁: above it the columns of A V / S are orthonormal to 1e-8, (σ₁/σ)² times float64's precision


class TruncatedSVD(NamedTuple):
    """Leading singular triplets and the error they leave.

    Attributes
    ----------
    U : Tensor
        ``(..., m, k)``, orthonormal columns, dtype of the computation (float32, or float64 for float64 input).
    S : Tensor
        ``(..., k)``, the singular values, descending.
    Vh : Tensor
        ``(..., k, n)``, orthonormal rows, dtype as U's.
    error : Tensor
        ``(...)``, float64: ``‖A - U diag(S) Vh‖_F / ‖A‖_F``, computed, not estimated.

    Examples
    --------
    >>> import torch
    >>> from rankwise.spectral import truncated_svd
    >>> U, S, Vh, error = truncated_svd(torch.randn(5, 20, 8), rank=3)  # five matrices at once
    >>> U.shape, S.shape, Vh.shape, error.shape
    (torch.Size([5, 20, 3]), torch.Size([5, 3]), torch.Size([5, 3, 8]), torch.Size([5]))
    """

    U: Tensor
    S: Tensor
    Vh: Tensor
    error: Tensor


@exact_products
def truncated_svd(
    A: Tensor,
    rank: int,
    *,
    method: Method = "auto",
    oversample: int = 8,
    max_power_iterations: int = 6,
    tol: float = 2e-3,
    start: Tensor | None = None,
    seed: int = 0,
) -> TruncatedSVD:
    """Leading ``rank`` singular triplets of each matrix of a batch.

    Parameters
    ----------
    A : Tensor
        ``(..., m, n)``; float64, float32, bfloat16 or float16, any device.
    rank : int
        How many triplets are wanted, between 1 and ``min(m, n)``.
    method : {"auto", "gram", "randomized", "full"}
        ``auto`` takes ``randomized`` when ``8 · rank <= min(m, n)`` and the matrix is larger than 128, else ``gram``
        (``full`` for float64 input).
    oversample, max_power_iterations, tol
        For ``randomized``: directions of a block beyond ``rank`` (default 8), the most power
        iterations, and the relative decrease of the squared error that the next must promise.
    start : Tensor, optional
        For ``randomized``: ``(..., k, n)`` rows that already lie near the wanted right singular vectors (those of a
        matrix that changed a little); random directions fill up the rest.
    seed : int
        For ``randomized``: decides the test matrix. Default 0.

    Raises
    ------
    ValueError
        Rank out of range, unknown method, a start of another width, complex or integer entries, NaN or Inf (also where
        the largest singular value is beyond the precision's range).

    Examples
    --------
    >>> import torch
    >>> from rankwise.spectral import truncated_svd
    >>> A = torch.diag(torch.tensor([3.0, 2.0, 1.0]))
    >>> svd = truncated_svd(A, rank=2)
    >>> torch.allclose(svd.S, torch.tensor([3.0, 2.0])), round(float(svd.error), 3)  # 1 / √14 is left
    (True, 0.267)
    >>> torch.allclose((svd.U * svd.S) @ svd.Vh, torch.diag(torch.tensor([3.0, 2.0, 0.0])), atol=1e-5)
    True
    """
    A, scale = scaled(A, "truncated_svd")
    _check_rank(rank, A)
    small = min(A.shape[-2:])
    if method == "auto":
        exact: Method = "full" if A.dtype == torch.float64 else "gram"
        method = "randomized" if small > 128 and 8 * rank <= small else exact
    total = _squared_norm(A)
    if method == "full":
        U, S, Vh = torch.linalg.svd(A, full_matrices=False)
        U, S, Vh = U[..., :rank], S[..., :rank], Vh[..., :rank, :]
    elif method == "gram":
        U, S, Vh = _gram(A, rank)
    elif method == "randomized":
        if start is not None and start.shape[-1] != A.shape[-1]:
            raise ValueError(f"start has rows of {start.shape[-1]} entries for matrices of {A.shape[-1]} columns")
        width = min(rank + oversample, small)
        U, S, Vh = _randomized(A, rank, width, max_power_iterations, tol, start, seed, total)
    else:
        raise ValueError(f"method={method!r}; one of 'auto', 'gram', 'randomized', 'full' is accepted")
    error = _left(A, U, S, Vh, total)
    S = (S.double() * scale[..., None]).to(S.dtype)
    return TruncatedSVD(U, finite(S, "truncated_svd: the singular values"), Vh, error)


def _check_rank(rank: int, A: Tensor) -> None:
    if not 1 <= rank <= min(A.shape[-2:]):
        raise ValueError(f"rank={rank} is outside 1..{min(A.shape[-2:])} for matrices of shape {tuple(A.shape[-2:])}")


def _left(A: Tensor, U: Tensor, S: Tensor, Vh: Tensor, total: Tensor) -> Tensor:
    """``‖A - U diag(S) Vh‖_F / ‖A‖_F``."""
    left = total - S.double().square().sum(-1)
    total = total.clamp(min=torch.finfo(torch.float64).tiny)
    left = left / total
    if bool((left < _CANCELS).any()):
        rest = A.double() - (U.double() * S.double().unsqueeze(-2)) @ Vh.double()
        left = torch.where(left < _CANCELS, torch.linalg.matrix_norm(rest).square() / total, left)
    return left.sqrt()


@exact_products
def leading_right_vectors(A: Tensor, rank: int) -> Tensor:
    """Orthonormal ``(n, rank)`` that span A's leading right singular directions, from ``AᵀA`` in A's own precision.

    What the squaring costs turns the subspace only among directions whose σ nearly coincide. Those on both sides of the
    cut are therefore told apart anew, in float64, within the space they span together (Rayleigh-Ritz): the subspace is
    then within about ``2e-8 / gap`` radians of that of a float64 SVD, ``gap`` being the relative distance between the
    two σ at the cut. For tall matrices, any real dtype and device.

    Examples
    --------
    >>> import torch
    >>> from rankwise.spectral import leading_right_vectors
    >>> V = leading_right_vectors(torch.diag(torch.tensor([3.0, 2.0, 1.0])), rank=2)
    >>> torch.allclose(V @ V.mT, torch.diag(torch.tensor([1.0, 1.0, 0.0])), atol=1e-5)
    True
    """
    A, _ = scaled(A, "leading_right_vectors", single=True)
    _check_rank(rank, A)
    n = A.shape[1]
    V = symmetric_eigh(gram(A), leading=min(n, rank + _AROUND))[1].flip(1)
    around = slice(max(0, rank - _AROUND), rank + _AROUND)
    if rank < n:
        # what float32 lacks in orthonormality would be taken for a difference
        Q = _orthonormal(V[:, around].mT.double()).mT
        AQ = A.double() @ Q
        V[:, around] = (Q @ torch.linalg.eigh(AQ.mT @ AQ)[1].flip(1)).to(V.dtype)
    return V[:, :rank]


@exact_products
def spectrum_and_directions(A: Tensor) -> tuple[Tensor, Tensor]:
    """All singular values, and the singular vectors of the smaller side, about as accurate as LAPACK's float32 SVD.

    One eigenproblem of the Gram matrix in float32; values below ``0.017 σ₁``, too small for it, are taken anew in
    float64 within the space they span together (Rayleigh-Ritz), which float32 does find, but for a small rotation.

    Parameters
    ----------
    A : Tensor
        ``(m, n)``, any real dtype and device; float64 goes through LAPACK's SVD.

    Returns
    -------
    (Tensor, Tensor)
        ``(min(m, n),)`` descending, float64, and ``(min(m, n), min(m, n))`` a column a direction, float32 (float64 for
        float64 input).

    Examples
    --------
    >>> import torch
    >>> from rankwise.spectral import spectrum_and_directions
    >>> S, V = spectrum_and_directions(torch.randn(10, 4))  # the smaller side is the right one
    >>> S.shape, V.shape
    (torch.Size([4]), torch.Size([4, 4]))
    """
    A, scale = scaled(A, "spectrum_and_directions", single=True)
    if A.dtype == torch.float64:
        U, S, Vh = torch.linalg.svd(A, full_matrices=False)
        return S * scale, Vh.mT if A.shape[0] >= A.shape[1] else U
    tall = A if A.shape[0] >= A.shape[1] else A.mT
    values, V = symmetric_eigh(gram(tall))
    values = values.double()
    small = int((values < _SMALL * values[-1]).sum())
    if small:
        tall = tall.double()
        # the first-order rotation that frees the small directions from what is left in them of the large ones
        AV = tall @ V[:, :small].double()
        K = (V[:, small:].mT @ (tall.mT @ AV).float()) / values[small:, None].float()
        V[:, :small], V[:, small:] = V[:, :small] - V[:, small:] @ K, V[:, small:] + V[:, :small] @ K.mT
        AV = tall @ V[:, :small].double()
        values[:small], W = torch.linalg.eigh(AV.mT @ AV)
        V[:, :small] = V[:, :small] @ W.float()
    return values.flip(0).clamp(min=0).sqrt() * scale, V.flip(1)


@exact_products
def balanced_factors(W: Tensor, rank: int, *, directions: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``B: (m, k)`` and ``A: (k, n)`` with ``B A`` the best rank-k approximation, ``B = U √σ`` and ``A = √σ Vᵀ``.

    Computed as a projection, ``B A = W V Vᵀ`` (``U Uᵀ W`` for wide matrices), see `leading_right_vectors`.

    Parameters
    ----------
    W : Tensor
        ``(m, n)``, any real dtype and device.
    rank : int
        The rank k of the product, between 1 and ``min(m, n)``.
    directions : Tensor, optional
        Singular vectors of the smaller side, a column each, if they are known; at least ``rank`` of them.

    Examples
    --------
    >>> import torch
    >>> from rankwise.spectral import balanced_factors
    >>> W = torch.randn(10, 2) @ torch.randn(2, 6)  # of rank 2
    >>> B, A = balanced_factors(W, rank=2)
    >>> B.shape, A.shape, torch.allclose(B @ A, W, atol=1e-4)
    (torch.Size([10, 2]), torch.Size([2, 6]), True)
    """
    if W.dim() == 2 and W.shape[0] < W.shape[1]:
        B, A = balanced_factors(W.mT, rank, directions=directions)
        return A.mT, B.mT
    W, scale = scaled(W, "balanced_factors", single=True)
    _check_rank(rank, W)
    V = leading_right_vectors(W, rank) if directions is None else directions[:, :rank].to(W)
    WV, share = W @ V, scale.sqrt().to(W.dtype)
    root = WV.norm(dim=0).clamp(min=torch.finfo(W.dtype).tiny).sqrt()
    return WV / root * share, root[:, None] * share * V.mT


def singular_values(A: Tensor) -> Tensor:
    """All singular values, descending: ``(..., min(m, n))`` in float64, by the Gram matrix of the smaller side.

    Values below about ``1e-8 · σ₁`` are noise for float32 input; float64 input goes through LAPACK's SVD.

    Examples
    --------
    >>> import torch
    >>> from rankwise.spectral import singular_values
    >>> singular_values(torch.tensor([[0.0, 3.0], [4.0, 0.0]])).tolist()
    [4.0, 3.0]
    """
    A = finite(A, "singular_values")
    if A.dtype == torch.float64:
        return torch.linalg.svdvals(A)
    A = A.double()
    G = A @ A.mT if A.shape[-2] <= A.shape[-1] else A.mT @ A
    return torch.linalg.eigvalsh(G).flip(-1).clamp(min=0).sqrt()


@exact_products
def truncated_eigh(
    C: Tensor, rank: int, *, tol: float = 1e-6, max_restarts: int = 8, start: Tensor | None = None, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Leading ``rank`` eigenpairs of a symmetric positive semi-definite matrix, by restarted block Krylov iteration.

    Parameters
    ----------
    C : Tensor
        ``(d, d)``, symmetric, float64 where accuracy matters.
    rank : int
        How many pairs are wanted, between 1 and ``d``.
    tol : float
        Residual ``‖C v - λ v‖ / λ₁`` that every wanted pair must reach. Where it does not within ``max_restarts``, and
        for small ``d`` or large ``rank``, the full ``torch.linalg.eigh`` is used.
    start : Tensor, optional
        ``(k, d)`` rows that already lie near the wanted subspace.

    Returns
    -------
    (Tensor, Tensor)
        Eigenvalues ``(rank,)``, descending and clamped at zero, and eigenvectors as rows ``(rank, d)``.

    Examples
    --------
    >>> import torch
    >>> from rankwise.spectral import truncated_eigh
    >>> values, vectors = truncated_eigh(torch.diag(torch.tensor([1.0, 5.0, 3.0])), rank=2)
    >>> torch.allclose(values, torch.tensor([5.0, 3.0])), vectors.shape
    (True, torch.Size([2, 3]))
    """
    C = finite(C, "truncated_eigh")
    _check_rank(rank, C)
    if C.dtype == torch.float32 and C.device.type != "cpu":  # as in `symmetric_eigh`
        values, vectors = truncated_eigh(C.double(), rank, tol=tol, max_restarts=max_restarts, start=start, seed=seed)
        return values.float(), vectors.float()
    d = C.shape[-1]
    block, depth = rank + 10, 4
    if d > 512 and d > 2 * block * depth:
        generator = torch.Generator(device="cpu").manual_seed(seed)
        X = torch.randn(d, block, generator=generator, dtype=C.dtype).to(C.device)
        if start is not None:
            X[:, : len(start)] = start.mT.to(X)
        for _ in range(max_restarts):
            basis = [torch.linalg.qr(X).Q]
            for _ in range(depth - 1):
                basis.append(torch.linalg.qr(C @ basis[-1]).Q)
            Q = torch.linalg.qr(torch.cat(basis, 1)).Q
            CQ = C @ Q
            values, W = torch.linalg.eigh(Q.mT @ CQ)
            values, W = values.flip(0)[:block], W.flip(1)[:, :block]
            X, CX = Q @ W, CQ @ W
            residual = (CX - X * values)[:, :rank].norm(dim=0).max()
            if residual <= tol * values[0].clamp(min=torch.finfo(C.dtype).tiny):
                return values[:rank].clamp(min=0), X[:, :rank].mT.contiguous()
    values, vectors = torch.linalg.eigh(C)
    return values.flip(0)[:rank].clamp(min=0), vectors.flip(1)[:, :rank].mT.contiguous()


def _squared_norm(A: Tensor) -> Tensor:
    """‖A‖_F² in float64 without a float64 copy of A: float32 within a row, float64 across rows."""
    return torch.linalg.vector_norm(A, dim=-1).double().square().sum(-1)


def _gram(A: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    if A.shape[-2] < A.shape[-1]:
        V, S, Uh = _gram(A.mT, rank)
        return Uh.mT, S, V.mT
    D = A.double()
    values, V = torch.linalg.eigh(D.mT @ D)
    S, V = values.flip(-1)[..., :rank].clamp(min=0).sqrt(), V.flip(-1)[..., :rank]
    AV = D @ V
    if (S[..., -1] > _SEPARATE * S[..., 0]).all():
        return (AV / S.unsqueeze(-2)).to(A.dtype), S.to(A.dtype), V.mT.to(A.dtype)
    # QR where a σ is small or zero: the columns must still be orthonormal
    U, R = torch.linalg.qr(AV)
    U = U * torch.where(R.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).unsqueeze(-2)
    return U.to(A.dtype), S.to(A.dtype), V.mT.to(A.dtype)


def _randomized(A, rank: int, width: int, iterations: int, tol: float, start: Tensor | None, seed: int, total: Tensor):
    generator = torch.Generator(device="cpu").manual_seed(seed)
    omega = torch.randn(width, A.shape[-1], generator=generator, dtype=A.dtype).to(A.device)
    if start is not None:
        known = min(start.shape[-2], width)
        omega = omega.expand(*A.shape[:-2], -1, -1).clone()
        omega[..., :known, :] = start[..., :known, :].to(A)
    Q = _orthonormal(omega @ A.mT)  # rows, as all blocks here: products with few columns are several times slower
    if A.dtype == torch.float64:  # once is orthonormal to float32's digits
        Q = _orthonormal(Q)
    Z = Q @ A  # (rows of Q, n): A's image of the range found so far
    gram = _outer(Z, Z)
    left: list[Tensor] = []
    for step in range(iterations + 1):
        room = min(A.shape[-2:]) - Q.shape[-2]
        left.append((total - torch.linalg.eigvalsh(gram)[..., -rank:].sum(-1)).clamp(min=0))
        if step == iterations or room == 0 or _settled(left, tol, total):
            break
        Y = _beyond(Q, _orthonormal(Z[..., -width:, :])[..., :room, :] @ A.mT)
        new = Y @ A
        cross = _outer(Z, new)
        gram = torch.cat([torch.cat([gram, cross], -1), torch.cat([cross.mT, _outer(new, new)], -1)], -2)
        Q, Z = torch.cat([Q, Y], -2), torch.cat([Z, new], -2)
    values, W = torch.linalg.eigh(gram)
    S, W = values[..., -rank:].flip(-1).clamp(min=0).sqrt(), W[..., -rank:].flip(-1).mT.to(A.dtype)
    V = W @ Z / S.clamp(min=torch.finfo(A.dtype).tiny).to(A.dtype).unsqueeze(-1)
    return (W @ Q).mT, S.to(A.dtype), _orthonormal(V)


def _outer(X: Tensor, Y: Tensor) -> Tensor:
    """Products of all rows, in float64."""
    return X.double() @ Y.double().mT


def _settled(left: list[Tensor], tol: float, total: Tensor) -> bool:
    """Whether another round would lower what is left by less than ``tol`` of it: gains fall about geometrically."""
    if len(left) == 1:
        return False
    gain = left[-2] - left[-1]
    if len(left) > 2:
        before = (left[-3] - left[-2]).clamp(min=torch.finfo(torch.float64).tiny)
        gain = gain * (gain / before).clamp(max=1)
    return bool((gain <= tol * left[-1] + 1e-12 * total).all())


def _orthonormal(Y: Tensor) -> Tensor:
    """Q of ``Y = L Q``, in rows, L's diagonal positive."""
    found = _by_cholesky(Y)
    return _by_householder(Y) if found is None else found[0]


def _beyond(Q: Tensor, Y: Tensor) -> Tensor:
    """Orthonormal rows orthogonal to those of Q which span, with them, what Y spans."""
    for again in range(_PASSES):
        Y = Y - (Y @ Q.mT) @ Q
        found = _by_cholesky(Y)
        if found is None:  # Y adds fewer directions than it has rows: the rest must be orthogonal to Q as well
            break
        Y, left = found
        if again and left > _MOST:  # of unit rows: what rounding put into them along Q is gone
            return Y
    return _by_householder(torch.cat([Q, Y], -2))[..., Q.shape[-2] :, :]


def _by_cholesky(Y: Tensor) -> tuple[Tensor, float] | None:
    """`_orthonormal` in float64, and L's least diagonal entry; nothing where rows nearly coincide or vanish."""
    D = Y.double()
    L, failed = torch.linalg.cholesky_ex(_outer(Y, Y))
    diagonal = L.diagonal(dim1=-2, dim2=-1)
    if bool(failed.any()) or bool((diagonal.amin(-1) < _INDEPENDENT * diagonal.amax(-1)).any()):
        return None
    inverse = torch.linalg.solve_triangular(L, torch.eye(L.shape[-1]).to(L), upper=False)
    return (inverse @ D).to(Y.dtype), float(diagonal.min())


def _by_householder(Y: Tensor) -> Tensor:
    """`_orthonormal` of any rows: where they vanish, some direction orthogonal to all others."""
    Q, R = torch.linalg.qr(Y.mT)
    return Q.mT * torch.where(R.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(Q).unsqueeze(-1)
