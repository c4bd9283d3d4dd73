"""`make mutants` is run by hand; here only that each of its faults still has a place in the code."""

from __future__ import annotations

import pytest

from tools import mutants


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda m: m.name)
def test_a_mutant_changes_one_place_and_names_tests_that_exist(mutant: mutants.Mutant) -> None:
    text = (mutants.ROOT / mutant.file).read_text(encoding="utf-8")
    compile(mutants.mutated(text, mutant), mutant.file, "exec")
    assert mutant.tests
    for test in mutant.tests:
        assert (mutants.ROOT / test.partition("::")[0]).exists()


def test_a_place_that_is_gone_is_said() -> None:
    with pytest.raises(ValueError, match="has 0 places that read 'is not there'"):
        mutants.mutated("some text", mutants.Mutant("a fault", "a.py", "is not there", "", ("tests",)))


def test_names_are_unique() -> None:
    assert len({m.name for m in mutants.MUTANTS}) == len(mutants.MUTANTS)
