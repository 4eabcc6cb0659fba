"""All wrong submissions to all exercises at their full budgets, and the whole hostile class."""

from importlib import import_module

import pytest
import test_grading_hostile
from exercises import check_class, graded_class
from hostile import EXPECTED
from hostile import graded_class as graded_hostile_class
from test_grading_hostile import *  # noqa: F403 - the same tests, of the whole class

from kdcourse.grading.key import find_master

EXERCISES = ("attention", "born_again", "combined", "mutual", "saturated", "temperature")


@pytest.fixture(scope="module")
def hostile(assigned, student, tmp_path_factory):
    """The whole hostile class."""
    return graded_hostile_class(assigned, student, tmp_path_factory.mktemp("hostile"), EXPECTED)


def test_the_whole_hostile_class_is_here(hostile):
    assert test_grading_hostile.results(hostile).keys() == EXPECTED.keys()


@pytest.mark.parametrize("name", EXERCISES)
def test_every_slip_costs_its_own_parts_at_the_full_budget(name, tmp_path, warm):
    tests = import_module(f"test_exercise_{name}")
    table = graded_class(find_master(name), tests.SLIPS, tmp_path)
    check_class(table, tests.PARTS, tests.SLIPS)
