"""All wrong submissions to all exercises in the sandbox, at the exercises' full budgets."""

from importlib import import_module

import pytest
from exercises import check_class, graded_class

from kdcourse.grading.key import find_master

EXERCISES = ("attention", "born_again", "combined", "mutual", "saturated", "temperature")


@pytest.mark.parametrize("name", EXERCISES)
def test_every_slip_costs_its_own_parts(name, tmp_path, warm):
    tests = import_module(f"test_exercise_{name}")
    slips = {"right": ([], set()), **tests.SLIPS}
    check_class(graded_class(find_master(name), slips, tmp_path), tests.PARTS, slips)
