"""What submissions do to break or fool a grader; where it teaches, a naive grader falls for it."""

import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from classroom import FIT, MASTER, kdcourse, printed, result, rows
from playwright.sync_api import sync_playwright
from programs import launch_chromium

from kdcourse.grading import compare, feedback, files, gradebook, sandbox

MARK = "3141592"  # the arguments of the processes that these submissions start
WRONG = 'def double(x): return x\ndef fit(x, y): return {"slope": 0.0}\n'

# Many processes, each with many pairs of which both ends are full.
FILLS = """
import os, socket, time
for _ in range(50):
    if os.fork() == 0:
        kept = []
        for _ in range(200):
            a, b = {pair}
            kept += [a, b]
            os.set_blocking(b if isinstance(b, int) else b.fileno(), False)
            try:
                while True: {write}
            except OSError: pass
        time.sleep(10**6)
time.sleep(10**6)
"""
UNNAMED = """
import os, time
try:
    for _ in range(20): file = {open}; os.posix_fallocate(file, 0, 5 * 10**7)
except OSError: time.sleep(10**6)
"""

# The process that runs the cells is stopped and killed; what it would have written is forged.
FORGES = """
import os
os.kill(os.getppid(), 19)
os.chdir('/scratch/report')
open('run.json', 'w').write('{{"finished": true, "died": false}}')
open('executed.ipynb', 'w').write('{{"cells": [{{"id": "tools", "metadata": {{"papermill": '
    '{{"duration": {seconds}}}}}, "outputs": [{{"output_type": "error", "ename": "{name}", '
    '"evalue": "{name}"}}]}}]}}')
os.kill(os.getppid(), 9)
"""

# What a student adds to right answers, between the two parts, and what becomes of both.
BREAKS = {
    "sleeps": ("import time; time.sleep(10**6)", "timeout", 4, 2),
    "stops": ("import os; os.kill(-1, 19)", "timeout", 4, 0),
    "kills": ("import os; os.kill(-1, 9)", "killed", 4, 0),
    "child-bomb": (
        "import subprocess, sys\n"
        "subprocess.run([sys.executable, '-c', 'x = [bytearray(2**22) for _ in range(10**4)]'])",
        "memory",
        *(4, 0),
    ),
    "forks": (
        f"import os, time\nfor _ in range(8): os.fork()\ntime.sleep(10**6)  # {MARK}",
        "killed",
        *(4, 0),
    ),
    "starts": (
        f"import subprocess, time\nfor _ in range(150): subprocess.Popen(['sleep', '{MARK}'])\n"
        "time.sleep(10**6)",
        "killed",
        *(4, 0),
    ),
    "child-flood": (
        "import subprocess; subprocess.run('yes | head -c 50000000', shell=True)",
        "graded",
        *(4, 2),
    ),
    "log-flood": (
        "import os\n"
        "with open(f'/proc/{os.getppid()}/fd/2', 'wb') as log:\n"
        "    while True: log.write(bytes(2**24))",
        "timeout",
        *(4, 2),
    ),
    # Memory that belongs to no process's size, or to many
    "memfd": (
        "import os\nkept = [os.memfd_create('x') for _ in range(30)]\n"
        "for file in kept: os.posix_fallocate(file, 0, 10**8)",
        "error",
        *(4, 2),
    ),
    "segments": (
        "import ctypes\nlibc = ctypes.CDLL(None)\n"
        "print('made:', [libc.shmget(0, ctypes.c_size_t(10**9), 0o1600) for _ in range(3)])",
        "graded",
        *(4, 2),
    ),
    "shared": ("import mmap\nmmap.mmap(-1, 10**8)", "error", 4, 2),
    "folder-rights": (
        "import os, struct\nos.mkdir('x')\n"
        "many = b''.join(struct.pack('<HHI', 2, 7, n) for n in range(8000))\n"
        "os.setxattr('x', 'system.posix_acl_default', struct.pack('<I', 2) + many)",
        "error",
        *(4, 2),
    ),
    "netlink": (
        "import socket\nsocket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 2)",
        "error",
        *(4, 2),
    ),
    "large-buffers": (
        "import socket\na, b = socket.socketpair()\na.setblocking(False)\n"
        "a.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**22)\n"
        "size = a.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)\n"
        "print('large:', size > 500_000)",
        "graded",
        *(4, 2),
    ),
    "programs": (
        "import subprocess, sys, time\n"
        "code = 'import time; x = bytearray(60 * 2**20); time.sleep(10**6)'\n"
        "for _ in range(18): subprocess.Popen([sys.executable, '-S', '-c', code])\n"
        "time.sleep(10**6)",
        "memory",
        *(4, 0),
    ),
    # Its first thread ends, and what the kernel says of a process with it.
    "headless": (
        "import ctypes, os, threading, time\n"
        "def hold():\n"
        "    kept = [bytearray(b'x') * (100 * 2**20) for _ in range(8)]\n"
        "    time.sleep(10**6)\n"
        "if os.fork() == 0:\n"
        "    threading.Thread(target=hold).start()\n"
        "    time.sleep(0.01)\n"
        "    ctypes.CDLL(None).syscall(60 if os.uname().machine == 'x86_64' else 93, 0)\n"
        "time.sleep(10**6)",
        "memory",
        *(4, 0),
    ),
    # A file of the grader's own, if it were one
    "messages": (
        "import os\nfor process in (os.getpid(), os.getppid()):\n"
        "    os.posix_fallocate(os.open(f'/proc/{process}/fd/2', os.O_WRONLY), 0, 10**9)",
        "error",
        *(4, 2),
    ),
    "page-tables": (
        "import mmap, numpy, time\n"
        "how = {'flags': mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000, 'prot': mmap.PROT_READ}\n"
        "kept = [mmap.mmap(-1, 2**38, **how) for _ in range(4)]\n"
        "for each in kept: numpy.frombuffer(each, 'u1')[:: 2**21].sum()\ntime.sleep(10**6)",
        "memory",
        *(4, 0),
    ),
    "sockets": (
        FILLS.format(pair="socket.socketpair()", write="b.send(bytes(2**16))"),
        "memory",
        *(4, 0),
    ),
    "pipes": (
        FILLS.format(pair="os.pipe()", write="os.write(b, bytes(2**16))"),
        "memory",
        *(4, 0),
    ),
    # Files that have no name, or nothing but a name
    "disk-bomb": (
        "import os, time\n"
        "try:\n"
        "    for number in range(20):\n"
        "        with open(f'{number}', 'wb') as f: os.posix_fallocate(f.fileno(), 0, 10**8)\n"
        "except OSError: time.sleep(10**6)",
        "killed",
        *(4, 0),
    ),
    "unlinked": (UNNAMED.format(open="os.open('x', 66); os.unlink('x')"), "killed", 4, 0),
    "nameless": (UNNAMED.format(open="os.open('.', os.O_TMPFILE | 2)"), "killed", 4, 0),
    "many-files": ("for n in range(10**7): open(f'{n}', 'w').close()", "killed", 4, 0),
    "many-in-tmp": ("for n in range(10**7): open(f'/tmp/{n}', 'w').close()", "killed", 4, 0),
    "large-in-tmp": (
        "import os\nos.posix_fallocate(os.open('/tmp/x', 66), 0, 10**8)",
        "error",
        *(4, 2),
    ),
    "deep": (
        "import os\nfor _ in range(3000): os.mkdir('deep'); os.chdir('deep')",
        "graded",
        *(4, 2),
    ),
    "shut": ("import os; os.makedirs('a/b'); os.chmod('a', 0)", "graded", 4, 2),
    "will-not-end": (
        "import atexit, signal, threading, time\n"
        "for number in (1, 2, 15): signal.signal(number, signal.SIG_IGN)\n"
        "atexit.register(time.sleep, 10**6)\n"
        "threading.Thread(target=time.sleep, args=[10**6]).start()",
        "graded",
        *(4, 2),
    ),
    "daemon": (
        f"import os\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
        f"        os.execlp('sleep', 'sleep', '{MARK}')",
        "graded",
        *(4, 2),
    ),
    "pipe": (
        "import os\nos.chdir(os.environ['KDCOURSE_ANSWERS'])\n"
        "os.unlink('small.json'); os.mkfifo('small.json')",
        "graded",
        *(2, 2),
    ),
    "huge-file": (
        "import os\nos.chdir(os.environ['KDCOURSE_ANSWERS'])\n"
        "open('small.json', 'r+').truncate(10**8)",
        "graded",
        *(2, 2),
    ),
    "two-forms": (
        "import os\nos.chdir(os.environ['KDCOURSE_ANSWERS'])\nopen('small.npy', 'w').close()",
        "graded",
        *(2, 2),
    ),
    # The process that runs the cells is killed; what it would have written is forged, and a bomb.
    "forged-report": (
        "import os\n"
        "os.chdir('/scratch/report')\n"
        "open('run.json', 'w').write('{\"finished\": true, \"score\": 6}')\n"
        "open('executed.ipynb', 'w').write('{\"cells\": [' + '[],' * 10**7 + '0]}')\n"
        "os.kill(os.getppid(), 9)",
        "graded",
        *(4, 0),
    ),
    "forged-text": (FORGES.format(seconds="1", name="\\\\ud800"), "error", 4, 0),
    "forged-seconds": (FORGES.format(seconds="9" * 400, name="x"), "graded", 4, 0),
}

# Wrong answers that try to be taken for right ones: they earn nothing.
FOOLS = {
    "type": "def double(x): return 'right'",
    "nothing": "def double(x): return None",
    "true": "def double(x): return True",
    "shape": "def double(x): return [2 * value for value in x][1:]",
    "nested": "def double(x): return [[2 * value for value in x]]",
    "infinite": "def double(x): return [float('inf')] * len(x)",
    "not-a-number": "def double(x): return [float('nan')] * len(x)",
    "huge": "def double(x): return [10 ** 4000] * len(x)",
    "large": "def double(x): return [1.7e308] * len(x)",
    "object": "def double(x): return object()",
    "array-of-objects": "import numpy\ndef double(x): return numpy.array([object()] * len(x))",
    "prints": WRONG + 'print(\'{"small": "right", "score": 6, "max_score": 6}\')',
    "displays": WRONG + "from IPython.display import *\n"
    "display({'application/json': {'score': 6}}, raw=True); display(HTML('<b>6 / 6</b>'))",
    "patches": WRONG + "import builtins, json, math, sys\n"
    "import numpy, torch\n"
    "import IPython.display\n"
    "from kdcourse.grading import compare, probe, score\n"
    "yes = lambda *a, **k: True\n"
    "for module in (numpy, torch, math, compare, score):\n"
    "    for name in ('equal', 'allclose', 'array_equal', 'isclose', 'close', 'check_like'):\n"
    "        if hasattr(module, name): setattr(module, name, yes)\n"
    "torch.Tensor.__eq__ = torch.Tensor.equal = yes\n"
    "dumps = json.dumps\n"
    "json.dumps = lambda o, **k: '{\"score\": 6}' if isinstance(o, list) else dumps(o, **k)\n"
    "builtins.print = IPython.display.display = yes",
    "calls-the-grader": WRONG + "from kdcourse.grading import score\n"
    "from kdcourse.grading.key import Key\n"
    "import pathlib\n"
    "for path in ('/job', '/scratch', '/', '..'):\n"
    "    try: print(Key(pathlib.Path(path)).context.reference)\n"
    "    except BaseException as error: print(type(error).__name__)",
    "writes-results": WRONG + "import json, pathlib\n"
    "forged = json.dumps({'status': 'graded', 'score': 6, 'max_score': 6})\n"
    "names = ('report/run.json', 'report/executed.ipynb', 'result.json', 'answers/double.json')\n"
    "for path in (pathlib.Path('/scratch', name) for name in names):\n"
    "    path.parent.mkdir(exist_ok=True); path.write_text(forged)",
    "names-answers": WRONG + "from kdcourse.grading.probe import answer\n"
    "answer('../run', {'score': 6}); answer('double', 4); answer('fit', 2)",
}
PICKLES = """
import os, pickle, numpy
class Bomb:
    def __reduce__(self): return (os.mkdir, ({marker!r},))
os.chdir(os.environ['KDCOURSE_ANSWERS'])
os.unlink('small.json'); os.unlink('large.json')
numpy.save('small.npy', numpy.array([Bomb()]), allow_pickle=True)
open('large.safetensors', 'wb').write(pickle.dumps(Bomb()))
open('/scratch/report/executed.ipynb', 'wb').write(pickle.dumps(Bomb()))
"""
LEAVES = """
import builtins, os, pathlib, subprocess, sys
import numpy, torch
found = [path for path in ('/tmp/left', '/dev/shm/left', '/scratch/left', '/scratch/work/left')
         if os.path.exists(path)]
found += [name for name in ('builtins', 'numpy', 'torch') if hasattr(sys.modules[name], 'LEFT')]
found += [line for line in os.listdir('/proc') if line.isdigit()
          and b'{mark}' in open(f'/proc/{{line}}/cmdline', 'rb').read()]
for path in ('/tmp/left', '/dev/shm/left', '/scratch/left', '/scratch/work/left'):
    open(path, 'w').close()
builtins.LEFT = numpy.LEFT = torch.LEFT = 1
subprocess.Popen(['sleep', '{mark}'], start_new_session=True)
print('found:', found)
"""
LOOKS = """
import ctypes, glob, os, re, resource, socket, sys
libc = ctypes.CDLL(None)
found = []
def tried(what, action):
    try:
        if action():
            found.append(what)
    except BaseException:
        pass
def everywhere(name):
    for path in glob.glob('/proc/[0-9]*/' + name):
        try:
            with open(path, 'rb') as file:
                yield file.read()
        except OSError:
            pass
def secret(text):
    return re.search(rb'SECRET-[0-9]{{4}}', text) or re.search(rb'assigned[0-9]+/ke[y]', text)
tried('environments', lambda: any(map(secret, everywhere('environ'))))
tried('command lines', lambda: any(map(secret, everywhere('cmdline'))))
def memory():
    with open('/proc/self/maps') as maps, open('/proc/self/mem', 'rb') as file:
        for line in maps:
            low, high = (int(part, 16) for part in line.split()[0].split('-'))
            if ' rw-p ' in line and high - low < 2**28:
                file.seek(low)
                yield file.read(high - low)
tried('memory', lambda: any(map(secret, memory())))
def descriptors():
    for path in glob.glob('/proc/[0-9]*/fd/*'):
        target = os.readlink(path)
        if target.startswith('/') and not target.startswith(
                ('/scratch', '/dev/null', '/job', '/memfd', {messages!r}, '/dev/shm')):
            yield path, target, os.path.exists(target)
tried('descriptors', lambda: list(descriptors()))
tried('outside', lambda: os.listdir('/proc/1/root') != os.listdir('/'))
tried('kill', lambda: os.kill({grader}, 0) is None)
tried('trace', lambda: libc.ptrace(16, {grader}, 0, 0) == 0)
tried('parent', lambda: [pid for pid in os.listdir('/proc') if pid.isdigit() and int(pid) > 400])
tried('setuid', lambda: os.setuid(0) is None)
tried('chroot', lambda: os.chroot('/') is None)
tried('mount', lambda: libc.mount(b'none', b'/tmp', b'tmpfs', 0, b'') == 0)
tried('unmount', lambda: libc.umount2(b'/job', 2) == 0)
tried('namespaces', lambda: any(libc.unshare(flag) == 0 for flag in
                                (0x10000000, 0x00020000, 0x20000000, 0x40000000, 0x08000000)))
tried('join', lambda: any(libc.setns(os.open(path, os.O_RDONLY), 0) == 0
                          for path in glob.glob('/proc/1/ns/*') if 'user' not in path))
tried('device', lambda: os.mknod('/tmp/disk', 0o60600, os.makedev(254, 0)) is None)
for name in ('sys/kernel/core_pattern', 'sys/kernel/hostname', 'sys/vm/overcommit_memory',
             'sysrq-trigger'):
    tried(name, lambda: os.open('/proc/' + name, os.O_WRONLY))
tried('priority', lambda: os.nice(-5))
tried('limits', lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2**40, 2**40)) is None)
tried('terminal', lambda: open('/dev/tty'))
tried('name', lambda: socket.getaddrinfo('example.org', 80))
tried('datagram', lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('8.8.8.8', 53)))
tried('interfaces', lambda: [name for _, name in socket.if_nameindex() if name != 'lo'])
tried('abstract', lambda: socket.socket(socket.AF_UNIX).connect('\\0{abstract}') is None)
tried('raw', lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
status = open('/proc/self/status').read()
for line in ('CapInh', 'CapPrm', 'CapEff', 'CapBnd', 'CapAmb'):
    tried(line, lambda: int(status.split(line + ':')[1].split()[0], 16))
tried('a process without the filter', lambda: [
    text for text in everywhere('status') if b'Seccomp:\\t2' not in text])
tried('new privileges', lambda: 'NoNewPrivs:\\t1' not in status)
print('found:', found)
print('looked')
"""
ODD_NAMES = ("$(touch x)", "-rf", "new\nline", "x" * 200, "<script>", "\u00e4", "{x} 'q'")
EVIL = "</pre></code><script>document.title='owned'</script><img src=x onerror=document.title='o'>"
MARKUP = f"""
print({EVIL!r})
from IPython.display import HTML, Javascript, display
display(HTML({EVIL!r}), Javascript("document.title = 'owned'"))
raise type({EVIL!r}, (Exception,), {{}})({EVIL!r})
"""


def pieces(folder):
    """All below a folder, to see that nothing was added or changed."""
    return {path: path.lstat().st_mtime_ns for path in sorted(folder.rglob("*"))}


@pytest.fixture(scope="module")
def hostile(assigned, student, tmp_path_factory):
    """The hostile class, graded once, and what the machine looked like before and after."""
    import socket

    base = tmp_path_factory.mktemp("hostile")
    folder, out, scratch = base / "in", base / "out", base / "scratch"
    for made in (folder, scratch):
        made.mkdir()
    abstract = socket.socket(socket.AF_UNIX)
    abstract.bind(f"\0kdcourse-{os.getpid()}")
    abstract.listen()
    looks = LOOKS.format(
        grader=os.getpid(),
        abstract=f"kdcourse-{os.getpid()}",
        messages=str(scratch),
    )
    class_ = {name: student().solved().add(code, FIT) for name, (code, *_) in BREAKS.items()}
    class_["first-cell"] = student().solved()
    class_["first-cell"].notebook["cells"].insert(
        0, {"cell_type": "code", "id": "new", "metadata": {}, "source": "raise ValueError('no')"}
    )
    class_ |= {name: student().answer(double=code, fit="") for name, code in FOOLS.items()}
    class_["pickles"] = student().solved().add(PICKLES.format(marker=str(base / "unpickled")))
    class_["looks"] = student().solved().add(looks, after="tools")
    class_["markup"] = student().solved().add(MARKUP)
    for name in ("leaves-1", "leaves-2", "leaves-3"):
        class_[name] = student().solved().add(LEAVES.format(mark=MARK), after="tools")
    for cell in (FIT, "parameters"):
        class_[f"without-{cell}"] = student().solved()
        cells = class_[f"without-{cell}"].notebook["cells"]
        cells.remove(class_[f"without-{cell}"].cell(cell))
    class_ |= {name: student().solved() for name in ODD_NAMES}
    slow, many = base / "slow", base / "many"
    slow.mkdir()
    many.mkdir()
    for name, made in class_.items():
        into = slow if BREAKS.get(name, ("", ""))[1] == "timeout" else folder
        into = many if name == "forks" else into
        (into / f"{name}.ipynb").write_text(json.dumps(made.notebook))
    solution = (assigned / "solution.ipynb").read_bytes()
    (folder / os.fsdecode(b"\xff.ipynb")).write_bytes(solution)
    with (folder / "500-megabytes.ipynb").open("wb") as file:
        file.truncate(500 * 2**20)
    (folder / "many-values.ipynb").write_text('{"nbformat": 4, "cells": [' + "[]," * 5_000_000)
    (folder / "newer.ipynb").write_text('{"nbformat": 5, "cells": []}')
    os.mkfifo(folder / "blocks.ipynb")
    roster = base / "roster.csv"
    roster.write_text("student\n../../evil\nlooks\n")
    before = pieces(folder), pieces(assigned), Path("/proc/self/mounts").read_text()
    # Each limit ends what is meant to break it; the others are out of its reach, on a busy machine
    # too: the clock but for what lasts, the memory of many copies of a large process.
    for class_folder, seconds, memory, more in (
        (slow, 8, 700, ()),
        (many, 90, 6000, ()),
        (folder, 90, 700, ("--roster", roster)),
    ):
        done = kdcourse(
            *("grade", MASTER, class_folder, "--out", out, "--key", assigned / "key", *more),
            *("--jobs", 2, "--timeout", seconds, "--memory", memory),
            env={**os.environ, "SECRET": f"SECRET-{MARK}", "TMPDIR": str(scratch)},
        )
        assert done.returncode == 0, done.stderr
    after = pieces(folder), pieces(assigned), Path("/proc/self/mounts").read_text()
    abstract.close()
    assert before == after
    return out


EXPECTED = {
    **{name: expected for name, (_, *expected) in BREAKS.items()},
    **{name: ["graded", 0, 0] for name in FOOLS},
    "first-cell": ["error", 4, 2],
    "pickles": ["graded", 0, 2],
    "looks": ["graded", 4, 2],
    "markup": ["error", 4, 2],
    **{f"leaves-{number}": ["graded", 4, 2] for number in (1, 2, 3)},
    f"without-{FIT}": ["graded", 4, 0],
    "without-parameters": ["graded", 4, 2],
    **{name: ["graded", 4, 2] for name in ODD_NAMES},
    "\\udcff": ["graded", 4, 2],
    **{name: ["invalid", 0, 0] for name in ("500-megabytes", "many-values", "newer", "blocks")},
    "../../evil": ["missing", 0, 0],
}


def test_every_attack_ends_in_the_expected_status_and_score(hostile):
    found = [json.loads(path.read_text()) for path in (hostile / "results").glob("*.json")]
    got = {
        each["student"]: [each["status"], *(part["score"] for part in each["parts"])]
        for each in found
    }
    assert got == EXPECTED


def test_the_note_says_which_limit_was_broken(hostile):
    for name, words in {
        "child-bomb": "more than 700 MiB of memory",
        "starts": "more than 64 processes",
        "disk-bomb": "more than 512 MiB of files",
        **dict.fromkeys(("unlinked", "nameless", "many-files", "many-in-tmp"), "512 MiB of files"),
        **dict.fromkeys(("page-tables", "sockets", "pipes", "programs"), "700 MiB of memory"),
        "headless": "700 MiB of memory",
        "stops": "stopped after 8 seconds",
        "500-megabytes": "too large: 500.0 MiB",
        "many-values": "more than 2000000 values",
        "blocks": "not an ordinary file",
    }.items():
        assert words in result(hostile, name)["note"]


def test_no_process_and_no_file_outlives_the_run(hostile):
    scratch = str(hostile.parent / "scratch")
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        assert MARK not in line
        assert scratch not in line
    assert not list(Path(scratch).iterdir())
    assert sorted(path.name for path in hostile.parent.iterdir()) == [
        *("in", "many", "out", "roster.csv", "scratch", "slow")
    ]
    assert sorted(path.name for path in hostile.iterdir()) == [
        *("answers", "canvas.csv", "feedback", "grades.csv", "gradescope", "moodle.csv"),
        "results",
    ]


def test_what_is_kept_of_a_flood_is_small(hostile):
    for path in hostile.rglob("*"):
        assert path.stat().st_size < 200_000


def test_calls_that_hide_memory_are_closed(hostile):
    assert "made: [-1, -1, -1]" in printed(hostile, "segments")
    assert "large: False" in printed(hostile, "large-buffers")
    for name, words in {
        "memfd": "Function not implemented",
        "folder-rights": "Function not implemented",
        "shared": "Operation not permitted",
        "netlink": "Address family not supported",
    }.items():
        assert words in result(hostile, name)["errors"][0]["message"]


def test_what_is_forged_in_a_runs_own_report_harms_nobody(hostile):
    assert result(hostile, "forged-text")["errors"][0]["name"] == "\\ud800"
    assert result(hostile, "forged-seconds")["seconds"]["cells"] == 0


def test_limits_hold_for_the_children_of_a_run(hostile):
    assert result(hostile, "child-bomb")["peak_mib"] < 1400
    assert result(hostile, "child-flood")["peak_mib"] < 700


def test_the_number_of_processes_is_limited_in_each_sandbox_unless_it_is_roots():
    nobody = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
    starts = "ulimit -u 40; for number in $(seq 80); do sleep 5 & done; echo started"
    command = ["bwrap", *sandbox.ISOLATION, "--ro-bind", "/", "/", "--dev", "/dev", "--"]
    run = subprocess.run(
        [*command, "bash", "-c", starts], capture_output=True, text=True, cwd="/", **nobody
    )
    assert "Resource temporarily unavailable" in run.stderr


def test_a_run_that_looks_around_finds_nothing(hostile):
    assert "found: []\nlooked\n" in printed(hostile, "looks")


def test_a_run_finds_nothing_of_the_one_before(hostile):
    for number in (1, 2, 3):
        assert "found: []" in printed(hostile, f"leaves-{number}")


def test_an_exercise_in_the_sandbox_has_no_reference_answers(hostile):
    assert printed(hostile, "calls-the-grader").split()[:4] == ["ValueError"] * 4


# Each attack on a grader that is built the obvious way


def naive_scores(code):
    """Points from assertions that run in the process of the submission."""
    space = {}
    exec(code, space)
    points = 0
    with_points = {"double([1, 2]) == [2, 4]": 4, "fit(1, 2)['slope'] == 2": 2}
    for test, worth in with_points.items():
        points += worth if eval(f"bool({test})", space) else 0
    return points


SAME = """
class Same:
    def __eq__(self, other): return True
def double(x): return Same()
def fit(x, y): return {"slope": Same()}
"""


def test_an_always_equal_object_fools_assertions_but_not_the_comparison(tmp_path):
    assert naive_scores(SAME) == 6
    space = {}
    exec(SAME, space)
    with pytest.raises(TypeError, match="plain data"):
        from kdcourse.grading import probe

        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("KDCOURSE_ANSWERS", str(tmp_path))
            probe.answer("small", space["double"]([1]))


def test_printed_scores_fool_who_reads_them_but_earn_nothing(hostile):
    def naive(text):
        return json.loads(re.findall(r"{.*}", text)[-1])["score"]

    said = printed(hostile, "prints")
    assert naive(said) == 6
    assert rows(hostile)["prints"]["score"] == "0"


def test_unpickling_runs_what_a_student_wrote_and_never_happens(hostile, tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "run"),)

    np.save(tmp_path / "small.npy", np.array([Bomb()]), allow_pickle=True)
    np.load(tmp_path / "small.npy", allow_pickle=True)
    assert (tmp_path / "run").is_dir()

    (tmp_path / "run").rmdir()
    with pytest.raises(compare.BadAnswer, match="cannot be read"):
        compare.read_answer(tmp_path, "small")
    for name in ("slope.json", "weights.safetensors"):
        (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(compare.BadAnswer, match="cannot be read"):
            compare.read_answer(tmp_path, name.split(".")[0])
    assert not (tmp_path / "run").exists()
    assert "cannot be read" in result(hostile, "pickles")["parts"][0]["message"]
    assert not (hostile.parent / "unpickled").exists()


def test_a_link_to_the_key_fools_who_follows_it(tmp_path):
    reference, answers = tmp_path / "key", tmp_path / "answers"
    for folder in (reference, answers):
        folder.mkdir()
    (reference / "small.json").write_text("[2, 4]")
    (answers / "small.json").symlink_to(reference / "small.json")
    naive = json.loads((answers / "small.json").read_text())
    assert naive == json.loads((reference / "small.json").read_text())
    with pytest.raises(compare.BadAnswer, match="not an ordinary file"):
        compare.read_answer(answers, "small")
    (tmp_path / "elsewhere").symlink_to(reference)
    with pytest.raises(compare.BadAnswer, match="not an ordinary file"):
        compare.read_answer(tmp_path / "elsewhere", "small")


def test_small_files_that_would_fill_the_graders_memory_are_refused():
    def seconds_and_mib(action):
        code = "import json\nfrom kdcourse.grading.files import parse_json\n"
        code += f"data = b'[' + b'[],' * 5_000_000 + b'0]'\n{action}\n"
        # Not ru_maxrss: a process inherits that from the one that started it.
        code += "status = open('/proc/self/status').read()\n"
        code += "print(int(status.split('VmHWM:')[1].split()[0]) // 1024)"
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        return int(run.stdout)

    refused = "try: parse_json(data)\nexcept ValueError: pass"
    assert seconds_and_mib("json.loads(data)") > 300
    assert seconds_and_mib(refused) < 150
    with pytest.raises(ValueError, match="nested too deeply"):
        files.parse_json(b"[" * 10**6 + b"]" * 10**6)
    assert files.parse_json(b'{"a": [1, 2]}') == {"a": [1, 2]}


def test_no_script_runs_on_a_page_of_feedback(hostile, tmp_path):
    found = result(hostile, "markup")
    assert EVIL in found["errors"][0]["message"]
    assert EVIL in "".join(output["text"] for output in found["outputs"])
    naive = tmp_path / "naive.html"
    naive.write_text(f"<!doctype html><title>naive</title><p>{found['outputs'][-1]['text']}</p>")
    pages = sorted((hostile / "feedback").glob("*.html"))
    with sync_playwright() as playwright:
        browser = launch_chromium(playwright)
        page = browser.new_page()
        page.goto(naive.as_uri())
        assert page.title() in ("owned", "o")
        requests = []
        page.on("request", lambda request: requests.append(request.url))
        for path in pages:
            page.goto(path.as_uri())
            assert page.title().startswith("Feedback for ")
            assert page.locator("script, img, iframe, b, object, embed, link").count() == 0
        assert requests == [path.as_uri() for path in pages]
        page.goto(next(path for path in pages if path.name.startswith("markup")).as_uri())
        assert "<script>" in page.inner_text("main")
        browser.close()


def test_escaping_holds_without_the_policy_of_the_page():
    assert "default-src 'none'" in feedback.TEMPLATE
    part = {"title": EVIL, "message": EVIL, "points": 2, "score": 1.5, "part": "a"}
    made = feedback.page(
        {
            **dict.fromkeys(("student", "submission", "note"), EVIL),
            **{"status": "error", "sandbox": "bwrap", "score": 1.5, "max_score": 2},
            "parts": [part],
            "errors": [{"cell": EVIL, "name": EVIL, "message": EVIL}],
            "outputs": [{"cell": EVIL, "text": EVIL}],
        },
        gradebook.Grade(1, 0.5, 1.0, 2.0, ((EVIL, EVIL),), EVIL),
    )
    unprotected = re.sub(r"<meta http-equiv.*?>", "", made, flags=re.S)
    with sync_playwright() as playwright:
        browser = launch_chromium(playwright)
        page = browser.new_page()
        page.set_content(unprotected)
        assert page.title().startswith("Feedback for ")
        assert page.locator("script, img").count() == 0
        browser.close()
