from __future__ import annotations

from benchmarks.tune import Tuning, measure, tunings
from convattn.ops import tuned


def test_every_tuned_constant_has_a_command_that_measures_it():
    constants = {name: value for name, value in vars(tuned).items() if name.isupper()}
    known = tunings()
    assert set(known) == set(constants)
    for name, value in constants.items():
        assert value in known[name].values, name


def test_a_constant_has_its_value_again_after_it_was_measured():
    before, seen = tuned.BAND_ROWS, []
    tuning = Tuning((1, 5), {"work": lambda: seen.append(tuned.BAND_ROWS)})
    rows = measure("BAND_ROWS", tuning, rounds=2)
    assert before == tuned.BAND_ROWS
    assert seen == [1, 5] * 3
    assert len(rows) == 1
    assert len(rows[0]) == 3
