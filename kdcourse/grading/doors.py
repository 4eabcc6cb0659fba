"""System calls that hold memory where no watcher sees it: closed before a submission runs.

A file without a name (`memfd_create`), a shared segment that nobody has mapped, a message queue, a
ring of the kernel's, a pipe that was given pages: such memory belongs to no process's size and to
no folder. A filter in the kernel answers these calls as a kernel does that does not have them, on
every machine alike.
"""

import ctypes
import errno
import platform
import struct

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_NUMBER, _ARCHITECTURE, _SECOND_ARGUMENT = 0, 4, 24  # offsets in struct seccomp_data
_X32 = 0x40000000  # the same calls under other numbers
_F_SETPIPE_SZ = 1031

CLOSED = (
    *("memfd_create", "memfd_secret", "shmget", "msgget", "semget", "mq_open", "io_uring_setup"),
    *("add_key", "request_key", "keyctl", "bpf", "userfaultfd", "perf_event_open", "vmsplice"),
    "fanotify_init",
)
# machine → its number in the kernel's audit.h, `fcntl`, and the closed calls in their order
NUMBERS = {
    "x86_64": (
        0xC000003E,
        72,
        (319, 447, 29, 68, 64, 240, 425, 248, 249, 250, 321, 323, 298, 278, 300),
    ),
    "aarch64": (
        0xC00000B7,
        25,
        (279, 447, 194, 186, 190, 180, 425, 217, 218, 219, 280, 282, 241, 75, 262),
    ),
}


def known() -> bool:
    """Whether this machine's numbers of the system calls are known here."""
    return platform.machine() in NUMBERS


def close() -> None:
    """Close them for this process and all that it starts, for good.

    Raises:
        OSError: when the kernel takes no filter.
    """
    program = _program(platform.machine())
    instructions = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HL", len(program) // 8, ctypes.addressof(instructions))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in (
        (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (_PR_SET_SECCOMP, _MODE_FILTER, header, 0, 0),
    ):
        if libc.prctl(*arguments):
            raise OSError(ctypes.get_errno(), "no filter for system calls")


def _program(machine: str) -> bytes:
    """The filter in the kernel's own small language, eight bytes an instruction."""
    architecture, fcntl, numbers = NUMBERS[machine]
    refused = _step(_RETURN, _ERRNO | errno.ENOSYS)
    checks = [_step(_LOAD, _ARCHITECTURE), _step(_EQUAL, architecture, 1, 0)]
    checks += [_step(_RETURN, _KILL), _step(_LOAD, _NUMBER)]
    if machine == "x86_64":
        checks += [_step(_AT_LEAST, _X32, 0, 1), refused]
    for number in numbers:
        checks += [_step(_EQUAL, number, 0, 1), refused]
    checks += [_step(_EQUAL, fcntl, 0, 3), _step(_LOAD, _SECOND_ARGUMENT)]
    checks += [_step(_EQUAL, _F_SETPIPE_SZ, 0, 1), _step(_RETURN, _ERRNO | errno.EPERM)]
    return b"".join([*checks, _step(_RETURN, _ALLOW)])


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, value)
