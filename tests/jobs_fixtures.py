"""Settings and data of small jobs, for the tests of `rankwise.jobs`."""

from rankwise.jobs.adapt import AdaptConfig

TINY = {"steps": 3, "batch_size": 4, "max_length": 12, "budget": "20%"}
METHODS = ["bitfit", "lora", "adalora", "s2lora", "eva"]


def table(path, n=120, flipped=()):
    rows = [(f"{'great' if i % 2 else 'awful'} film {i}", bool(i % 2) != (i in flipped)) for i in range(n)]
    path.write_text("text,label\n" + "".join(f"{t},{'pos' if y else 'neg'}\n" for t, y in rows))
    return str(path)


def config(place, **options):
    rates = {m: [1e-3] for m in ("head", "full", *METHODS)}
    given = {"model": str(place / "bert"), "data": str(place / "data.csv"), "learning_rates": rates, **TINY, **options}
    return AdaptConfig(**given)
