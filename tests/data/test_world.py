from rankwise.data.world import countries


def test_countries_have_capitals_and_come_by_population():
    found = countries()
    by_name = {c.name: c for c in found}
    assert by_name["France"].capital == "Paris"
    assert by_name["Kenya"].continent == "Africa"
    assert len(found) > 190
    assert [c.population for c in found] == sorted((c.population for c in found), reverse=True)
