"""What options of forgetting may be called; imports nothing heavy, so that a command can check them at once."""

from __future__ import annotations

from rankwise.nearest import unknown
from rankwise.reading import printable

MADE_BY = "continual forget"  # what makes the folders of requests
LONGEST = 200  # characters of a request's name
CHOICES = {
    "adapter": ("blocks", "shared"),
    "combine": ("per-block", "max"),
    "answers": ("refusal", "random", "released"),
    "style": ("chat", "text"),
    "score": ("standardised", "released"),
    "router": ("soft", "hard", "released", "released-tofu", "off"),
}


def check_name(name: str) -> None:
    """Refuse a name of a request by which nobody could take it back."""
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"name is {name!r}: a request needs a name, by which it can be taken back")
    if len(name) > LONGEST:
        raise ValueError(f"the name of a request has {len(name):,} characters; at most {LONGEST} are accepted")
    if printable(name) != name or name != " ".join(name.split()):
        raise ValueError(f"name {name!r} cannot be typed again: give one without control characters and outer spaces")


def check_choices(**given: str) -> None:
    """Refuse an unknown name of an option."""
    for name, value in given.items():
        if value not in CHOICES[name]:
            raise unknown(name, str(value), CHOICES[name])
