"""A command of a model in namespaces of its own: no network, no other process, and one folder that it may write.

Started as `python -P -m freehold.base.sandbox.enclosed PARENT`, with one line of JSON on stdin: an order. Three layers,
each of which would do for most of it:

  - namespaces: a file system of its own, made of the system's programs and libraries (to read), an empty /tmp,
    a few devices, and the folder; processes, network, users and hosts of its own
  - Landlock: what may be written below the folder and /tmp; nothing of other processes
  - a filter of system calls: none that makes namespaces or mounts, looks into processes, speaks to the kernel beside
    the usual calls (io_uring, bpf, keyctl), or makes a socket other than IP's, which lead nowhere

Where one of them cannot be had, the command is not run, and the reason is named. Knows Linux; knows no tool.
"""

from __future__ import annotations

import ctypes
import json
import os
import selectors
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from freehold.base import platforms
from freehold.base.errors import CapacityExceeded, UsageError
from freehold.base.sandbox.children import follow_parent, spawn

CALL_S = 120.0  # on the clock, of one command
MAX_COMMAND = 50_000  # characters
MAX_OUTPUT = 20_000  # bytes that are kept: half from the beginning, half from the end
PROCESSES = 400  # at once; the kernel takes no smaller limit of a namespace than 301
MEMORY = 4 << 30  # bytes of resident memory of all its processes, or half of the machine's
LARGEST = 1 << 30  # bytes of a file
TEMPORARY = 256 << 20  # bytes in /tmp, and as many of shared memory
_COMMAND = (sys.executable, "-P", "-m", "freehold.base.sandbox.enclosed")
_NOT_ENCLOSED = b"!"
_LOOK_S = 0.1


@dataclass(frozen=True, slots=True)
class CommandResult:
    """What a command printed on stdout and stderr, and its exit status: 128 + the signal that ended it."""

    output: str
    status: int
    late: bool = False
    errors: str = ""  # what it printed on stderr, where that was wanted apart


# --- the parent's side ------------------------------------------------------------------------------


def can_enclose() -> str:
    """Return why no command can be run here, or ""."""
    if not platforms.can_confine():
        return "it needs Linux with a kernel that confines processes (Landlock, Linux 5.13)"
    return ""


def run_enclosed(
    command: str,
    folder: Path,
    *,
    at: str = "",
    readable: Sequence[str] = (),
    seconds: float = CALL_S,
    apart: bool = False,
    ended: Callable[[], bool] = lambda: False,
) -> CommandResult:
    """Run a command by the shell, in `folder`, which it alone may write; after `seconds` it is ended.

    `at`: the path by which it sees the folder, its own by default; `readable`: what it may read beside the system's
    files; `apart`: stderr is returned beside stdout; `ended`: asked all the time whether it is to end now.
    Raises UsageError where it cannot be confined, CapacityExceeded where no process can be started.
    """
    if why := can_enclose():
        raise UsageError(f"the tool shell cannot be confined here: {why}", "leave --tool shell out")
    if len(command) > MAX_COMMAND or "\0" in command:
        raise UsageError(f"a command has at most {MAX_COMMAND:,} characters, none of them NUL")
    order = {"command": command, "folder": str(folder), "at": at or str(folder), "readable": list(readable)}
    ours, theirs = os.pipe()
    try:
        process = spawn(
            (*_COMMAND, str(theirs)),
            pass_fds=(theirs,),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if apart else subprocess.STDOUT,
            start_new_session=True,
            cwd="/",
            env={name: value for name, value in os.environ.items() if name.startswith(("PYTHON", "COV_"))},
        )
    except OSError as e:
        os.close(ours)
        raise CapacityExceeded(f"no process can be started for the tool shell: {e}") from e
    finally:
        os.close(theirs)
    try:
        assert process.stdin is not None
        with suppress(BrokenPipeError), process.stdin as pipe:
            pipe.write(json.dumps(order).encode() + b"\n")
        (output, errors), late = _output(process, seconds, ended)
        process.kill()
        process.wait()
        verdict = os.read(ours, 4096)
    finally:
        os.close(ours)
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
    if verdict[:1] == _NOT_ENCLOSED or (not verdict and not late):
        why = (
            verdict[1:].decode("utf-8", "replace")
            or (errors or output).strip()[-300:]
            or "its process ended at once"
        )
        raise UsageError(f"the tool shell cannot be confined here: {why}", "leave --tool shell out")
    status = int(verdict) if verdict.isdigit() and not late else 128 + signal.SIGKILL
    return CommandResult(output, status, late, errors)


def _output(
    process: subprocess.Popen[bytes], seconds: float, ended: Callable[[], bool]
) -> tuple[tuple[str, str], bool]:
    """Return what a process writes on stdout and stderr until it closes them, and whether it was ended before."""
    pipes = {pipe.fileno(): _PipeText() for pipe in (process.stdout, process.stderr) if pipe is not None}
    until, late = time.monotonic() + seconds, False
    with selectors.DefaultSelector() as selector:
        for number in pipes:
            selector.register(number, selectors.EVENT_READ)
        while selector.get_map() and not late:
            left = until - time.monotonic()
            late = left <= 0 or ended()
            for key, _ in selector.select(min(left, _LOOK_S)) if not late else ():
                if piece := os.read(key.fd, 1 << 16):
                    pipes[key.fd].add(piece)
                else:
                    selector.unregister(key.fd)
    texts = [written.text() for written in pipes.values()]
    return (texts[0], texts[1] if len(texts) > 1 else ""), late


class _PipeText:
    """What came through one pipe: both ends of it are kept."""

    def __init__(self) -> None:
        self._head, self._tail, self._count = bytearray(), bytearray(), 0

    def add(self, piece: bytes) -> None:
        self._count += len(piece)
        half = MAX_OUTPUT // 2
        room = half - len(self._head)
        self._head += piece[:room]
        if len(piece) > room:
            self._tail = (self._tail + piece[room:])[-half:]

    def text(self) -> str:
        left_out = self._count - len(self._head) - len(self._tail)
        middle = f"\n[{left_out:,} bytes are left out here]\n".encode() if left_out > 0 else b""
        return (bytes(self._head) + middle + bytes(self._tail)).decode("utf-8", "replace")


# --- the process outside: it makes the namespaces and waits ----------------------------------------

_NEW_NS, _NEW_UTS, _NEW_IPC, _NEW_USER, _NEW_PID, _NEW_NET, _NEW_CGROUP = (
    *(0x00020000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000, 0x02000000),
)
_PATH_ONLY = 0o10000000  # O_PATH of <fcntl.h>, which Python knows on Linux alone
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 1, 2, 4, 8  # <linux/mount.h>
_MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE, _MNT_DETACH = 32, 4096, 16384, 1 << 18, 2
_MOUNT_SETATTR, _AT_RECURSIVE = 442, 0x8000
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/opt", "/nix/store")
_ETC = (
    *(
        "ld.so.cache",
        "ld.so.conf",
        "ld.so.conf.d",
        "alternatives",
        "passwd",
        "group",
        "nsswitch.conf",
        "hosts",
    ),
    *(
        "localtime",
        "ssl/certs",
        "ca-certificates",
        "mime.types",
        "fonts",
        "terminfo",
        "protocols",
        "services",
    ),
    *("java-17-openjdk", "java-21-openjdk", "python3", "perl", "gitconfig"),
)
_DEVICES = ("null", "zero", "full", "random", "urandom")
_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/tmp",
    "TMPDIR": "/tmp",
    "LANG": "C.UTF-8",
    "TERM": "dumb",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONHASHSEED": "0",
    "GIT_PAGER": "cat",
    "PAGER": "cat",
}
_libc = ctypes.CDLL(None, use_errno=True)


class _Refused(Exception):
    """A step of the enclosure that the kernel did not take."""


def main() -> None:
    """Read the order, make the namespaces, and wait for the process within."""
    follow_parent(int(sys.argv[2]))
    verdict = int(sys.argv[1])
    os.set_inheritable(verdict, False)
    order = json.loads(sys.stdin.buffer.readline())
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    platforms.limit("RLIMIT_CORE", 0)
    platforms.prefer_killed(1000)
    try:
        _separate()
    except (_Refused, OSError) as e:
        os.write(verdict, _NOT_ENCLOSED + str(e).encode())
        return
    inner = platforms.fork()
    if inner == 0:
        try:
            _first_process(order, verdict)
        except BaseException as e:
            os.write(verdict, _NOT_ENCLOSED + (str(e) or type(e).__name__).encode()[:1000])
        finally:
            os._exit(1)
    for number in (1, 2):
        os.dup2(null, number)  # the output ends with the processes within
    os.close(verdict)
    os.waitpid(inner, 0)


def _separate() -> None:
    """Move this process into namespaces of its own, as the same user."""
    user, group = os.geteuid(), os.getegid()
    flags = _NEW_USER | _NEW_NS | _NEW_PID | _NEW_NET | _NEW_IPC | _NEW_UTS | _NEW_CGROUP
    if _libc.unshare(flags) != 0:
        raise _Refused(
            f"the kernel makes no namespaces for this user ({os.strerror(ctypes.get_errno())}); "
            "containers and some distributions forbid them"
        )
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{user} {user} 1"),
        ("gid_map", f"{group} {group} 1"),
    ):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)


# --- the first process within: its file system, its limits, and the command below it ---------------


def _first_process(order: dict[str, Any], verdict: int) -> NoReturn:
    """Make the file system, give up every right, start the command, and end with it and all that it started."""
    signal.signal(
        signal.SIGINT, signal.SIG_DFL
    )  # the first process gets no signal of others without a handler
    platforms.ends_with_parent()
    _make_root(order)
    _raise_loopback()
    os.chdir(order["at"])
    _limit_rights(order["at"])
    platforms.hide_memory()
    command = platforms.fork()
    if command == 0:
        try:
            os.close(verdict)
            os.setsid()
            os.nice(5)  # the process above, which watches it, goes first
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            shell = "/bin/bash" if os.path.exists("/bin/bash") else "/bin/sh"
            path = ":".join([*order["path"], _ENVIRONMENT["PATH"]])
            os.execve(shell, [shell, "-c", order["command"]], {**_ENVIRONMENT, "PATH": path})
        finally:
            os._exit(126)
    status = _watched(command)
    os.write(verdict, str(status).encode())
    os._exit(0)  # the kernel ends every other process of the namespace


def _watched(command: int) -> int:
    """Wait for the command, and return its status; end all where its processes take too much memory."""
    page = os.sysconf("SC_PAGE_SIZE")
    memory = min(MEMORY, page * os.sysconf("SC_PHYS_PAGES") // 2)
    while True:
        ended, status = os.waitpid(-1, os.WNOHANG)
        if ended == command:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        if ended:
            continue
        resident = 0
        names = [name for name in os.listdir("/proc") if name.isdigit()]
        for name in names:
            with suppress(OSError), open(f"/proc/{name}/statm", encoding="ascii") as file:
                resident += int(file.read().split()[1]) * page
        if resident > memory:
            os.write(1, f"\n[the command was ended: more than {memory:,} bytes of memory]\n".encode())
            return 128 + signal.SIGKILL
        time.sleep(_LOOK_S if len(names) > 3 else _LOOK_S / 5)


def _make_root(order: dict[str, Any]) -> None:
    """Make a file system of what the command may see, and make it the root."""
    _mount(None, "/", None, _MS_REC | _MS_PRIVATE)
    root = "/tmp" if os.path.isdir("/tmp") else "/"
    source = os.open(order["folder"], _PATH_ONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    own = [sys.prefix, sys.base_prefix]
    readable = [os.path.realpath(path) for path in (*own, *order["readable"]) if os.path.exists(path)]
    opened = [(path, os.open(path, _PATH_ONLY)) for path in readable]
    order["path"] = [path for path in (f"{sys.prefix}/bin",) if os.path.isdir(path)]
    _mount("tmpfs", root, "tmpfs", _MS_NOSUID | _MS_NODEV, "size=16m,mode=755")
    for path in _SYSTEM:
        _show(root, path, path)
    for name in _ETC:
        _show(root, f"/etc/{name}", f"/etc/{name}")
    for path, number in opened:
        _show(root, path, f"/proc/self/fd/{number}")
    _make_devices(root)
    _make_own(root, "/tmp", TEMPORARY)
    _mount_processes(root)
    target = root + order["at"]
    os.makedirs(target, exist_ok=True)
    _mount(f"/proc/self/fd/{source}", target, None, _MS_BIND | _MS_REC)
    _set_attributes(target, _MS_NOSUID | _MS_NODEV)
    for _, number in [("", source), *opened]:
        os.close(number)
    _enter(root)


def _show(root: str, path: str, source: str) -> None:
    """Show a file or folder of the system at the same place, to be read alone."""
    target = root + path
    if os.path.islink(path) and not source.startswith("/proc/"):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with suppress(FileExistsError):
            os.symlink(os.readlink(path), target)
        return
    if not os.path.exists(source) or (os.path.lexists(target) and path.startswith(_SYSTEM)):
        return  # it is below one that is shown already
    _place_for(target, is_folder=os.path.isdir(source))
    _mount(source, target, None, _MS_BIND | _MS_REC)
    _set_attributes(target, _MS_RDONLY | _MS_NOSUID | _MS_NODEV)


def _place_for(target: str, *, is_folder: bool) -> None:
    if os.path.exists(target):
        return
    os.makedirs(target if is_folder else os.path.dirname(target), exist_ok=True)
    if not is_folder:
        with open(target, "wb"):
            pass


def _make_devices(root: str) -> None:
    os.makedirs(f"{root}/dev", exist_ok=True)
    for name in _DEVICES:
        _place_for(f"{root}/dev/{name}", is_folder=False)
        _mount(f"/dev/{name}", f"{root}/dev/{name}", None, _MS_BIND)
    for name, target in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
        os.symlink(f"/proc/self/fd{target}", f"{root}/dev/{name}")
    _make_own(root, platforms.shared_memory_folder(), TEMPORARY)


def _make_own(root: str, path: str, size: int) -> None:
    os.makedirs(root + path, exist_ok=True)
    _mount("tmpfs", root + path, "tmpfs", _MS_NOSUID | _MS_NODEV, f"size={size},mode=1777")


def _mount_processes(root: str) -> None:
    os.makedirs(f"{root}/proc", exist_ok=True)
    flags = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    _mount("proc", f"{root}/proc", "proc", flags)
    try:
        with open(f"{root}/proc/sys/kernel/pid_max", "w", encoding="ascii") as file:
            file.write(str(PROCESSES))
    except OSError as e:
        if os.geteuid() == 0:  # of root alone the kernel does not count processes (RLIMIT_NPROC)
            raise _Refused("for root it needs Linux 6.14, which limits the processes of a namespace") from e
    _mount(None, f"{root}/proc", None, _MS_REMOUNT | _MS_RDONLY | flags)


def _enter(root: str) -> None:
    """Make `root` the root, and let go of all other file systems."""
    os.chdir(root)
    os.makedirs("before", exist_ok=True)
    if _libc.syscall(_PIVOT_ROOT[os.uname().machine], b".", b"before") != 0:
        raise _Refused(f"pivot_root: {os.strerror(ctypes.get_errno())}")
    os.chdir("/")
    if _libc.umount2(b"/before", _MNT_DETACH) != 0:
        raise _Refused(f"umount: {os.strerror(ctypes.get_errno())}")
    os.rmdir("/before")
    _mount(None, "/", None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV)


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: str = "") -> None:
    words = [text.encode() if text is not None else None for text in (source, target, kind)]
    if _libc.mount(*words, ctypes.c_ulong(flags), data.encode() or None) != 0:
        what = f"{source or ''} at {target}"
        raise _Refused(f"mount of {what}: {os.strerror(ctypes.get_errno())}")


def _set_attributes(target: str, attributes: int) -> None:
    """Restrict a mount and all below it. MOUNT_ATTR_RDONLY, NOSUID and NODEV have the values of MS_'s."""
    kept = ctypes.create_string_buffer(struct.pack("QQQQ", attributes, 0, 0, 0))
    done = _libc.syscall(_MOUNT_SETATTR, -100, target.encode(), _AT_RECURSIVE, kept, ctypes.c_size_t(32))
    if done != 0:
        raise _Refused(f"mount_setattr of {target}: {os.strerror(ctypes.get_errno())}")


def _raise_loopback() -> None:
    """Let processes within reach each other by 127.0.0.1, as tests of servers do; no other address answers."""
    import fcntl

    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, 0x8914, struct.pack("16sH14x", b"lo", 0x41))  # SIOCSIFFLAGS: IFF_UP, IFF_RUNNING


def _limit_rights(folder: str) -> None:
    """Give up every right, for this process and all below it."""
    import resource

    for kind, most in (
        (resource.RLIMIT_NPROC, PROCESSES),
        (resource.RLIMIT_FSIZE, LARGEST),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 1024),
    ):
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))
    platforms.drop_capabilities()
    if not platforms.restrict_files(readable=("/",), writable=(folder, "/tmp", "/dev")):
        raise _Refused("Landlock does not take the rules")
    if not platforms.filter_calls(_filter()):
        raise _Refused("the kernel takes no filter of system calls")


# Linux's numbers of system calls that are refused, by machine: (x86-64, AArch64); None: it has none there.
_REFUSED_CALLS: dict[str, tuple[int | None, int | None]] = {
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_getfd": (438, 438), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427), "bpf": (321, 280), "perf_event_open": (298, 241), "add_key": (248, 217),
    "request_key": (249, 218), "keyctl": (250, 219), "userfaultfd": (323, 282), "mount": (165, 40),
    "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "open_tree": (428, 428),
    "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432),
    "fspick": (433, 433), "mount_setattr": (442, 442), "open_tree_attr": (467, 467), "unshare": (272, 97),
    "setns": (308, 268), "kexec_load": (246, 104), "kexec_file_load": (320, 294), "init_module": (175, 105),
    "finit_module": (313, 273), "delete_module": (176, 106), "reboot": (169, 142), "swapon": (167, 224),
    "swapoff": (168, 225), "quotactl": (179, 60), "quotactl_fd": (443, 443), "acct": (163, 89), "syslog": (103, 116),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "fanotify_init": (300, 262),
    "iopl": (172, None), "ioperm": (173, None), "modify_ldt": (154, None), "uselib": (134, None),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "adjtimex": (159, 171), "clock_adjtime": (305, 266),
    "sethostname": (170, 161), "setdomainname": (171, 162), "lookup_dcookie": (212, 18), "nfsservctl": (180, 42),
    "move_pages": (279, 239), "migrate_pages": (256, 238), "vhangup": (153, 58), "personality": (135, 92),
}  # fmt: skip
_SOCKET, _IOCTL, _CLONE, _CLONE3 = (41, 198), (16, 29), (56, 220), (435, 435)
_CLONE_NEW = 0x7E020080
_INTERNET = (socket.AF_INET, socket.AF_INET6)
_TYPES_INTO_TERMINALS = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX
_ALLOW, _FAIL, _KILL, _EPERM, _ENOSYS, _EAFNOSUPPORT = 0x7FFF0000, 0x00050000, 0x80000000, 1, 38, 97
_LOAD, _JUMP_EQUAL, _JUMP_SET, _JUMP_LEAST, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x06  # <linux/bpf_common.h>
_AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


def _filter() -> list[tuple[int, int, int, int]]:
    """Return the filter as (code, jump if true, jump if false, value): what is named is refused."""
    machine = os.uname().machine
    column = 0 if machine == "x86_64" else 1
    allow, fail = (_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _FAIL | _EPERM)
    argument = (_LOAD, 0, 0, 16)
    rules = [(_LOAD, 0, 0, 4), (_JUMP_EQUAL, 1, 0, _AUDIT[machine]), (_RETURN, 0, 0, _KILL)]
    rules += [(_LOAD, 0, 0, 0), (_JUMP_LEAST, 0, 1, 0x40000000), fail]  # x32's numbers
    rules += [
        (_JUMP_EQUAL, 0, 1, _CLONE3[column]),
        (_RETURN, 0, 0, _FAIL | _ENOSYS),
    ]  # glibc tries clone then
    rules += [(_JUMP_EQUAL, 0, 4, _CLONE[column]), argument, (_JUMP_SET, 0, 1, _CLONE_NEW), fail, allow]
    rules += [(_JUMP_EQUAL, 0, 5, _SOCKET[column]), argument]
    rules += [(_JUMP_EQUAL, 1, 0, _INTERNET[0]), (_JUMP_EQUAL, 0, 1, _INTERNET[1]), allow]
    rules += [(_RETURN, 0, 0, _FAIL | _EAFNOSUPPORT)]
    rules += [(_JUMP_EQUAL, 0, 5, _IOCTL[column]), (_LOAD, 0, 0, 24)]
    rules += [(_JUMP_EQUAL, 1, 0, _TYPES_INTO_TERMINALS[0]), (_JUMP_EQUAL, 0, 1, _TYPES_INTO_TERMINALS[1])]
    rules += [fail, allow]
    for numbers in _REFUSED_CALLS.values():
        if (number := numbers[column]) is not None:
            rules += [(_JUMP_EQUAL, 0, 1, number), fail]
    return [*rules, allow]


if __name__ == "__main__":
    main()
