"""Clusters of a table as they are called: what is written, what is said, what is refused."""

import csv
import json
from functools import partial

import numpy as np
import pytest
from safetensors.numpy import load_file

import commanded
from rankwise.dynamics import low_rank_mixture, subspace_error

called, refused = (partial(f, "dynamics", "subspaces") for f in (commanded.called, commanded.refused))
SAMPLE = low_rank_mixture(8, 2, n_clusters=2, samples=40, noise=0.05)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    place = tmp_path_factory.mktemp("work")
    rows = np.column_stack([SAMPLE.X.numpy() * 3 + 5, SAMPLE.labels.numpy()]).round(5)
    head = [*(f"x{i}" for i in range(8)), "kind", "name"]
    with (place / "data.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(
            [head, *([*map(float, r[:8]), f"class {int(r[8])}", f"row {i}"] for i, r in enumerate(rows))]
        )
    done = called(place / "data.csv", "--leave-out", "name", "--known", "kind", "--out", place / "out", "--json")
    assert done.exit_code == 0, done.output
    (place / "said.json").write_text(done.stdout)
    return place


def test_number_and_dimensions_are_found_and_rows_are_told_apart(work):
    said = json.loads((work / "said.json").read_text(), parse_constant=pytest.fail)
    assert (said["clusters"], said["dims"], said["sizes"]) == (2, [2, 2], [40, 40])
    assert said["agreement"] == {"adjusted_rand": 1.0, "accuracy": 1.0}
    assert min(said["explained"]) > 0.95
    assert said["columns"] == [f"x{i}" for i in range(8)]
    assert {c["n_clusters"] for c in said["choices"]} >= {1, 2, 3}


def test_what_is_written_holds_each_rows_cluster_and_the_subspaces(work):
    with (work / "out/labels.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [r["row"] for r in rows] == [str(i) for i in range(1, 81)]
    kept = load_file(work / "out/subspaces.safetensors")
    assert subspace_error([kept["basis.0"], kept["basis.1"]], SAMPLE.bases).max() < 0.15
    X = SAMPLE.X.numpy() * 3 + 5
    for row, x in zip(rows, X, strict=True):
        k = int(row["cluster"])
        centred, U = x - kept[f"mean.{k}"], kept[f"basis.{k}"]
        assert float(row["distance"]) == pytest.approx(np.linalg.norm(centred - U @ (U.T @ centred)), abs=1e-3)
    page = (work / "out/report.html").read_text()
    assert "adjusted Rand index 1.000" in page
    assert "BIC" in page
    assert (work / "out/spectra.png").stat().st_size > 5000


def test_a_table_is_printed_with_what_to_be_wary_of(work):
    told = called(work / "data.csv", "--leave-out", "name,kind", "--k", 2, "--dim", "2,1", "--method", "k-subspaces",
                  "--standardise", "--through-origin", "--starts", 3, "--out", work / "other")  # fmt: skip
    assert told.exit_code == 0, told.output
    assert "variance inside" in told.stdout
    assert "nan" not in told.stdout
    kept = load_file(work / "other/subspaces.safetensors")
    np.testing.assert_allclose(kept["scale"], (SAMPLE.X.numpy() * 3).std(0), atol=1e-4)
    assert not kept["mean.0"].any()
    limited = called(work / "data.csv", "--leave-out", "name,kind", "--max-clusters", 1, "--out", work / "third")
    assert "allow more" in limited.stderr


def test_the_same_command_writes_the_same_labels(work):
    for name in ("a", "b"):
        args = "--leave-out", "name,kind", "--k", 3, "--dim", 1, "--seed", 5, "--out", work / name
        assert called(work / "data.csv", *args).exit_code == 0
    assert (work / "a/labels.csv").read_bytes() == (work / "b/labels.csv").read_bytes()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--k", "many"), "--k 'many': whole numbers, or auto"),
        (("--k", "2,3"), "one number, or auto"),
        (("--k", "0"), "k=0: at least 1"),
        (("--dim", "0"), "at least 1 are accepted"),
        (("--dim", "2,3"), "2 numbers for k=auto"),
        (("--dim", "1.5"), "--dim '1.5'"),
        (("--method", "kmeans"), "method"),
        (("--method", "k-subspaces", "--k", "2"), "give k and dim"),
        (("--leave-out", "nmae"), "did you mean name"),
        (("--leave-out", "name,kind", "--known", "kind"), "column 'kind' is left out and judges"),
        (("--k", "2", "--max-clusters", "3"), "max_clusters=3 is for a number of clusters that is chosen, not for k=2"),
        (("--seed", str(2**32)), "seed=4294967296: from 0 to 4294967295"),
        (("--leave-out", "name", "--known", "kinds"), "did you mean kind"),
        (("--leave-out", "kind"), "line 2: column 'name' is not a finite number: 'row 0'; leave the column out"),
        (("--leave-out", "name,kind", "--k", "2", "--dim", "8"), "from 1 to 7"),
    ],
)
def test_what_is_not_accepted_is_refused_by_name(work, args, said):
    assert said in refused(work / "data.csv", "--out", work / "never", *args)
    assert not (work / "never").exists()


def test_empty_and_other_files_are_refused(work, tmp_path):
    (tmp_path / "empty.csv").write_text("a,b\n")
    assert "has no rows" in refused(tmp_path / "empty.csv", "--out", tmp_path / "x")
    assert "no such data file" in refused(tmp_path / "none.csv", "--out", tmp_path / "x")
    assert "file type" in refused(work / "said.txt", "--out", tmp_path / "x")
    (tmp_path / "gap.csv").write_text("a,b\n1,2\n3,\n")
    assert "line 3: column 'b'" in refused(tmp_path / "gap.csv", "--out", tmp_path / "x")
