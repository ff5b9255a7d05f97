"""The report as a reader meets it: opened in headless Chromium."""

from pathlib import Path

from browser import needs_chromium, opened
from rankwise.jobs.adapt import AdaptConfig, Job
from rankwise.report.page import write_run


@needs_chromium
def test_table_and_plots_are_there_and_nothing_is_fetched(tmp_path):
    config = AdaptConfig(
        methods=["lora", "s2lora"],
        eval=["sentiment:tweets"],
        steps=3,
        batch_size=4,
        max_length=16,
        train_limit=64,
        eval_limit=20,
        dropout=0.0,
        learning_rates={m: [1e-3] for m in ("head", "lora", "s2lora")},
    )
    results = Job(config, tmp_path / "run").run()
    write_run(tmp_path / "run", results, "rankwise adapt <example> & more")
    with opened() as browser:
        page = browser.new_page(viewport={"width": 1100, "height": 900})
        asked: list[str] = []
        page.on("request", lambda r: asked.append(r.url))
        page.goto(Path(tmp_path / "run/report.html").as_uri())
        rows = page.locator("#results tbody tr")
        assert rows.count() == 3
        assert [rows.nth(i).locator("td").first.inner_text() for i in range(3)] == [
            "head only",
            "LoRA",
            "S2-LoRA",
        ]
        sizes = page.eval_on_selector_all("img.plot", "images => images.map(i => [i.naturalWidth, i.naturalHeight])")
        assert len(sizes) == 5  # scores, losses, two rank maps, one mass map
        assert all(w > 200 and h > 100 for w, h in sizes)
        assert page.locator("pre").first.inner_text() == "rankwise adapt <example> & more"
        page.screenshot(path=str(tmp_path / "report.png"), full_page=True)
    assert [u for u in asked if not u.startswith(("file:", "data:"))] == []
    assert (tmp_path / "report.png").stat().st_size > 20_000
