"""A table's rows as clusters that are subspaces: fitted, described, and written."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score

from rankwise.data.tables import number, read_table, write_rows
from rankwise.dynamics.subspaces import IdentifiabilityWarning, SubspaceClustering
from rankwise.files import whole_file, whole_folder, write_json
from rankwise.jobs.early import SUBSPACES, check_subspaces
from rankwise.nearest import unknown

Array = NDArray[np.float64]
NEAR = 0.01  # of the best distances: a start that ended so near found the same
RARE = 0.5  # of the restarts that end where the best does; below that share more may find better


@dataclass(frozen=True, kw_only=True)
class Clustered:
    """What was found in a table.

    Attributes
    ----------
    model : SubspaceClustering
        The fit.
    columns : list of str
        The columns that were used.
    sizes : list of int
        Rows of each cluster.
    explained : list of float
        Share of each cluster's variance that lies in its subspace.
    distances : ndarray
        ``(n,)``: of each row to its cluster's subspace, in the units of the fit.
    agreement : dict
        With known classes: ``adjusted_rand`` and ``accuracy``, clusters matched to classes one to one; else empty.
    notes : list of str
        What to be wary of.
    """

    model: SubspaceClustering
    columns: list[str]
    sizes: list[int]
    explained: list[float]
    distances: Array
    agreement: dict[str, float]
    notes: list[str]

    def table(self) -> tuple[list[str], list[list[str]]]:
        """A row a cluster, for people."""
        rows = zip(self.sizes, self.model.dims_.tolist(), self.explained, strict=True)
        return ["cluster", "rows", "dimension", "variance inside"], [
            [str(k), f"{n:,}", str(d), f"{share:.1%}" if n else "-"] for k, (n, d, share) in enumerate(rows)
        ]

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "clusters": self.model.n_clusters_, "dims": self.model.dims_.tolist(), "sizes": self.sizes,
            "explained": self.explained, "spectra": [s.tolist() for s in self.model.spectra_],
            "columns": self.columns, "choices": self.model.choices_, "restarts": self.model.restarts_,
            "score": self.model.path_[-1], "agreement": self.agreement, "notes": self.notes,
        }  # fmt: skip


def cluster_table(
    path: Path,
    out: Path,
    *,
    k: int | None = None,
    dim: Sequence[int] | None = None,
    method: str = "em",
    through_origin: bool = False,
    standardise: bool = False,
    leave_out: Sequence[str] = (),
    known: str | None = None,
    max_clusters: int | None = None,
    n_init: int = 10,
    seed: int = 0,
    page: Callable[[Clustered, Path], None] | None = None,
) -> Clustered:
    """Cluster the rows of a table and write ``out``.

    Parameters
    ----------
    path : Path
        A table of numbers.
    out : Path
        ``labels.csv`` (row, cluster, distance), ``subspaces.safetensors`` (``mean.k`` and ``basis.k``, in the units of
        the columns divided by ``scale``), ``results.json``.
    k : int, optional
        Clusters; chosen by default.
    dim : sequence of int, optional
        One dimension for all clusters, or one each; chosen by default.
    method : {"em", "k-subspaces"}
        As of `rankwise.dynamics.SubspaceClustering`.
    through_origin : bool
        Subspaces go through the origin instead of their rows' mean.
    standardise : bool
        Divide each column by its deviation first.
    leave_out : sequence of str
        Columns that are not used.
    known : str, optional
        A column of classes, which only judges.
    max_clusters : int, optional
        Most clusters, where they are chosen; 10 by default.
    n_init, seed : int
        Starts; of the starts.
    page : callable, optional
        Called with the result and the folder, before it appears.

    Raises
    ------
    ValueError
        Options or data that are not accepted.
    """
    check_subspaces(
        path, out, k=k, dim=dim, method=method, max_clusters=max_clusters, n_init=n_init, seed=seed,
        leave_out=leave_out, known=known,
    )  # fmt: skip
    X, columns, classes = read_numbers(path, leave_out, known)
    told = {
        "k": k, "dim": None if dim is None else list(dim), "method": method, "through_origin": through_origin,
        "standardise": standardise, "leave_out": list(leave_out), "known": known, "max_clusters": max_clusters,
        "n_init": n_init, "seed": seed,
    }  # fmt: skip
    with whole_folder(out, made_by=SUBSPACES, inputs=[path], told=told) as draft:
        scale = np.where((deviation := X.std(0)) > 0, deviation, 1.0) if standardise else np.ones(X.shape[1])
        asked: Any = "auto" if dim is None else int(dim[0]) if len(dim) == 1 else [int(d) for d in dim]
        model = SubspaceClustering(
            "auto" if k is None else k, asked, method=method, affine=not through_origin,
            max_clusters=max_clusters or 10, n_init=n_init, random_state=seed,
        )  # fmt: skip
        found = described(model, X / scale, columns, classes)
        _write(found, scale, draft)
        if page is not None:
            page(found, draft)
    return found


def described(
    model: SubspaceClustering, X: Array, columns: Sequence[str], classes: Sequence[str] | None = None
) -> Clustered:
    """Fit the rows and say what was found."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", IdentifiabilityWarning)
        model.fit(X)
    labels = model.labels_
    inside, total, distances = np.zeros(model.n_clusters_), np.zeros(model.n_clusters_), np.zeros(len(X))
    for k, U in enumerate(model.subspaces_):
        rows = X[labels == k] - model.means_[k]
        left = rows - rows @ U @ U.T
        distances[labels == k] = np.linalg.norm(left, axis=1)
        total[k], inside[k] = (rows**2).sum(), (rows**2).sum() - (left**2).sum()
    return Clustered(
        model=model, columns=list(columns), sizes=np.bincount(labels, minlength=model.n_clusters_).tolist(),
        explained=(inside / np.where(total > 0, total, 1)).tolist(), distances=distances,
        agreement={} if classes is None else agreement(labels, classes),
        notes=[str(w.message) for w in caught if issubclass(w.category, IdentifiabilityWarning)] + _notes(model),
    )  # fmt: skip


def _notes(model: SubspaceClustering) -> list[str]:
    notes, ended = [], model.restarts_
    if ended and (same := sum(r <= ended[0] * (1 + NEAR) for r in ended)) < RARE * len(ended):
        notes.append(f"{same} of {len(ended)} starts ended where the best did: more may find better (--starts)")
    if model.n_clusters == "auto" and model.n_clusters_ == model.max_clusters:
        notes.append(f"the best number of clusters is the largest tried, {model.max_clusters}: allow more")
    if not model.dims_.any():
        notes.append("no cluster has a direction of its own: the rows look alike in every direction")
    return notes


def agreement(labels: NDArray[np.int64], classes: Sequence[str]) -> dict[str, float]:
    """Adjusted Rand index, and accuracy with clusters matched to classes one to one."""
    names, of = np.unique(np.asarray(classes), return_inverse=True)
    counts = np.zeros((int(labels.max()) + 1, len(names)))
    np.add.at(counts, (labels, of), 1)
    rows, matched = linear_sum_assignment(-counts)
    return {
        "adjusted_rand": float(adjusted_rand_score(of, labels)),
        "accuracy": float(counts[rows, matched].sum() / len(labels)),
    }


def read_numbers(
    path: Path, leave_out: Sequence[str] = (), known: str | None = None
) -> tuple[Array, list[str], list[str] | None]:
    """A table's rows ``(n, D)``, the names of their columns, and the cells of the column of classes."""
    table, columns, rows, classes = read_table(path), [], [], []
    for at, row in table.rows:
        if not columns:
            for name in (*leave_out, *([] if known is None else [known])):
                if name not in row:
                    raise ValueError(f"{path}: {unknown('column', name, map(str, row))}")
            columns = [c for c in row if c not in leave_out and c != known]
        if known is not None:
            classes.append(table.text(at, row, known))
        rows.append([_number(table, at, row, c) for c in columns])
    if not rows or not columns:
        raise ValueError(f"{path} has no {'columns of numbers' if rows else 'rows'}")
    twice = [c for c, n in Counter(leave_out).items() if n > 1]
    if twice:
        raise ValueError(f"column '{twice[0]}' is left out twice")
    return np.array(rows), columns, None if known is None else classes


def _number(table: Any, at: int, row: dict[str, Any], column: str) -> float:
    try:
        return number(table.text(at, row, column), decimal_comma=table.decimal_comma)
    except ValueError as error:
        if "column" in str(error):
            raise
        raise ValueError(
            f"{table.at(at)}: column '{column}' {error}; leave the column out (--leave-out), or fill it"
        ) from error


def _write(found: Clustered, scale: Array, out: Path) -> None:
    from safetensors.numpy import save_file

    model = found.model
    rows = zip(model.labels_.tolist(), found.distances.tolist(), strict=True)
    write_rows(out / "labels.csv", ({"row": i, "cluster": k, "distance": far} for i, (k, far) in enumerate(rows, 1)))
    tensors = {f"basis.{k}": np.ascontiguousarray(U) for k, U in enumerate(model.subspaces_)}
    tensors |= {f"mean.{k}": np.ascontiguousarray(m) for k, m in enumerate(model.means_)} | {"scale": scale}
    with whole_file(out / "subspaces.safetensors") as draft:
        save_file(tensors, draft, metadata={"columns": json.dumps(found.columns)})
    write_json(out / "results.json", found.as_json())
