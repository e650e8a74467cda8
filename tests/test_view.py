"""The server of pages: which folders it takes, which files it sends, and to whom."""

import http.client
import json
import signal
import socket
import subprocess
import sys

import pytest
from click.testing import CliRunner
from conftest import posix

from captum_mfv.cli import app
from captum_mfv.cli.server import find_site, serve
from captum_mfv.errors import RunError

MANIFEST = {"format": 1, "kind": "atlas"}


@pytest.fixture
def folder(tmp_path):
    """Return a folder of an atlas, as far as a server reads it, beside a secret."""
    root = tmp_path / "atlas"
    for name in (
        "index.html",
        "data/units.js",
        "images/conv/0_0.webp",
        "units.json",
        "units/a.safetensors",
        ".owner.json",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    (root / "manifest.json").write_text(json.dumps(MANIFEST))
    (tmp_path / "secret.json").write_text("secret")
    (root / "link.json").symlink_to(tmp_path / "secret.json")
    (root / "inner.json").symlink_to(root / "units.json")
    return root


@pytest.fixture
def ask(folder):
    """Return a function that sends a request and returns status, headers and body."""
    with serve(find_site(folder)) as address:
        port = int(address.rstrip("/").rpartition(":")[2])

        def ask(target, method="GET", host=f"127.0.0.1:{port}"):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.putrequest(method, target, skip_host=True)
            for one in host if isinstance(host, list) else [host]:
                connection.putheader("Host", one.replace("PORT", str(port)))
            connection.endheaders()
            answer = connection.getresponse()
            found = answer.status, answer.headers, answer.read()
            connection.close()
            return found

        yield ask


@pytest.mark.parametrize(
    ("target", "name", "kind"),
    [
        ("/", "index.html", "text/html; charset=utf-8"),
        ("/index.html?a=b", "index.html", "text/html; charset=utf-8"),
        ("/data/units.js", "data/units.js", "text/javascript; charset=utf-8"),
        ("/images/conv/0%5F0.webp", "images/conv/0_0.webp", "image/webp"),
        ("/units.json", "units.json", "application/json; charset=utf-8"),
        ("/inner.json", "units.json", "application/json; charset=utf-8"),
    ],
)
def test_files_of_the_folder_are_sent_with_their_type(target, name, kind, ask):
    status, headers, body = ask(target)
    assert (status, headers["Content-Type"], body) == (200, kind, name.encode())
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    status, headers, body = ask(target, "HEAD")
    assert (status, headers["Content-Length"], body) == (200, str(len(name)), b"")


@pytest.mark.parametrize(
    "target",
    [
        *("/images", "/images/", "/data/", "/none.html", "//index.html/"),
        *("/../secret.json", "/%2e%2e/secret.json", "/..%2fsecret.json", "/data/../../secret.json", "/..\\secret.json"),
        *("/link.json", "/.owner.json", "/units/a.safetensors", "/index.html%00.js", "//[", "http://[/", "*"),
    ],
)
def test_nothing_else_is_sent(target, ask):
    status, _, body = ask(target)
    assert (status, body) == (404, b"")


def test_other_methods_are_refused(ask):
    assert {ask("/", method)[0] for method in ("POST", "PUT", "DELETE", "OPTIONS")} == {501}


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:PORT", 200),
        ("127.0.0.1:PORT", 200),
        ("example.org", 421),
        ("example.org:PORT", 421),
        ("127.0.0.1.example.org:PORT", 421),
        ("127.0.0.1:1", 421),
        ([], 421),
        (["localhost:PORT", "example.org"], 421),
    ],
)
def test_only_requests_to_this_machine_by_name_are_answered(host, status, ask):
    assert ask("/", host=host)[0] == status


def test_the_server_listens_on_this_machine_only_and_ends(folder):
    with serve(find_site(folder)) as address:
        port = int(address.rstrip("/").rpartition(":")[2])
        assert address == f"http://127.0.0.1:{port}/"
        with pytest.raises(RunError, match=f"port {port} can't be used"), serve(find_site(folder), port):
            pass
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.2", port), timeout=5)
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def test_of_a_run_and_of_a_comparison_the_page_alone_is_sent(tmp_path):
    (tmp_path / "compare.html").write_text("compared")
    (tmp_path / "private.html").write_text("private")
    site = find_site(tmp_path)
    assert site.find("/") == tmp_path / "compare.html"
    assert site.find("/private.html") is None
    manifest = {"format": 1, "status": "finished", "settings": {}, "stages": [], "versions": {}, "timings": {}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RunError, match=r"has no report\.html; rerun the command"):
        find_site(tmp_path)
    (tmp_path / "report.html").write_text("run")
    assert find_site(tmp_path).page == "report.html"
    assert find_site(tmp_path).find("/compare.html") is None


def test_other_folders_are_refused_with_a_sentence(tmp_path):
    result = CliRunner().invoke(app, ["view", str(tmp_path)])
    assert result.exit_code != 0
    assert "a run, an atlas, a comparison (compare.html) or a publication can be viewed" in str(result.exception)
    (tmp_path / "compare.html").symlink_to(__file__)
    with pytest.raises(RunError, match="can be viewed"):
        find_site(tmp_path)


@posix
def test_the_command_prints_the_address_and_ends_on_ctrl_c(folder):
    command = [sys.executable, "-m", "captum_mfv", "view", str(folder), "--no-browser"]
    heard = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}  # in a background job, it is ignored
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **heard) as process:
        address = process.stdout.readline()
        port = int(address.split()[0].rstrip("/").rpartition(":")[2])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/")
        assert connection.getresponse().read() == b"index.html"
        connection.close()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (0, "ended\n")
