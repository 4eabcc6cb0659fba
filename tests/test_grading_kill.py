"""The grader and its workers are killed at any moment: nothing is lost, torn or graded twice."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import psutil
import pytest
from classroom import MASTER, RIGHT_DOUBLE, call

from kdcourse.grading import files
from kdcourse.grading import grade as grade_module

DIES = """
import os, signal, sys
from kdcourse import cli
from kdcourse.grading import files, sandbox
sandbox.WARM.usable = False  # it pays from the third run on
left = int(sys.argv.pop(1))
def dies(descriptor):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    os_fsync(descriptor)
os_fsync, files.os.fsync = os.fsync, dies
cli.main()
"""
MEASURES = """
import json, sys
from pathlib import Path
import psutil
from kdcourse.grading.grade import Settings, grade_all
def measure(done, total, result):
    own = psutil.Process()
    warm = [child for child in own.children() if 'kdcourse.grading.warm' in child.cmdline()]
    print(json.dumps([done, *(process.memory_info().rss for process in (own, *warm))]))
key, folder, out = map(Path, sys.argv[1:])
grade_all(folder, out, Settings(key, 20, 700, 'bwrap'), progress=measure)
"""


@pytest.fixture(scope="module")
def submissions(student, tmp_path_factory):
    """Six students."""
    folder = tmp_path_factory.mktemp("submissions")
    for name, made in {
        "half": student().answer(double=RIGHT_DOUBLE),
        "raises": student().solved().add("1 / 0"),
        "right-1": student().solved(),
        "right-2": student().solved(),
    }.items():
        (folder / f"{name}.ipynb").write_text(json.dumps(made.notebook))
    for name in ("empty", "nothing"):
        (folder / f"{name}.ipynb").write_text("")
    return folder


@pytest.fixture(scope="module")
def uninterrupted(assigned, submissions, tmp_path_factory):
    """What grading gives when nothing comes between."""
    out = tmp_path_factory.mktemp("uninterrupted")
    code, printed = call(*grade(assigned, submissions, out))
    assert code == 0, printed
    return out


def grade(assigned, submissions, out, *more):
    return ("grade", MASTER, submissions, "--out", out, "--key", assigned / "key", *more)


def results(out):
    """The result files, which must be complete, without what differs from run to run."""
    found = {}
    for path in sorted((out / "results").glob("*.json")):
        found[path.name] = json.loads(path.read_text())
        found[path.name] |= {"seconds": None, "peak_mib": None}
    return found


def same(out, expected):
    """Whether a class's folder holds just what an uninterrupted run left."""
    assert results(out) == results(expected)
    names = [{str(path.relative_to(top)) for path in top.rglob("*")} for top in (out, expected)]
    assert names[0] == names[1]
    for name in names[0]:
        if "results" not in name and (out / name).is_file():
            assert (out / name).read_bytes() == (expected / name).read_bytes(), name


def test_a_grader_that_dies_while_it_writes_leaves_nothing_torn(assigned, student, tmp_path):
    folder, out, expected = tmp_path / "in", tmp_path / "out", tmp_path / "expected"
    folder.mkdir()
    for name in ("a", "c"):
        (folder / f"{name}.ipynb").write_text("")
    (folder / "b.ipynb").write_text(json.dumps(student().solved().notebook))
    assert call(*grade(assigned, folder, expected))[0] == 0
    # While it writes for the first student, the second, the third, the class.
    moments = iter([1, 2, 4, 7, 3, 10**6])
    finished = {}
    for moment in moments:
        command = [
            sys.executable,
            "-c",
            DIES,
            str(moment),
            *map(str, grade(assigned, folder, out)),
        ]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        assert run.returncode in (0, -signal.SIGKILL), run.stderr
        assert results(out).items() <= results(expected).items()
        for path, when in finished.items():
            assert path.stat().st_mtime_ns == when
        finished = {path: path.stat().st_mtime_ns for path in (out / "results").glob("*.json")}
        if run.returncode == 0:
            break
    assert next(moments, None) is None
    same(out, expected)


def test_a_grader_killed_in_the_middle_leaves_no_process_and_goes_on(
    assigned, submissions, uninterrupted, tmp_path, monkeypatch
):
    out, scratch = tmp_path / "out", tmp_path / "scratch"
    scratch.mkdir()
    environment = {**os.environ, "TMPDIR": str(scratch)}
    monkeypatch.setattr("tempfile.tempdir", str(scratch))

    def running():
        """The folders of runs."""
        return list(scratch.glob(f"{files.SCRATCH}*"))

    for enough, jobs in ((1, 2), (4, 1)):
        arguments = grade(assigned, submissions, out, "--jobs", jobs)
        grader = subprocess.Popen(
            [sys.executable, "-m", "kdcourse.cli", *map(str, arguments)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        while len(list((out / "results").glob("*.json"))) < enough or not running():
            assert grader.poll() is None
            time.sleep(0.01)
        started = psutil.Process(grader.pid).children(recursive=True)
        kept = results(out)
        grader.send_signal(signal.SIGKILL)
        grader.wait()
        assert kept.items() <= results(uninterrupted).items()
        _, alive = psutil.wait_procs(started, timeout=120)
        assert not [process for process in alive if "resource_tracker" not in process.cmdline()[-1]]
    assert call(*arguments)[0] == 0
    same(out, uninterrupted)
    assert not list(scratch.glob("kdcourse-*"))


def test_two_graders_do_not_write_into_one_folder(assigned, submissions, tmp_path):
    with files.locked(tmp_path / "out"):
        code, printed = call(*grade(assigned, submissions, tmp_path / "out"))
    assert code == 1
    assert "another grader is at work" in printed
    assert not (tmp_path / "out" / "results").exists()


def test_what_another_grader_uses_is_not_taken_away(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left = tmp_path / f"{files.SCRATCH}left"
    left.mkdir()
    (tmp_path / f"{files.SCRATCH}link").symlink_to("/")
    with files.scratch_folder() as first:
        assert not left.exists()
        with files.scratch_folder() as second:
            assert first.is_dir()
            assert second.is_dir()
        assert first.is_dir()
        assert not second.exists()
    assert [path.name for path in tmp_path.iterdir()] == [f"{files.SCRATCH}link"]


def test_a_killed_dask_worker_loses_nothing_and_nothing_is_graded_twice(
    assigned, submissions, uninterrupted, tmp_path
):
    from distributed import LocalCluster

    out = tmp_path / "out"
    with LocalCluster(n_workers=2, threads_per_worker=2, dashboard_address=None) as cluster:
        workers = [worker.pid for worker in cluster.workers.values()]
        address = cluster.scheduler_address
        grader = subprocess.Popen(
            [
                *(sys.executable, "-m", "kdcourse.cli"),
                *map(str, grade(assigned, submissions, out, "--scheduler", address)),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        while len(list((out / "results").glob("*.json"))) < 3:
            assert grader.poll() is None
            time.sleep(0.01)
        saved = {path: path.stat().st_mtime_ns for path in (out / "results").glob("*.json")}
        os.kill(workers[0], signal.SIGKILL)
        _, errors = grader.communicate()
        assert grader.returncode == 0, errors
        finished = Counter(
            story[0]
            for story in cluster.scheduler.transition_log
            if story[1:3] == ("processing", "memory")
        )
    assert len(finished) == 6
    # What was saved is not done again; what the dead worker had done and not yet handed over is.
    assert sum(finished.values()) <= 6 + 6 - len(saved)
    for path, when in saved.items():
        assert path.stat().st_mtime_ns == when
    same(out, uninterrupted)


def test_what_python_compiles_meanwhile_is_no_change_of_the_package(tmp_path, monkeypatch):
    module = tmp_path / "kdcourse" / "grading" / "grade.py"
    compiled = module.parent / "__pycache__" / "grade.cpython-311.pyc.1234"
    compiled.parent.mkdir(parents=True)
    module.write_text("x = 1")
    monkeypatch.setattr(grade_module, "__file__", str(module))
    digests = [grade_module.environment_digest.__wrapped__()]
    for path, text in ((compiled, "x"), (module, "x = 2"), (module.with_name("new.py"), "")):
        path.write_text(text)
        digests.append(grade_module.environment_digest.__wrapped__())
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_folders_that_a_library_adds_to_the_path_install_nothing(tmp_path, monkeypatch):
    before = grade_module.environment_digest.__wrapped__()
    installed = tmp_path / "vendored-1.0.dist-info" / "METADATA"
    installed.parent.mkdir()
    installed.write_text("Name: vendored\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert grade_module.environment_digest.__wrapped__() == before
    monkeypatch.setattr("site.getsitepackages", lambda: [str(tmp_path)])
    assert grade_module.environment_digest.__wrapped__() != before


def test_memory_stays_flat(assigned, student, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number}.ipynb").write_text(json.dumps(student().solved().notebook))
    command = [sys.executable, "-c", MEASURES, assigned / "key", folder, tmp_path / "out"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    sizes = {done: numbers for done, *numbers in lines if done >= 4}
    for first, last in zip(sizes[4], sizes[12], strict=True):
        assert last - first < 8 * 2**20
