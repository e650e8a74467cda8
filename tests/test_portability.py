"""Nothing in the package needs one operating system, but for what is guarded; names of files suit all of them."""

import ast
import ntpath
import os
import sys
import time
from pathlib import Path, PureWindowsPath

import pytest
import torch
from click.testing import CliRunner
from small_atlas import NET, content, settings, write_inputs

import captum_mfv
from captum_mfv import AtlasFolder
from captum_mfv.cli import app
from captum_mfv.errors import RunError
from captum_mfv.jobs import atlas
from captum_mfv.jobs.atlas import engines
from captum_mfv.jobs.atlas.estimate import _peak_memory
from captum_mfv.runs.atlas import array_file, image_file, members_file, record_file, tensors_file
from captum_mfv.storage.files import Checkpoint, write_folder, write_whole
from captum_mfv.storage.untrusted import read_json

ROOT = Path(captum_mfv.__file__).parent

SYSTEM_MODULES = {
    *("_winapi", "crypt", "curses", "fcntl", "grp", "msvcrt", "nis", "nt", "ossaudiodev", "posix", "pty", "pwd"),
    *("readline", "resource", "spwd", "syslog", "termios", "tty", "winreg", "winsound"),
}
SYSTEM_FUNCTIONS = {
    "os": {
        *("O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "O_TMPFILE", "chown", "chroot", "confstr", "ctermid"),
        *("eventfd", "fchdir", "fchmod", "fchown", "fork", "forkpty", "fstatvfs", "fwalk", "getegid", "geteuid"),
        *("getgid", "getgroups", "getloadavg", "getpgid", "getpriority", "getresuid", "getsid", "getuid", "kill"),
        *("killpg", "lchown", "lockf", "major", "makedev", "memfd_create", "minor", "mkfifo", "mknod", "nice", "open"),
        *("openpty", "pathconf", "pidfd_open", "posix_fadvise", "posix_fallocate", "posix_spawn", "pread", "pwrite"),
        *("register_at_fork", "sched_getaffinity", "sched_setaffinity", "sched_yield", "sendfile", "setgid", "setpgid"),
        *("setpriority", "setsid", "setuid", "splice", "startfile", "statvfs", "sync", "sysconf", "tcgetpgrp", "uname"),
        *("wait", "wait3", "wait4", "waitid", "waitpid"),
    },
    "signal": {
        *("SIGALRM", "SIGBUS", "SIGCHLD", "SIGCONT", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGQUIT", "SIGSTOP", "SIGTSTP"),
        *("SIGUSR1", "SIGUSR2", "SIGWINCH", "alarm", "pause", "pthread_kill", "pthread_sigmask", "setitimer"),
        *("siginterrupt", "sigpending", "sigtimedwait", "sigwait", "sigwaitinfo"),
    },
    "time": {"clock_settime", "pthread_getcpuclockid", "tzset"},
    "socket": {"AF_UNIX", "socketpair"},
}
SYSTEM_ARGUMENTS = {"close_fds", "creationflags", "dir_fd", "preexec_fn", "process_group", "start_new_session", "umask"}
SYSTEM_PATHS = ("/dev", "/etc", "/proc", "/sys", "/tmp", "/usr", "/var", "C:\\")

GUARDED = {
    ("activations/codes.py", "os.posix_fallocate"),  # hasattr
    ("cli/__init__.py", "os.open"),  # os.devnull, which exists everywhere
    ("jobs/atlas/engines.py", "os.sched_getaffinity"),  # hasattr
    ("jobs/atlas/estimate.py", "resource"),  # except ImportError
    ("storage/files.py", "os.open"),  # of a folder, on POSIX alone
    ("storage/files.py", "os.sync"),  # hasattr
}
"""Uses of one system's names that are not reached on another."""


def of_one_system(nodes):
    """Yield the names in a module that not every operating system has."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.partition(".")[0] in SYSTEM_MODULES)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = SYSTEM_FUNCTIONS.get(node.module or "", set())
            yield from (f"{node.module}.{alias.name}" for alias in node.names if alias.name in names)
            if (node.module or "").partition(".")[0] in SYSTEM_MODULES:
                yield node.module
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.attr in SYSTEM_FUNCTIONS.get(node.value.id, ()):
                yield f"{node.value.id}.{node.attr}"
        elif isinstance(node, ast.keyword) and node.arg in SYSTEM_ARGUMENTS:
            yield f"{node.arg}="
        elif isinstance(node, ast.Constant) and str(node.value).startswith(SYSTEM_PATHS):
            yield node.value


def without_encoding(nodes):
    """Yield calls that read or write text in the encoding of the system, which is not UTF-8 everywhere."""
    for node in nodes:
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        method = isinstance(node.func, ast.Attribute)
        mode = next((one.value for one in node.args if isinstance(one, ast.Constant)), None)
        text = (name in ("read_text", "write_text") and method) or (
            name == "open" and (not method or mode in ("r", "w"))
        )
        if text and not any(keyword.arg == "encoding" for keyword in node.keywords):
            yield f"{name}, line {node.lineno}"


@pytest.fixture(scope="module")
def nodes():
    """Return the nodes of each module's syntax tree."""
    paths = [path for path in ROOT.rglob("*.py") if "__pycache__" not in path.parts]
    trees = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in paths}
    return {name: list(ast.walk(tree)) for name, tree in trees.items()}


def found(check, nodes):
    return {(name, use) for name, some in nodes.items() for use in check(some)}


def test_names_of_one_system_are_used_in_guarded_places_alone(nodes):
    assert found(of_one_system, nodes) == GUARDED


@pytest.mark.parametrize(
    ("source", "uses"),
    [
        ("import fcntl, json", ["fcntl"]),
        ("from os import fork, path", ["os.fork"]),
        ("os.open(name, os.O_NOFOLLOW, dir_fd=3)", ["dir_fd=", "os.O_NOFOLLOW", "os.open"]),
        ("signal.signal(signal.SIGKILL, stop)", ["signal.SIGKILL"]),
        ("Path('/dev/null')", ["/dev/null"]),
        ("os.path.join(folder, name)", []),
    ],
)
def test_names_of_one_system_are_found(source, uses):
    assert sorted(of_one_system(ast.walk(ast.parse(source)))) == uses


def test_text_is_read_and_written_in_utf_8(nodes):
    assert found(without_encoding, nodes) == set()
    calls = ast.walk(ast.parse("path.read_text(); open(name); path.open('rb'); read_text(path)"))
    assert list(without_encoding(calls)) == ["read_text, line 1", "open, line 1"]


def test_a_system_without_these_functions_does_without(monkeypatch, tmp_path):
    for name in ("sync", "sched_getaffinity"):
        monkeypatch.delattr(os, name, raising=False)
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows: importing it raises ImportError
    assert engines._n_cores() == os.cpu_count()
    assert _peak_memory() == 0
    write_folder(tmp_path / "folder", {"a/b.txt": b"content"})
    assert (tmp_path / "folder" / "a" / "b.txt").read_bytes() == b"content"


def test_a_state_that_was_read_does_not_keep_its_file_open(tmp_path):
    checkpoint = Checkpoint(tmp_path / "state.safetensors", {"work": 1})
    checkpoint.save({"values": torch.arange(1000.0)})
    state = checkpoint.load()
    size = checkpoint.path.stat().st_size
    with checkpoint.path.open("r+b") as file:  # a map of the file would show it, and Windows replaces no mapped file
        file.write(bytes(size))
    assert torch.equal(state["values"], torch.arange(1000.0))


class Denied:
    """A method of paths that raises PermissionError as often as given, as Windows does of a file in use."""

    def __init__(self, monkeypatch, name, times):
        self.times, method = times, getattr(Path, name)

        def denied(path, *args, **kwargs):
            self.times -= 1
            if self.times >= 0:
                raise PermissionError(13, "Access is denied", str(path))
            return method(path, *args, **kwargs)

        monkeypatch.setattr(Path, name, denied)


def test_a_file_that_is_being_replaced_is_read_and_one_that_is_being_read_is_replaced(tmp_path, monkeypatch):
    path = tmp_path / "manifest.json"
    read = Denied(monkeypatch, "read_text", 0)
    replaced = Denied(monkeypatch, "replace", 3)
    write_whole(path, b"{}")
    read.times = 3
    assert read_json(path) == {}
    assert (read.times, replaced.times) == (-1, -1)
    assert [one.name for one in tmp_path.iterdir()] == ["manifest.json"]


def test_status_is_read_while_the_atlas_writes_its_manifest(tmp_path, monkeypatch):
    root = write_inputs(tmp_path)
    atlas.run(settings(root), root / "out")
    Denied(monkeypatch, "read_text", 2)
    result = CliRunner().invoke(app, ["status", str(root / "out")])
    assert result.output.startswith("finished: "), result.output


def test_a_file_that_stays_denied_is_an_error_of_the_system(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    for name in ("read_text", "replace"):
        Denied(monkeypatch, name, 100)
    with pytest.raises(PermissionError, match="Access is denied"):
        write_whole(tmp_path / "manifest.json", b"{}")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "manifest.json").write_bytes(b"{}")
    with pytest.raises(RunError, match=r"holds no atlas that can be read: .*Access is denied"):
        AtlasFolder.read(tmp_path)


LAYERS = [
    *("features.12", "features_12", "Features.12", "encoder.layer[0]", "encoder.layer_0_", "encoder.layer[1]"),
    *("con", "aux", "AUX", "aux.conv1", "nul.", "lpt1", "_aux", "auxiliary", "conv.", "conv", "conv..", "conv "),
    *("", ".", "..", "../../etc", "a/b", "a\\b", "C:", "x" * 300, "x" * 299 + "y", "x" * 80, "größe", "層", "a\0b"),
]


def test_every_layer_has_a_folder_of_its_own_that_each_system_takes():
    reserved = getattr(ntpath, "isreserved", lambda part: False)  # from Python 3.13 on
    functions = (image_file, members_file, array_file)
    files = [[*(make(f"{layer}:3", 0) for make in functions), record_file(f"{layer}:3")] for layer in LAYERS]
    files += [[tensors_file(f"{layer}:direction-0123abcd")] for layer in LAYERS]
    names = [name for some in files for name in some]
    assert len({name.casefold() for name in names}) == len(names), "some systems don't distinguish upper and lower case"
    for name in names:
        kind, folder, file = name.split("/")
        assert kind in ("images", "units")
        for part in (folder, file):
            assert part.isascii()
            assert not set(part) & set('<>:"|?*\\\0 ')
            assert part[0] != "."
            assert part[-1] != "."
            assert part.partition(".")[0].lower() not in ("con", "aux", "nul", "lpt1")
            assert not reserved(part)
        assert len(name) < 140
        assert PureWindowsPath(name).as_posix() == name
    assert image_file("features.12:3", 0) == "images/features.12/3_0.webp"


def test_layers_whose_names_differ_in_case_share_no_file(tmp_path):
    root = write_inputs(tmp_path)
    (root / "net.py").write_text((root / "net.py").read_text().replace('"relu": nn.ReLU()', '"Unit": nn.ReLU()'))
    assert '"relu": nn.ReLU()' in NET
    made = atlas.run(settings(root, units="unit:0-1,Unit:0-1"), root / "out")
    files = content(root / "out")
    assert len({name.casefold() for name in files}) == len(files)
    folder = AtlasFolder.read(made.path)
    assert [row["status"] for row in folder.units] == ["done"] * 4
    for row in folder.units:
        one = folder.unit(row["unit"])
        assert one.facets.unit.layer == row["layer"]
        assert all(one["image"] in files for one in one.rows)
