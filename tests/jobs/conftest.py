"""A small classifier, a small language model, data, and a finished job on them, made once."""

import pytest

from jobs_fixtures import METHODS, config, table
from rankwise.jobs.adapt import Job
from small_models import bert, llama, saved


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """A folder with the models and the data."""
    folder = tmp_path_factory.mktemp("adapt")
    saved(bert(), folder / "bert")
    saved(llama(), folder / "llama")
    table(folder / "data.csv")
    table(folder / "more.csv", 9)
    return folder


@pytest.fixture(scope="session")
def finished(place):
    """Folder, configuration and results of a job with all methods and two seeds; it is only looked at."""
    settings = config(place, methods=METHODS, eval=[str(place / "more.csv")], seeds=2)
    return place / "first", settings, Job(settings, place / "first").run()
