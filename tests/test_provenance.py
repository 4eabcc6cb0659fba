import hashlib
import subprocess
import sys
import textwrap
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path

import pytest
from IPython.core.interactiveshell import InteractiveShell

from kdcourse import provenance
from kdcourse.answers import answered
from kdcourse.data import ImageData, digits
from kdcourse.experiments import train
from kdcourse.provenance import code_digest, file_digest, files_behind, machine

NOTEBOOK = """
    from kdcourse.experiments import train
    from kdcourse.models import small_convnet

    epochs = 12
    widths = {"small": [16, 32], "large": [64]}
    pictures = object()
    quick = lambda: 3

    def helper(x):
        return x + 1

    class Network(Base):
        size = 3

        def forward(self, x):
            return helper(x)

    def run_student(seed, make=None):
        \"\"\"One row.\"\"\"
        model = Network()
        train(model, pictures, seed=seed, epochs=epochs)  # as ever
        return {"y": widths["small"]}
"""


@pytest.fixture(scope="module")
def digest_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str | None]:
    """The digest of `run_student` in a notebook with some text replaced."""

    def digest(*replaced: tuple[str, str], settings: str = "None") -> str | None:
        text = "class Base:\n    pass\n" + textwrap.dedent(NOTEBOOK)
        for old, new in replaced:
            assert text.count(old) >= 1
            text = text.replace(old, new)
        shell = InteractiveShell()
        names: dict = {"__name__": "__main__"}
        shell.user_ns, shell.user_module = names, sys.modules["__main__"]
        main = vars(sys.modules["__main__"])
        before = dict(main)
        try:
            shell.user_ns = main
            assert shell.run_cell(text, store_history=True).success
            return code_digest(main["run_student"], eval(settings, main))
        finally:
            main.clear()
            main.update(before)

    return digest


@pytest.mark.parametrize(
    "edit",
    [
        ("return x + 1", "return x + 2"),  # what a class's method calls
        ("size = 3", "size = 4"),
        ("epochs = 12", "epochs = 13"),
        ('"small": [16, 32]', '"small": [16, 33]'),
        ('return {"y"', 'return {"z"'),
        ("class Base:\n    pass", "class Base:\n    other = 1"),
        ("seed=seed, epochs=epochs", "seed=seed, epochs=epochs, lr=1"),
    ],
)
def test_what_decides_the_numbers_changes_the_digest(digest_of, edit) -> None:
    assert digest_of(edit) != digest_of()


@pytest.mark.parametrize(
    "edit",
    [
        ("  # as ever", ""),
        ('"""One row."""', '"""Another docstring, longer."""'),
        (
            'widths = {"small": [16, 32], "large": [64]}\n',
            'widths = {"small": [16, 32], "large": [64]}\nunread = 9\n',
        ),
        ("return x + 1", "return x + 1\n\n"),
        ("pictures = object()", "pictures = bytes(9)"),  # data are not code
        ("def helper(x):", "\n\n\ndef helper(x):"),
    ],
)
def test_what_does_not_decide_them_leaves_it(digest_of, edit) -> None:
    assert digest_of(edit) == digest_of()


def test_locals_and_attributes_are_not_taken_for_globals_of_the_same_name(digest_of) -> None:
    first = 'widths = {"small": [16, 32], "large": [64]}\n'
    reads = ("model = Network()", "size = 1; model = (lambda: size)(), Network().count")
    digests = {
        digest_of((first, f"{first}size = {size}\ncount = {count}\n"), reads)
        for size, count in ((1, 1), (2, 1), (1, 2))
    }
    assert len(digests) == 1
    inner = ("model = Network()", "model = (lambda: size)(), Network().count")
    assert len({digest_of((first, f"{first}size = {size}\n"), inner) for size in (1, 2)}) == 2


def test_code_in_the_settings_counts(digest_of) -> None:
    plain, kept = digest_of(), digest_of(settings="{'a': {'make': helper}}")
    assert plain == kept  # the class calls it anyway
    assert digest_of(settings="{'a': {'make': small_convnet}}") != plain
    assert digest_of(settings="{'a': {'make': quick}}") != plain


def test_the_package_is_followed_and_everybody_else_is_not(digest_of, monkeypatch) -> None:
    before, alone = digest_of(), code_digest(train)
    text = provenance.source_text

    def other(item, **options):
        found = text(item, **options)
        return found + "\nchanged = 1" if item is train.__globals__["fit"] else found

    monkeypatch.setattr(provenance, "source_text", other)
    assert code_digest(train) != alone  # `fit` is another one now
    assert digest_of() != before


IMAGES = digits()


@lru_cache
def some_images() -> ImageData:
    return IMAGES


def of_a_data_set(seed: int) -> dict:
    return {"y": len(some_images().test)}


def by_name(seed: int) -> dict:
    return {"y": len(answered("glyphs")[1])}


def by_argument(seed: int, images: str = "textured_shapes") -> dict:
    return {"y": len(answered(images)[1])}


def test_files_behind_data_sets_and_their_names() -> None:
    assert list(files_behind(of_a_data_set)) == ["weights/digits.safetensors"]
    assert list(files_behind(by_name)) == ["weights/glyphs.safetensors"]
    shapes = ["weights/textured_shapes.safetensors"]
    assert list(files_behind(by_argument)) == shapes
    both = files_behind(by_argument, {"a": {"images": "mnist"}})
    assert list(both) == ["pictures/mnist.npz", "weights/mnist.safetensors", *shapes]
    content = (Path(provenance.__file__).parent / "weights" / "mnist.safetensors").read_bytes()
    assert both["weights/mnist.safetensors"] == hashlib.sha256(content).hexdigest()[:16]
    assert file_digest("weights/mnist.safetensors") == both["weights/mnist.safetensors"]
    assert file_digest("weights/unheard_of.safetensors") is None


@pytest.mark.parametrize("function", [of_a_data_set, by_name])
def test_what_draws_the_pictures_counts(function, monkeypatch) -> None:
    text, before = provenance.source_text, code_digest(function)

    def other(item, **options):
        found = text(item, **options)
        return found + "\nchanged = 1" if item.__name__ in ("digits", "glyphs") else found

    monkeypatch.setattr(provenance, "source_text", other)
    assert code_digest(function) != before


def test_partial_arguments_count() -> None:
    digests = {code_digest(partial(train, lr=lr)) for lr in (1, 2, 2)}
    assert len(digests) == 2


def test_without_source_there_is_no_digest() -> None:
    names: dict = {}
    exec("def unseen(seed): return {'y': seed}", names)
    assert code_digest(names["unseen"]) is None


def test_another_process_and_folder_give_the_same_digest(tmp_path: Path) -> None:
    program = (
        "from kdcourse import experiments, provenance\n"
        "print(provenance.code_digest(experiments.train))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == code_digest(train)


def test_the_machine_is_described() -> None:
    about = machine()
    assert set(about) == {"versions", "hardware"}
    assert set(about["versions"]) == {"python", "torch", "numpy"}
