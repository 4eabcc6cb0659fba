"""The walls around a run, each alone, and what is no student's fault when a machine fails."""

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from classroom import FIT, MASTER, kdcourse, result, rows

from kdcourse.grading import (
    cgroup,
    clock,
    doors,
    execute,
    grade,
    sandbox,
    score,
    submission,
    warm,
    watch,
)
from kdcourse.grading.key import Key

TRIES = """
import ctypes, errno, fcntl, os, sys
from kdcourse.grading import doors
libc = ctypes.CDLL(None, use_errno=True)
def tried(number):
    ctypes.set_errno(0)
    libc.syscall(number, 0, 0, 0, 0, 0)
    return errno.errorcode.get(ctypes.get_errno(), "open")
which = doors.MACHINES.index(os.uname().machine)
numbers = [each[which] for each in doors.CLOSED.values() if each[which] is not None]
before = [tried(number) for number in numbers]
doors.close()
print([tried(number) for number in numbers].count("ENOSYS"), before.count("ENOSYS"))
try:
    fcntl.fcntl(os.pipe()[1], 1031, 2**20)
except OSError as error:
    print(errno.errorcode[error.errno])
print(fcntl.fcntl(os.pipe()[1], fcntl.F_GETFL), os.getpid() > 0)
import mmap, socket, subprocess, threading
for action in (
    lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 2),
    lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM, 132),
    lambda: socket.socket(40, socket.SOCK_STREAM),
    lambda: mmap.mmap(-1, 4096),
):
    try:
        print(action())
    except OSError as error:
        print(errno.errorcode[error.errno])
for kind in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
    socket.socket(kind).close()
socket.socketpair(), mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE)
thread = threading.Thread(target=subprocess.run, args=(["true"],))
thread.start(), thread.join()
import torch
print(torch.ones(3, 3).matmul(torch.ones(3, 3)).sum())
"""


def test_the_filter_closes_what_hides_memory_and_nothing_else():
    done = subprocess.run([sys.executable, "-c", TRIES], capture_output=True, text=True, check=True)
    closed, pipe, *rest = done.stdout.splitlines()
    after, before = map(int, closed.split())
    numbers = zip(*doors.CLOSED.values(), strict=True)
    assert after in {sum(number is not None for number in each) for each in numbers}
    assert after > before
    assert pipe == "EPERM"
    refused = ["EAFNOSUPPORT", "EAFNOSUPPORT", "EAFNOSUPPORT", "EPERM"]
    assert rest == ["1 True", *refused, "tensor(27.)"]


def test_each_call_has_a_number_of_its_own_on_each_machine(monkeypatch):
    for which, machine in enumerate(doors.MACHINES):
        every = [*doors.CLOSED.values(), *doors.PARTLY.values()]
        numbers = [each[which] for each in every if each[which] is not None]
        assert len(numbers) == len(set(numbers)) >= len(every) - 1
        assert doors._rules().keys() == doors.PARTLY.keys()
        monkeypatch.setattr("platform.machine", lambda name=machine: name)
        assert 8 * 50 < len(doors.program()) < 4096  # what a pipe takes at once


def test_without_known_calls_grading_stops_and_says_so(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "abacus")
    with pytest.raises(RuntimeError, match="on abacus the system calls that hide memory"):
        sandbox.check_bubblewrap()


# Memory


@pytest.mark.parametrize("version", [1, 2])
def test_a_group_counts_all_but_what_can_be_dropped(tmp_path, monkeypatch, version):
    """Both versions of the kernel's interface, as files; a real group is used in the next test."""
    top = tmp_path / ("memory" if version == 1 else "")
    (top / "session").mkdir(parents=True)
    monkeypatch.setattr(cgroup, "MOUNTS", tmp_path)
    monkeypatch.setattr(cgroup, "OWN", tmp_path / "own")
    (tmp_path / "own").write_text("4:memory:/session\n" if version == 1 else "0::/session/shell\n")
    if version == 2:
        (top / "session" / "cgroup.subtree_control").write_text("cpu memory\n")
    names = {
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.oom_control", "total_"),
        2: ("memory.max", "memory.current", "memory.events", ""),
    }
    limit, usage, events, prefix = names[version]

    def mkdtemp(**options):  # the kernel fills a new group with files
        folder = Path(options["dir"]) / "kdcourse-new"
        folder.mkdir()
        (folder / limit).write_text("max")
        (folder / "cgroup.procs").write_text("")
        return str(folder)

    monkeypatch.setattr(cgroup.tempfile, "mkdtemp", mkdtemp)
    monkeypatch.setattr(cgroup, "_remove", lambda folder: None)
    with cgroup.memory_group(300) as group:
        folder = top / "session" / "kdcourse-new"
        assert (folder / limit).read_text() == str(300 * 2**20)
        group.add(7)
        assert (folder / "cgroup.procs").read_text() == "7"
        (folder / usage).write_text(str(200 * 2**20))
        (folder / "memory.stat").write_text(
            f"{prefix}active_file {2**20}\n{prefix}inactive_file {4 * 2**20}\nanon 7\n"
        )
        assert group.used_mib() == 195
        (folder / events).write_text("low 0\noom_kill 0\n")
        assert not group.overflowed()
        (folder / events).write_text("low 0\noom_kill 1\n")
        assert group.overflowed()


def test_without_a_group_there_is_none_and_a_real_one_is_removed(tmp_path, monkeypatch):
    with cgroup.memory_group(200) as group:
        if group is not None:  # root has one on most machines
            folder = group._folder
            left = folder.with_name(f"{cgroup.PREFIX}{2**22 + 1}-left")  # no such process can be
            left.mkdir()
            with cgroup.memory_group(200):
                assert folder.exists()
                assert not left.exists()
            child = subprocess.Popen(
                [sys.executable, "-c", "input(); x = bytearray(10**9)"], stdin=-1
            )
            group.add(child.pid)
            child.communicate(b"\n")
            assert child.returncode == -signal.SIGKILL
            assert group.overflowed()
    assert group is None or not folder.exists()
    monkeypatch.setattr(cgroup, "OWN", tmp_path / "no-such-file")
    with cgroup.memory_group(200) as group:
        assert group is None


HOLDS = """
import mmap, os, socket, sys
kept = {}
print("ready", flush=True)
input()
print("holds", flush=True)
input()
"""


@pytest.mark.parametrize(
    ("what", "least"),
    [
        ("bytearray(200 * 2**20)", 190),
        ("[os.pipe() for _ in range(232)]", 40),
        ("[(lambda m: [m[at] for at in range(0, 2**36, 2**21)] and m)(mmap.mmap(-1, 2**36, "
         "flags=0x4022, prot=1))]", 120),
    ],
)  # fmt: skip
def test_what_processes_hold_is_counted_without_a_group(what, least):
    program = HOLDS.replace('input()\nprint("holds"', f'input()\nkept = {what}\nprint("holds"')
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", program], stdin=pipe, stdout=pipe) as child:
        tree = [psutil.Process(child.pid)]
        child.stdout.readline()
        before = watch._memory_mib(tree, 10**6)
        child.stdin.write(b"\n")
        child.stdin.flush()
        child.stdout.readline()
        assert watch._memory_mib(tree, 10**6) - before > least
        assert watch._memory_mib(tree, 1) - before > least / 2
        child.kill()


HELD = "kept = bytearray(300 * 2**20)\ndel kept\nprint('ready', flush=True)\ninput()"


def test_what_was_held_before_anybody_looked_ends_a_run():
    with running(HELD) as processes:
        reason, _, peak = watch.watch(processes, watch.Places(), watch.Limits(60, 200), None)
    assert reason == "memory"
    assert peak > 300


def test_no_cell_runs_after_one_that_held_too_much(assigned, student, monkeypatch):
    """However late the grader looks: here it sees nothing at all."""
    monkeypatch.setattr(watch, "_memory_mib", lambda tree, limit: 0.0)
    monkeypatch.setattr(sandbox, "memory_group", lambda limit: contextlib.nullcontext())
    key = Key(assigned / "key")
    made = student().solved().add("x = bytearray(800 * 2**20)\ndel x", FIT)
    cells = submission.parse_cells(json.dumps(made.notebook).encode())
    notebook, limits = submission.rebuild(key.master, cells), watch.Limits(60, 700)
    with execute.executed_for(key, notebook, limits=limits, isolation="bwrap") as run:
        assert (run.status, run.note) == ("memory", "stopped: more than 700 MiB of memory")
        assert [part.score for part in score.score_parts(run.answers, key)] == [4, 0]


# Time


@contextlib.contextmanager
def running(program, **options):
    """A program that has said that it is ready, as a run."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, **options) as child:
        child.stdout.readline()
        ended = os.pidfd_open(child.pid)
        try:
            yield watch.Processes([child.pid], ended)
        finally:
            os.close(ended)
            child.kill()


COMPUTES = "import time\nprint(flush=True)\nwhile time.process_time() < 0.5: pass"
HEADLESS = """
import ctypes, threading, time
threading.Thread(target=time.sleep, args=(60,)).start()
print(flush=True)
ctypes.CDLL(None).pthread_exit(None)
"""
ENDLESS = "print(flush=True)\nwhile True: pass"


@pytest.fixture
def crowded():
    """What programs are started with that all have to run on one and the same processor."""
    cpu = {min(os.sched_getaffinity(0))}
    options = {"preexec_fn": lambda: os.sched_setaffinity(0, cpu)}
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(running(ENDLESS, **options))
        yield options


def test_a_run_has_its_time_where_others_have_the_processor(crowded, monkeypatch):
    monkeypatch.setattr(watch, "PATIENCE", 10**6)
    places, limits = watch.Places(), watch.Limits(0.9, 700)
    with running(COMPUTES, **crowded) as processes:
        reason, seconds, _ = watch.watch(processes, places, limits, None)
    assert reason == "ended"
    assert seconds < 0.9
    with running(ENDLESS, **crowded) as processes:
        assert watch.watch(processes, places, limits, None)[0] == "timeout"


def test_a_run_that_never_gets_a_processor_ends_too(monkeypatch):
    monkeypatch.setattr(watch, "PATIENCE", 0)
    with running(ENDLESS) as processes:
        limits = watch.Limits(10**6, 700)
        assert watch.watch(processes, watch.Places(), limits, None)[0] == "timeout"


def test_the_clock_counts_what_is_computed_and_every_pause(monkeypatch):
    """What the processes of a run do is made up: letters and processor seconds, as /proc has it."""
    now, doing = 0.0, {}
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(clock, "_state", doing.get)
    ours = clock.Clock()

    def after(seconds, **states):
        nonlocal now
        now += seconds
        doing.clear()
        doing.update({int(name[1:]): state for name, state in states.items()})
        before = ours.seconds
        return ours.look(doing) - before

    assert after(1, p7=("R", 1.0)) == 1  # alone
    assert after(1, p7=("R", 1.25)) == 0.25  # others have the processor
    assert after(1, p7=("S", 1.25)) == 1  # it sleeps
    assert after(1, p7=("T", 1.5)) == 1
    assert after(1, p7=("R", 2.5), p8=("R", 1.0)) == 2  # two at the same time
    assert after(1, p7=("R", 2.75), p8=("S", 1.0)) == 0.25
    assert after(1, p7=("R", 2.75)) == 0  # the second has ended, and nobody has its time yet
    assert after(1, p7=("R", 4.0)) == 0.25
    assert after(1, p7=("Z", 4.25)) == 0.25  # it has ended
    myself = {f"p{os.getpid()}": ("R", 0.5)}
    assert after(1, p7=("S", 4.25), **myself) == 1  # who looks is never asleep
    assert ours.waited == 10


def test_what_the_kernel_says_of_a_process_is_read():
    with running("print(flush=True)\ninput()") as processes:
        pid = processes.roots[0].pid
        while (state := clock._state(pid))[0] != "S":  # it starts first, and may wait for a disk
            pass
        assert 0 <= state[1] < 60
    with running(ENDLESS) as processes:
        pid = processes.roots[0].pid
        first = clock._state(pid)[1]
        while (found := clock._state(pid))[0] != "R" or found[1] == first:
            pass
        assert found[1] > first
    with running(HEADLESS) as processes:
        stat = Path(f"/proc/{(pid := processes.roots[0].pid)}/stat")
        while ") Z " not in stat.read_text():  # until its first thread has ended
            pass
        while clock._state(pid)[0] != "S":  # its other one sleeps
            pass
    assert clock._state(pid) == ("X", 0.0)  # it has gone


# Files


def test_a_runs_files_live_in_a_file_system_of_their_own_and_size(assigned, student, monkeypatch):
    monkeypatch.setattr(sandbox, "WARM", warm.WarmProcess())
    key = Key(assigned / "key")
    cells = submission.parse_cells(json.dumps(student().solved().notebook).encode())
    notebook = submission.rebuild(key.master, cells)
    limits = sandbox.Limits(30, 700)
    before = set(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with execute.executed_for(key, notebook, limits=limits, isolation="bwrap") as run:
        state = os.statvfs(run.answers)
        assert state.f_blocks * state.f_frsize == (limits.disk_mib + sandbox.MARGIN_MIB) * 2**20
        assert sorted(path.name for path in run.answers.iterdir()) == [
            *("large.json", "slope.json", "small.json")
        ]
    sandbox.WARM.close()
    assert len(os.listdir("/proc/self/fd")) == len(before)  # noqa: PTH208


def test_a_file_without_a_name_counts(tmp_path):
    descriptor = os.open(tmp_path, os.O_RDONLY)
    places = watch.Places([descriptor])
    before = places.used_mib()
    hidden = os.open(tmp_path / "x", os.O_CREAT | os.O_RDWR)
    (tmp_path / "x").unlink()
    os.posix_fallocate(hidden, 0, 300 * 2**20)
    try:
        assert places.used_mib() - before > 200
        assert watch.Places(folder=tmp_path).used_mib() < 1  # walking names does not see it
    finally:
        os.close(hidden)
        os.close(descriptor)


# The machine fails


def ended(**seen):
    return watch.Outcome("ended", 1.0, 100, "", **seen)


def test_a_run_that_the_kernel_ended_for_lack_of_memory_is_not_the_students(tmp_path):
    notebook, limits = SimpleNamespace(cells=[]), watch.Limits(10, 700)

    def described(outcome, alone):
        return execute._describe(outcome, notebook, tmp_path, limits, alone)

    with pytest.raises(execute.MachineFailure, match="no memory left"):
        described(ended(starved=True, room=True), False)
    with pytest.raises(execute.MachineFailure, match="no memory left"):
        described(ended(starved=True, room=False), True)
    assert described(ended(starved=True, room=True), True).status == "memory"  # it did it itself
    assert described(ended(), True).status == "killed"
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "run.json").write_text('{"finished": true}')
    assert described(ended(starved=True, room=False), False).status == "graded"


@pytest.fixture
def three(tmp_path, monkeypatch):
    """Grades three made-up submissions; what is done with each can be changed."""
    parts = (SimpleNamespace(part="p"),)
    made = SimpleNamespace(
        digest="", run_digest="", exercise=SimpleNamespace(parts=parts, name="x")
    )
    monkeypatch.setattr(grade, "Key", lambda folder: made)
    (tmp_path / "in").mkdir()
    for name in "abc":
        (tmp_path / "in" / f"{name}.ipynb").touch()
    said = []

    def graded(grade_one):
        monkeypatch.setattr(grade, "grade_one", grade_one)
        settings = grade.Settings(tmp_path, 1, 1, "none")
        grade.grade_all(tmp_path / "in", tmp_path / "out", settings, announce=said.append)
        return "\n".join(said)

    return graded


def made_up(item):
    part = {"part": "p", "title": "P", "points": 1, "score": 1, "message": "right"}
    return {
        **{"student": item.student, "submission": "", "status": "graded", "note": ""},
        **{"score": 1, "max_score": 1, "parts": [part], "errors": [], "outputs": []},
        "sandbox": "none",
    }


def table(folder):
    lines = (folder / "out" / "grades.csv").read_text().splitlines()
    return [line[0] for line in lines[1:]]


FAILURES = [
    OSError(errno.ENOSPC, "No space left on device"),
    MemoryError(),
    execute.MachineFailure("no memory left"),
    ZeroDivisionError("a fault of ours"),
]


@pytest.mark.parametrize("failure", FAILURES)
def test_what_the_machine_failed_once_is_graded_again_and_told(three, tmp_path, failure):
    tries = []

    def grade_one(item, fingerprint, settings, alone):
        tries.append((item.student, alone))
        if tries.count(("b", False)) == 1 and not alone and item.student == "b":
            raise failure
        return made_up(item)

    said = three(grade_one)
    assert tries == [("a", False), ("b", False), ("c", False), ("b", True)]
    assert "failed on 1 submissions; they are graded once more" in said
    assert table(tmp_path) == ["a", "b", "c"]


def test_what_it_fails_twice_has_no_result_and_costs_nobody_else_anything(three, tmp_path):
    def grade_one(item, fingerprint, settings, alone):
        if item.student == "b":
            raise OSError(errno.ENOSPC, "the disk is full")
        return made_up(item)

    with pytest.raises(RuntimeError, match=r"on 1 submissions twice(.|\n)*b:\nOSError(.)*is full"):
        three(grade_one)
    assert table(tmp_path) == ["a", "c"]
    assert len(list((tmp_path / "out" / "results").iterdir())) == 2


def test_a_worker_that_dies_takes_no_result_with_it(assigned, student, tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name in "abcd":
        made = student().solved().add("import time; time.sleep(1)", FIT)
        (folder / f"{name}.ipynb").write_text(json.dumps(made.notebook))
    arguments = ("grade", MASTER, folder, "--out", out, "--key", assigned / "key", "--jobs", 2)
    done = []
    thread = threading.Thread(target=lambda: done.append(kdcourse(*arguments)))
    thread.start()
    while (worker := _at_work()) is None:
        assert thread.is_alive()
        time.sleep(0.02)
    worker.kill()
    thread.join()
    assert done[0].returncode == 0, done[0].stderr
    assert "a process that graded died" in done[0].stdout
    assert {name: row["score"] for name, row in rows(out).items()} == dict.fromkeys("abcd", "6")
    assert result(out, "a")["status"] == "graded"


def _at_work():
    """A process of joblib below this one that has a run in its sandbox."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            parent = process.parent()
            if process.name() == "bwrap" and "popen_loky_posix" in " ".join(parent.cmdline()):
                return parent
    return None
