"""What options of forgetting may be called; imports nothing heavy, so that a command can check them at once."""

from __future__ import annotations

from rankwise.nearest import unknown

MADE_BY = "continual forget"  # what makes the folders of requests
CHOICES = {
    "adapter": ("blocks", "shared"),
    "combine": ("per-block", "max"),
    "answers": ("refusal", "random", "released"),
    "style": ("chat", "text"),
    "score": ("standardised", "released"),
    "router": ("soft", "hard", "released", "released-tofu", "off"),
}


def check_choices(**given: str) -> None:
    """Refuse an unknown name of an option."""
    for name, value in given.items():
        if value not in CHOICES[name]:
            raise unknown(name, str(value), CHOICES[name])
