"""The whole hostile class."""

import pytest
from hostile import EXPECTED, graded_class
from test_grading_hostile import *  # noqa: F403 - the same tests, of the whole class
from test_grading_hostile import results


@pytest.fixture(scope="module")
def hostile(assigned, student, tmp_path_factory):
    return graded_class(assigned, student, tmp_path_factory.mktemp("hostile"), EXPECTED)


def test_the_whole_hostile_class_is_here(hostile):
    assert results(hostile).keys() == EXPECTED.keys()
