import numpy as np

from rankwise.report.page import render
from rankwise.report.plots.shared import heat_maps, layer_grid, save
from rankwise.report.plots.tuning import loss_curves, score_versus_parameters
from rankwise.report.tables import METRICS, comparison, count, markdown, score, size


def results(seeds=2):
    def trial(accuracy):
        return {
            "status": "done",
            "scores": {"a": {"score": accuracy}, "b": {"score": accuracy - 0.1}},
            "loss_curve": [[1, 0.7], [2, 0.5]],
            "ranks": {"l.0.q": 2, "l.1.q": 3},
            "mass": {},
        }

    cost = {
        "trainable_parameters": 82_900,
        "head_parameters": 770,
        "adapter_bytes": 345_000,
        "peak_memory_bytes": 5e7,
        "setup_seconds": 1.0,
    }
    spread = {"mean": 0.8, "std": 0.01, "min": 0.79, "max": 0.81, "n": seeds}
    done = {
        "name": "lora",
        "title": "LoRA",
        "status": "done",
        "message": "",
        "cost": cost,
        "seconds": {"mean": 9.0},
        "scores": {"a": spread, "b": spread},
        "trials": [trial(0.79), trial(0.81)],
    }
    failed = {"name": "bitfit", "title": "BitFit", "status": "diverged", "message": "the loss is nan", "trials": []}
    return {
        "config": {"task": "classification", "seeds": seeds},
        "in_domain": "a",
        "out_of_domain": ["b"],
        "methods": [done, failed],
    }


def test_table_has_a_row_a_method_and_shows_the_failed_one():
    header, rows = comparison(results())
    assert rows[0] == ["LoRA", "82.9k", "337KB", "48MB", "10s", "80.0±1.0", "80.0±1.0"]
    assert rows[1][4] == "diverged"
    assert len(header) == len(rows[0]) == len(rows[1])
    assert markdown(header, rows).count("\n") == 4


def test_the_score_of_every_task_can_be_shown():
    from rankwise.jobs.adapt.config import DEFAULTS

    assert set(METRICS) == set(DEFAULTS)
    polar = results() | {"config": {"task": "text-to-label", "seeds": 2}}
    assert comparison(polar) == comparison(results())


def test_units():
    assert [count(n) for n in (7, 1500, 2_000_000)] == ["7", "1.5k", "2.0M"]
    assert [size(n) for n in (10, 2048, 50 * 2**20, 2**30)] == ["10B", "2.0KB", "50MB", "1.0GB"]
    assert score({"mean": None, "std": 0, "n": 0}, METRICS["classification"]) == "-"


def test_layer_grid_places_values_by_block_and_projection():
    grid, rows, columns = layer_grid({"m.0.q": 1, "m.0.v": 2, "m.1.q": 3})
    assert (rows, columns) == (["0", "1"], ["q", "v"])
    np.testing.assert_array_equal(grid, [[1, 2], [3, np.nan]])


def test_figures_hold_what_they_show():
    figure = score_versus_parameters(results())
    assert [a.get_title() for a in figure.axes] == ["in domain: a", "out of domain: b"]
    assert figure.axes[0].get_xscale() == "log"
    assert len(loss_curves(results()).axes[0].lines) == 1
    assert heat_maps({"t": {"m.0.q": 1.0, "m.1.q": 2.0}}, label="rank").axes[0].get_title() == "t"


def test_scales_of_powers_are_labelled_with_numbers():
    figure = score_versus_parameters(results())
    figure.canvas.draw()
    labels = [t.get_text() for axes in figure.axes for t in axes.get_xticklabels()]
    assert any(label.replace(",", "").isdigit() for label in labels)
    assert not any("$" in label for label in labels)


def test_names_out_of_data_are_no_formulas(tmp_path):
    named = results() | {"in_domain": "a$\\frac_$^.csv", "out_of_domain": ["$b"]}
    for m in named["methods"]:
        for t in [*m["trials"], m]:
            t["scores"] = {"a$\\frac_$^.csv": t["scores"]["a"], "$b": t["scores"]["b"]} if t.get("scores") else {}
    figure = score_versus_parameters(named)
    save(figure, tmp_path / "a.png")
    assert figure.axes[0].get_title() == "in domain: a$\\frac_$^.csv"
    assert (tmp_path / "a.png").is_file()


def test_page_escapes_text_and_inlines_pictures(tmp_path):
    figure = loss_curves(results())
    render(
        tmp_path / "p.html",
        title="<b>",
        subtitle="s",
        command="a & b",
        header=["h"],
        rows=[["<script>"]],
        sections=[("plots", [("loss", figure)]), ("empty", [])],
    )
    page = (tmp_path / "p.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert page.count("data:image/png;base64") == 1
    assert "empty" not in page
