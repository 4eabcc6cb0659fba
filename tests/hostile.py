"""Submissions that try to break or fool a grader, and a class of them, graded."""

import json
import os
import socket
from collections.abc import Collection
from pathlib import Path

from classroom import FIT, MASTER, kdcourse_each

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

# Memory that belongs to no process's size, or to many, and files that are none of the run's.
CLOSED = """
import ctypes, mmap, os, socket, struct
libc = ctypes.CDLL(None)
def folder_rights():
    os.mkdir('x')
    many = b''.join(struct.pack('<HHI', 2, 7, n) for n in range(8000))
    os.setxattr('x', 'system.posix_acl_default', struct.pack('<I', 2) + many)
def buffers():
    a, b = socket.socketpair()
    a.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**22)
    return a.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) > 500_000
def fill(path, flags):
    os.posix_fallocate(os.open(path, flags), 0, 10**8)
for name, action in {
    'a file without a name': lambda: os.memfd_create('x'),
    'segments': lambda: [libc.shmget(0, ctypes.c_size_t(10**9), 0o1600) for _ in range(3)],
    'shared pages': lambda: mmap.mmap(-1, 10**8),
    'folder rights': folder_rights,
    'netlink': lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 2),
    'large buffers': buffers,
    'messages of the kernel': lambda: fill(f'/proc/{os.getpid()}/fd/2', os.O_WRONLY),
    'messages of the run': lambda: fill(f'/proc/{os.getppid()}/fd/2', os.O_WRONLY),
    'a large file in /tmp': lambda: fill('/tmp/x', os.O_RDWR | os.O_CREAT),
}.items():
    try: print(f'{name}: {action()}')
    except OSError as error: print(f'{name}: {error.strerror}')
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
    # Over its memory for a moment, between two looks of the watcher.
    "spike": ("x = bytearray(800 * 2**20)\ndel x", "memory", 4, 0),
    "forks": (
        f"import os, time\nfor _ in range(7): os.fork()\ntime.sleep(10**6)  # {MARK}",
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
    "closed": (CLOSED, "graded", 4, 2),
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

# Not every time, but in `tests/long`: one of each kind is enough, and some take long.
SELDOM = {
    *("forks", "programs", "page-tables", "pipes", "disk-bomb", "unlinked", "many-files"),
    *("shut", "two-forms", "displays", "writes-results", "names-answers", "without-parameters"),
    *("$(touch x)", "-rf", "\u00e4", "{x} 'q'"),
}
# Wrong answers that are judged in one process as well.
PLAIN = [*FOOLS][: [*FOOLS].index("prints")]
OFTEN = {*EXPECTED} - SELDOM - {*PLAIN}


def pieces(folder):
    """All below a folder, to see that nothing was added or changed."""
    return {path: path.lstat().st_mtime_ns for path in sorted(folder.rglob("*"))}


def state(*folders):
    """What the machine looks like to others."""
    return [*map(pieces, folders), Path("/proc/self/mounts").read_text()]


def submissions(student, base, abstract):
    """The notebooks of a hostile class, by name."""
    looks = LOOKS.format(grader=os.getpid(), abstract=abstract, messages=str(base / "scratch"))
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
    return class_ | {name: student().solved() for name in ODD_NAMES}


def graded_class(assigned, student, base, names: Collection[str]):
    """Grade a hostile class, and see that it changed nothing; the folder of its results.

    Args:
        assigned: what `assign` made of the small exercise.
        student: makes a student.
        base: an empty folder.
        names: of those who hand in.
    """
    out, scratch, slow, many, folder = (
        base / name for name in ("out", "scratch", "slow", "many", "in")
    )
    for made in (scratch, slow, many, folder):
        made.mkdir()
    abstract = socket.socket(socket.AF_UNIX)
    abstract.bind(f"\0kdcourse-{os.getpid()}")
    abstract.listen()
    for name, made in submissions(student, base, f"kdcourse-{os.getpid()}").items():
        if name in names:
            into = slow if BREAKS.get(name, ("", ""))[1] == "timeout" else folder
            into = many if name in ("forks", "child-flood") else into
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
    before = state(folder, assigned)

    def grade(submissions, seconds, memory, *more):
        return (
            *("grade", MASTER, submissions, "--out", out, "--key", assigned / "key"),
            *("--timeout", seconds, "--memory", memory, *more),
        )

    # Each limit ends what is meant to break it, and the others are out of its reach: the clock
    # but for what lasts, the memory of many copies of a large process, and of a flood of output
    # that waits to be read, which takes longer the busier the machine is.
    done = kdcourse_each(
        grade(slow, 5, 700),
        grade(many, 90, 6000),
        grade(folder, 90, 700, "--roster", roster),
        env={**os.environ, "SECRET": f"SECRET-{MARK}", "TMPDIR": str(scratch)},
    )
    assert done.returncode == 0, done.stderr
    abstract.close()
    assert before == state(folder, assigned)
    return out
