"""The pieces of grading one by one: files, submissions, answers, declarations, scores."""

import json
import os
import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from kdcourse import notebooks
from kdcourse.grading import (
    compare,
    feedback,
    gradebook,
    key,
    probe,
    report,
    submission,
    submit,
)
from kdcourse.grading.files import FileProblem, read_regular, write_atomic
from kdcourse.grading.grade import safe_name

MASTER = Path(__file__).parent / "grading" / "double.md"


@pytest.fixture(scope="module")
def master():
    return notebooks.read_source(MASTER, explicit_ids=True)


@pytest.fixture
def answers(tmp_path, monkeypatch):
    """A folder that `probe.answer` writes to."""
    monkeypatch.setenv("KDCOURSE_ANSWERS", str(tmp_path / "answers"))
    return tmp_path / "answers"


def cells_of(notebook):
    return submission.parse_cells(json.dumps(notebook).encode())


# Files


def test_a_file_is_read_only_when_it_is_an_ordinary_one(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "folder").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert read_regular(tmp_path / "file", max_bytes=5) == b"12345"
    assert read_regular(Path("file"), max_bytes=5, inside=tmp_path) == b"12345"
    for name in ("link", "pipe", ".", "file/x"):
        with pytest.raises(FileProblem, match="not an ordinary file"):
            read_regular(tmp_path / name, max_bytes=5)
    with pytest.raises(FileProblem, match="too large"):
        read_regular(tmp_path / "file", max_bytes=4)
    with pytest.raises(FileProblem, match="missing"):
        read_regular(tmp_path / "none", max_bytes=4)
    with pytest.raises(FileProblem, match="not an ordinary file"):
        read_regular(Path("file"), max_bytes=5, inside=tmp_path / "folder")


def test_writing_leaves_no_draft_behind(tmp_path):
    write_atomic(tmp_path / "a" / "b", b"1")
    write_atomic(tmp_path / "a" / "b", b"2")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]
    assert (tmp_path / "a" / "b").read_bytes() == b"2"


# Submissions


def test_one_file_or_one_folder_per_student(tmp_path):
    for name in ("a.ipynb", "b/hw1.ipynb", "c/1.ipynb", "c/2.ipynb", "d/notes.txt", "e.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "f").mkdir()
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / "b" / ".hidden.ipynb").touch()
    (tmp_path / "b.ipynb").touch()
    found = {item.student: item for item in submission.find_submissions(tmp_path, ["g", "a"])}
    assert {name: item.problem for name, item in found.items()} == {
        "a": None,
        "b": "duplicate",
        "c": "duplicate",
        "d": None,
        "e": None,
        "f": "missing",
        "g": "missing",
    }
    with pytest.raises(submission.InvalidSubmission, match="not a notebook"):
        submission.read_bytes(found["d"].files[0])


def test_names_of_any_kind_become_plain_text(tmp_path):
    (tmp_path / "e\u0301va.ipynb").touch()
    (tmp_path / os.fsdecode(b"\xff.ipynb")).touch()
    names = [item.student for item in submission.find_submissions(tmp_path, ["\u00e9va"])]
    assert names == ["\\udcff", "\u00e9va"]
    for name in ("", "../../x", "a" * 300, "ü/{0}"):
        assert set(safe_name(name)) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert safe_name("a b") != safe_name("a-b")


def test_the_roster_is_a_csv_with_or_without_a_header(tmp_path):
    path = tmp_path / "roster.csv"
    path.write_text("name,student\nAnna,a1\n\nBen, b2 \n", encoding="utf-8-sig")
    assert submission.read_roster(path) == ["a1", "b2"]
    path.write_text("a1\nb2\n")
    assert submission.read_roster(path) == ["a1", "b2"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ("\udcff", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('"text"', "not a Jupyter notebook"),
        ('{"cells": []}', "not a Jupyter notebook"),
        ('{"nbformat": 3}', "format 3 is not accepted"),
        ('{"nbformat": true, "cells": []}', "format True is not accepted"),
        ('{"nbformat": 4}', "no list of cells"),
        ('{"nbformat": 4, "cells": [3]}', "cell 1 of this notebook is malformed"),
        ('{"nbformat": 4, "cells": [{"cell_type": "code", "source": [1]}]}', "malformed"),
        ('{"nbformat": 4, "cells": [{"cell_type": 1, "source": ""}]}', "malformed"),
    ],
)
def test_what_is_not_a_notebook_is_refused_in_words(text, message):
    with pytest.raises(submission.InvalidSubmission, match=message):
        submission.parse_cells(text.encode("utf-8", "surrogateescape"))


def test_locked_cells_come_back_and_answers_stay(master):
    student = notebooks.student_version(master)
    for cell in student.cells:
        if cell.cell_type == "code":
            cell.source = f"changed = {cell.id!r}"
    built = submission.rebuild(master, cells_of(student))
    sources = {cell.id: cell.source for cell in built.cells}
    assert list(sources) == [
        *("parameters", "tools", "answer-double", "check-double", "probe-double"),
        *("answer-fit", "probe-fit"),
    ]
    assert sources["parameters"] == "repeats = 1\nseed = 0"
    assert sources["answer-double"] == "changed = 'answer-double'"
    assert "changed" not in sources["check-double"] + sources["probe-double"]
    assert built.cells[0].metadata["tags"] == ["parameters"]


def test_cells_are_found_by_the_id_in_their_metadata_too(master):
    student = notebooks.student_version(master)
    for number, cell in enumerate(student.cells):
        cell["id"] = f"new-{number}"
        if cell.metadata.get("id") == "answer-fit":
            cell.source = "mine = 1"
    built = submission.rebuild(master, cells_of(student))
    assert [cell.source for cell in built.cells if cell.id == "answer-fit"] == ["mine = 1"]


def test_added_cells_follow_their_neighbour_and_keep_no_tags(master):
    student = notebooks.student_version(master)
    code = [index for index, cell in enumerate(student.cells) if cell.cell_type == "code"]
    extra = {"cell_type": "code", "source": "x = 1", "metadata": {"tags": ["parameters", "key"]}}
    cells = json.loads(json.dumps(student.cells))
    cells.insert(code[2] + 1, extra)
    cells.insert(0, {**extra, "id": "probe-fit", "source": "y = 2"})
    cells.append({**extra, "metadata": {"tags": ["injected-parameters"]}})
    built = submission.rebuild(master, cells_of({"nbformat": 4, "cells": cells}))
    names = [cell.id for cell in built.cells]
    assert names[:5] == [
        *("top-added-1", "parameters", "tools", "answer-double", "answer-double-added-1"),
    ]
    assert len(names) == 9
    assert not built.cells[0].metadata and not built.cells[4].metadata


def test_a_notebook_of_something_else_is_refused(master):
    other = {"nbformat": 4, "cells": [{"cell_type": "code", "source": "1", "id": "mine"}]}
    with pytest.raises(submission.InvalidSubmission, match="none of this exercise's cells"):
        submission.rebuild(master, cells_of(other))


# Answers


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, 1),
        (0.5, 0.5),
        ("text", "text"),
        (None, None),
        ([1, 2.5], [1, 2.5]),
        ({"a": [True]}, {"a": [True]}),
        (np.float32(0.5), 0.5),
        (torch.tensor(2.0), np.array(2.0, "float32")),
        (torch.ones(2, requires_grad=True), np.ones(2, "float32")),
        (np.arange(3), np.arange(3)),
        ({"w": torch.ones(2, 1)}, {"w": np.ones((2, 1), "float32")}),
    ],
)
def test_answers_come_back_as_they_were_given(answers, value, expected):
    probe.answer("it", value)
    got = compare.read_answer(answers, "it")
    np.testing.assert_equal(got, expected)
    assert type(got) is type(expected)


@pytest.mark.parametrize("value", [object(), {1, 2}, torch.nn.Linear(1, 1), lambda: 1, [object()]])
def test_only_plain_data_is_an_answer(answers, value):
    with pytest.raises(TypeError, match="plain data"):
        probe.answer("it", value)


def test_an_array_of_objects_is_not_saved(answers):
    with pytest.raises(ValueError, match="Object arrays"):
        probe.answer("it", np.array([object()]))


def test_a_repeated_cell_does_not_replace_the_first(master):
    student = notebooks.student_version(master)
    answer = next(cell for cell in student.cells if cell.id == "answer-fit")
    student.cells.append({**answer, "source": "second = 2"})
    built = submission.rebuild(master, cells_of(student))
    assert [cell.id for cell in built.cells if "second" in cell.source] == ["answer-fit-added-1"]


def test_hidden_inputs_are_arrays_by_name(tmp_path, monkeypatch):
    np.savez(tmp_path / "inputs.npz", a=np.arange(3))
    monkeypatch.setenv("KDCOURSE_JOB", str(tmp_path))
    assert probe.hidden()["a"].tolist() == [0, 1, 2]


def header(shape, descr="'<f8'"):
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("it.npy", header((10**12,)) + b"\0" * 8),
        ("it.npy", header((2,), "'|O'") + b"\x80\x04N." * 4),
        ("it.npy", header((1,), "'<U2'") + b"\0" * 8),
        ("it.npy", b"\x93NUMPY\x09\x00"),
        ("it.npy", b""),
        ("it.json", b"{"),
        ("it.json", b"[" * 10**5),
        ("it.json", b"\xff"),
        ("it.safetensors", b"\xff" * 100),
        ("it.safetensors", b""),
    ],
)
def test_a_forged_file_is_an_unreadable_answer(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(compare.BadAnswer, match="cannot be read"):
        compare.read_answer(tmp_path, "it")


def test_an_answer_must_be_one_small_file_of_its_own(tmp_path):
    with pytest.raises(compare.BadAnswer, match="not answered"):
        compare.read_answer(tmp_path, "it")
    with pytest.raises(compare.BadAnswer, match="not answered"):
        compare.read_answer(tmp_path / "none", "it")
    (tmp_path / "it.json").write_text("1")
    assert compare.read_answer(tmp_path, "it") == 1
    with pytest.raises(compare.BadAnswer, match="too large"):
        compare.read_answer(tmp_path, "it", max_bytes=0)
    np.save(tmp_path / "it.npy", np.ones(1))
    with pytest.raises(compare.BadAnswer, match="two forms"):
        compare.read_answer(tmp_path, "it")
    (tmp_path / "other.json").symlink_to(tmp_path / "it.json")
    with pytest.raises(compare.BadAnswer, match="not an ordinary file"):
        compare.read_answer(tmp_path, "other")


@pytest.mark.parametrize(
    ("answer", "reference", "message"),
    [
        (None, 1.0, "expected numbers, got nothing"),
        (True, 1.0, "expected numbers, got bool"),
        ("1.0", 1.0, "expected numbers, got str"),
        (10**400, 1.0, "expected numbers"),
        ([[1.0], [1.0, 2.0]], [1.0, 2.0], "expected numbers"),
        ([], [1.0], "expected numbers"),
        (np.array([True]), np.array([1.0]), "expected numbers"),
        ([1.0, 2.0], [1.0], r"expected shape \[1\], got \[2\]"),
        ([1.0], 1.0, r"expected shape \[\], got \[1\]"),
        (float("nan"), 1.0, "NaN or infinity"),
        (np.array([np.inf]), np.array([1.0]), "NaN or infinity"),
        (1.0, "text", "expected str, got float"),
        ({"a": 1.0}, {"b": 1.0}, "expected the names"),
        ({"a": "x"}, {"a": 1.0}, "expected numbers"),
        ([1], {"a": 1.0}, "expected named values, got list"),
    ],
)
def test_an_answer_of_the_wrong_kind_is_told_so(answer, reference, message):
    with pytest.raises(compare.BadAnswer, match=message):
        compare.check_like(answer, reference)


def test_numbers_compare_within_the_tolerance_and_all_else_exactly():
    near = {"rtol": 1e-3, "atol": 1e-6}
    for answer, reference in [(1, 1.0001), ([1, 2], np.array([1.0, 2.001])), ("a", "a")]:
        compare.check_like(answer, reference)
        assert compare.close(answer, reference, **near)
    assert compare.close({"w": np.ones(2)}, {"w": np.ones(2)}, **near)
    assert not compare.close(1, 1.01, **near)
    assert not compare.close({"w": np.ones(2)}, {"w": np.zeros(2)}, **near)
    assert not compare.close(["a"], ["b"], **near)


# Declarations


def test_the_master_declares_its_parts(master):
    exercise = key.declared(master, "double")
    assert [part.part for part in exercise.parts] == ["double", "fit"]
    assert exercise.parts[0].answers == ("small", "large")
    assert exercise.max_score == 6
    assert exercise.blocked == ("kdcourse.notebooks.tags",)
    assert "def judge_slope" in key.key_code(master)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("part: fit", "part: double", "one part each"),
        ("points: 2", "points: 0", "plain part, points and answers"),
        ("part: fit", "part: Fit it", "plain part, points and answers"),
        ("answers: [slope], ", "", "answers"),
        ("points: 2", "pionts: 2", "pionts"),
        ("judge: judge_slope", "judge: judge_other", "no key cell defines judge_other"),
        ("seconds: 30", "secnods: 30", "secnods"),
    ],
)
def test_a_faulty_declaration_is_refused(tmp_path, old, new, message):
    text = MASTER.read_text()
    assert old in text
    (tmp_path / "faulty.md").write_text(text.replace(old, new))
    master = notebooks.read_source(tmp_path / "faulty.md", explicit_ids=True)
    with pytest.raises(ValueError, match=message):
        key.declared(master, "faulty")


def test_an_unknown_exercise_lists_the_known_ones(tmp_path):
    folder = tmp_path / "book" / "sources" / "exercises"
    folder.mkdir(parents=True)
    (folder / "mine.md").touch()
    assert key.find_master("mine", tmp_path) == folder / "mine.md"
    with pytest.raises(ValueError, match=r"no exercise 'other'; known are: .*mine"):
        key.find_master("other", tmp_path)


# Pages


def test_the_feedback_page_escapes_everything():
    attack = "<script>alert(1)</script>"
    part = {"title": attack, "message": attack, "points": 2, "score": 1.5, "part": "a"}
    page = feedback.page(
        {
            "student": attack,
            "submission": attack,
            "status": "error",
            "note": attack,
            "sandbox": "bwrap",
            "score": 1.5,
            "max_score": 2,
            "parts": [part],
            "errors": [{"cell": attack, "name": attack, "message": attack}],
            "outputs": [{"cell": attack, "text": attack}],
        },
        gradebook.Grade(1, 0.5, 1.0, 2.0, ((attack, attack),), attack),
    )
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 14
    assert "2 of 2 points" in page


def test_a_report_needs_results(tmp_path):
    with pytest.raises(ValueError, match="holds no results"):
        report.load_results(tmp_path)


# Handing in


def test_the_last_cell_writes_the_notebook_without_outputs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cell = {"cell_type": "code", "source": "1", "outputs": [{"output_type": "stream"}]}
    Path("mine.ipynb").write_text(json.dumps({"nbformat": 4, "cells": [cell]}))
    monkeypatch.setenv("JPY_SESSION_NAME", str(tmp_path / "mine.ipynb"))
    submit.write_submission("double")
    assert "Wrote double-submission.ipynb" in capsys.readouterr().out
    written = json.loads(Path("double-submission.ipynb").read_text())["cells"]
    assert written == [{**cell, "outputs": [], "execution_count": None}]


def test_where_the_path_is_unknown_the_learner_is_told_to_save(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    submit.write_submission("double")
    assert "Save this notebook" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_in_colab_the_browser_downloads_the_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    downloads = []
    message = SimpleNamespace(blocking_request=lambda *a, **k: {"ipynb": {"cells": []}})
    colab = SimpleNamespace(_message=message, files=SimpleNamespace(download=downloads.append))
    monkeypatch.setitem(sys.modules, "google", SimpleNamespace(colab=colab))
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    submit.write_submission("double")
    assert downloads == ["double-submission.ipynb"]
    assert json.loads(Path("double-submission.ipynb").read_text()) == {"cells": []}
