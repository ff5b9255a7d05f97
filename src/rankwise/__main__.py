"""``python -m rankwise``, for launchers such as ``accelerate launch -m rankwise``."""

from rankwise.cli.main import run

run()
