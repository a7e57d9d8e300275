from agents.evaluation.arrivals import arrivals_note, by_load


def test_realised_rates_stand_beside_the_asked_ones() -> None:
    rates = by_load([(1.6, 1.19), (1.6, 2.31), (2.0, 2.0), (1.6, None), (1.6, float("inf"))])
    assert arrivals_note(rates) == "Arrivals, requests/s: asked 1.6, came 1.75 (1.19 to 2.31); asked 2, came 2."
    assert arrivals_note(by_load([(None, 4.0)])) == "Arrivals, requests/s: recorded 4."
    assert arrivals_note(by_load([(1.0, None)])) == ""
