"""System calls that hold memory where no watcher sees it: closed before a submission runs.

A file without a name (`memfd_create`), a shared segment that nobody has mapped, a queue, a ring of
the kernel's, pages that were handed to a pipe or a socket: such memory belongs to no process's size
and to no folder. A filter in the kernel answers these calls as a kernel does that does not have
them, on every machine alike. Sockets are left, of the usual kinds, with the buffers that the kernel
gives them.
"""

import ctypes
import errno
import platform
import struct

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_LOAD, _AND, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
_X32 = 0x40000000  # the same calls under other numbers
_AF_UNIX, _SOL_SOCKET, _F_SETPIPE_SZ = 1, 1, 1031
_FAMILIES = (2, 10, 16)  # the Internet, its version 6, and questions about the machine's interfaces
_PROTOCOLS = (0, 6, 17)  # the usual one, TCP, UDP
_BUFFERS = (7, 8, 32, 33)  # SO_SNDBUF, SO_RCVBUF, and both with FORCE
_CLONE_THREAD, _CLONE_FILES = 0x10000, 0x400
_MAP_SHARED, _MAP_ANONYMOUS = 0x1, 0x20

# Each call → its number on each machine; None where there is none.
MACHINES = ("x86_64", "aarch64")
AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
CLOSED: dict[str, tuple[int | None, int | None]] = {
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    "io_uring_setup": (425, 425),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "perf_event_open": (298, 241),
    "vmsplice": (278, 75),
    "splice": (275, 76),
    "tee": (276, 77),
    "sendfile": (40, 71),
    "fanotify_init": (300, 262),
    "inotify_init": (253, None),
    "inotify_init1": (294, 26),
    "setxattr": (188, 5),  # lists of access rights, of 64 KiB a folder
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "setxattrat": (463, 463),
    "landlock_create_ruleset": (444, 444),
    "unshare": (272, 97),  # a thread with descriptors of its own
    "clone3": (435, 435),  # whose flags cannot be read here; the C library then takes `clone`
}
PARTLY = {
    "fcntl": (72, 25),
    "socket": (41, 198),
    "socketpair": (53, 199),
    "setsockopt": (54, 208),
    "clone": (56, 220),
    "mmap": (9, 222),
}


def known() -> bool:
    """Whether this machine's numbers of the system calls are known here."""
    return platform.machine() in MACHINES


def close() -> None:
    """Close them for this process and all that it starts, for good.

    Raises:
        OSError: when the kernel takes no filter.
    """
    steps = program()
    instructions = ctypes.create_string_buffer(steps, len(steps))
    header = struct.pack("HL", len(steps) // 8, ctypes.addressof(instructions))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in (
        (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (_PR_SET_SECCOMP, _MODE_FILTER, header, 0, 0),
    ):
        if libc.prctl(*arguments):
            raise OSError(ctypes.get_errno(), "no filter for system calls")


def program() -> bytes:
    """The filter for this machine, in the kernel's own small language of 8-byte instructions."""
    machine = platform.machine()
    which = MACHINES.index(machine)
    steps = [_step(_LOAD, _ARCHITECTURE), _step(_EQUAL, AUDIT[machine], 1, 0)]
    steps += [_step(_RETURN, _KILL), _step(_LOAD, _NUMBER)]
    refused = _fail(errno.ENOSYS)
    if machine == "x86_64":
        steps += [_step(_AT_LEAST, _X32, 0, 1), refused]
    for numbers in CLOSED.values():
        if (number := numbers[which]) is not None:
            steps += [_step(_EQUAL, number, 0, 1), refused]
    for name, rule in _rules().items():
        steps += [_step(_LOAD, _NUMBER), _step(_EQUAL, PARTLY[name][which], 0, len(rule)), *rule]
    return b"".join([*steps, _step(_RETURN, _ALLOW)])


def _rules() -> dict[str, list[bytes]]:
    """What is asked of the arguments of a call; at the end of its steps it is allowed."""
    refused = _fail(errno.EAFNOSUPPORT)
    buffers = [step for each in _BUFFERS for step in (_step(_EQUAL, each, 0, 1), _fail(0))]
    return {
        "fcntl": [_argument(1), _step(_EQUAL, _F_SETPIPE_SZ, 0, 1), _fail(errno.EPERM)],
        # A notebook's kernel talks to itself by TCP on the loopback interface, which it looks for.
        "socket": [
            _argument(0),
            _step(_EQUAL, _AF_UNIX, 9, 0),
            *(_step(_EQUAL, each, 3 - at, 0) for at, each in enumerate(_FAMILIES)),
            refused,
            _argument(2),
            *(_step(_EQUAL, each, 3 - at, 0) for at, each in enumerate(_PROTOCOLS)),
            refused,
        ],
        "socketpair": [_argument(0), _step(_EQUAL, _AF_UNIX, 1, 0), refused],
        # Accepted, without effect.
        "setsockopt": [
            _argument(1),
            _step(_EQUAL, _SOL_SOCKET, 0, 1 + len(buffers)),
            _argument(2),
            *buffers,
        ],
        # A thread shares its process's descriptors, so that they can be counted.
        "clone": _refuse_flags(0, _CLONE_THREAD | _CLONE_FILES, _CLONE_THREAD),
        # Its pages stay when it is unmapped but for one.
        "mmap": _refuse_flags(3, _MAP_SHARED | _MAP_ANONYMOUS, _MAP_SHARED | _MAP_ANONYMOUS),
    }


def _refuse_flags(argument: int, mask: int, value: int) -> list[bytes]:
    return [_argument(argument), _step(_AND, mask), _step(_EQUAL, value, 0, 1), _fail(errno.EPERM)]


def _argument(number: int) -> bytes:
    """Load the lower half of an argument."""
    return _step(_LOAD, _ARGUMENTS + 8 * number)


def _fail(code: int) -> bytes:
    return _step(_RETURN, _ERRNO | code)


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, value)
