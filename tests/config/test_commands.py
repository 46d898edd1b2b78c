"""`fastmesh check`, `init` and `schema`, and which file a command takes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fastmesh.cli import main
from fastmesh.config import ConfigErrors, find_config

EXAMPLES = Path(__file__).parents[2] / "examples"
BAD = "listeners: [{name: a, bind: 127.0.0.1:1, too: web}]\nservices: {web: {}}\n"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fastmesh.config.find.DEFAULT_FILES", (Path("fastmesh.yaml"), tmp_path / "etc.yaml"))
    return tmp_path


def test_check_ok() -> None:
    result = run("check", "-c", EXAMPLES / "edge.yaml")
    assert result.exit_code == 0
    assert result.stdout == f"{EXAMPLES / 'edge.yaml'}: ok (2 listeners, 2 services)\n"
    assert result.stderr == ""


def test_check_bad() -> None:
    Path("fastmesh.yaml").write_text(BAD)
    result = run("check")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        "fastmesh.yaml:1:13: role: edge without 'to', expected the service that it goes to",
        "fastmesh.yaml:1:42: unknown key 'too' in a listener, expected 'to'",
        "fastmesh.yaml:2:12: a service without 'endpoints', expected a list, each entry an endpoint",
    ]


def test_check_json() -> None:
    Path("fastmesh.yaml").write_text(BAD)
    result = run("check", "--json")
    assert result.exit_code == 2
    report = json.loads(result.stdout)
    assert (report["file"], report["ok"], report["warnings"]) == ("fastmesh.yaml", False, [])
    assert report["errors"][1] == {
        "file": "fastmesh.yaml",
        "line": 1,
        "column": 42,
        "message": "unknown key 'too' in a listener, expected 'to'",
    }


def test_check_json_ok() -> None:
    path = EXAMPLES / "edge.yaml"
    result = run("check", "--json", "-c", path)
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {"file": str(path), "ok": True, "errors": [], "warnings": []}


def test_check_warns_of_what_is_not_there_yet() -> None:
    result = run("check", "-c", EXAMPLES / "mesh-a.yaml")
    assert result.exit_code == 0
    assert result.stdout.endswith("ok (1 listener, 1 service)\n")
    assert result.stderr.startswith("warning: there is no pki directory ")


def test_check_warns_of_names(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nobody)
    Path("fastmesh.yaml").write_text(
        (EXAMPLES / "edge.yaml").read_text().replace("127.0.0.1:9001", "x.test:1")
    )
    result = run("check")
    assert result.exit_code == 0
    assert result.stderr.startswith("warning: fastmesh.yaml:15:33: host name 'x.test' cannot be resolved")


def test_check_without_a_file(here: Path) -> None:
    result = run("check")
    assert result.exit_code == 2
    expected = "give a file with -c, or write one with `fastmesh init`"
    assert result.stderr == f"fastmesh.yaml: does not exist, nor does {here / 'etc.yaml'}: {expected}\n"


def test_find(here: Path) -> None:
    with pytest.raises(ConfigErrors):
        find_config(None)
    (here / "etc.yaml").touch()
    assert find_config(None) == here / "etc.yaml"
    Path("fastmesh.yaml").touch()
    assert find_config(None) == Path("fastmesh.yaml")
    assert find_config(Path("other.yaml")) == Path("other.yaml")


def test_find_does_not_skip_a_dangling_link(here: Path) -> None:
    (here / "etc.yaml").touch()
    Path("fastmesh.yaml").symlink_to("gone")
    assert find_config(None) == Path("fastmesh.yaml")


def test_find_says_what_it_may_not_look_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as /etc/fastmesh of mode 0700 for somebody else than root."""

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "lstat", refuse)  # the suite may run as root, whom no mode stops
    assert find_config(None) == Path("fastmesh.yaml")


@pytest.mark.parametrize(
    "arguments",
    [("check", "-c", EXAMPLES / "edge.yaml"), ("check", "--json"), ("schema",), ("completion", "zsh")],
)
def test_output_that_cannot_be_written(arguments: tuple[object, ...]) -> None:
    Path("fastmesh.yaml").write_text(BAD)
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            [sys.executable, "-c", "from fastmesh.cli import main; main()", *map(str, arguments)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=30,
            check=False,
        )
    assert result.stderr == "error: the output cannot be written: No space left on device\n"
    assert result.returncode == 1


@pytest.mark.parametrize(
    ("command", "code", "stdout", "stderr"),
    [
        ("init {}", 0, "{}: written; next: fastmesh check -c {}, then fastmesh serve -c {}\n", ""),
        (
            "check -c {}",
            2,
            "",
            "{}: the path is not in UTF-8, expected one that is: rename the file or its directory\n",
        ),
    ],
)
def test_file_name_that_is_no_text(command: str, code: int, stdout: str, stderr: str) -> None:
    name, shown = os.fsdecode(b"b\xff.yaml"), "b\\udcff.yaml"
    if not command.startswith("init"):
        Path(name).write_bytes((EXAMPLES / "edge.yaml").read_bytes())
    result = subprocess.run(
        [sys.executable, "-c", "from fastmesh.cli import main; main()", *command.format(name).split()],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (result.returncode, result.stdout, result.stderr) == (
        code,
        stdout.replace("{}", shown),
        stderr.replace("{}", shown),
    )


def test_init_then_check() -> None:
    result = run("init")
    assert result.exit_code == 0
    assert run("check").stdout == "fastmesh.yaml: ok (1 listener, 1 service)\n"


def test_init_does_not_overwrite() -> None:
    Path("mine.yaml").write_text("mine")
    result = run("init", "mine.yaml")
    assert result.exit_code == 1
    assert result.stderr == "mine.yaml: exists already; --force replaces it\n"
    assert Path("mine.yaml").read_text() == "mine"
    assert run("init", "mine.yaml", "--force").exit_code == 0
    assert run("check", "-c", "mine.yaml").exit_code == 0


@pytest.mark.parametrize("arguments", [("nowhere/x.yaml",), (".", "--force")])
def test_init_cannot_write(arguments: tuple[str, ...]) -> None:
    result = run("init", *arguments)
    assert result.exit_code == 1
    assert "cannot be written: " in result.stderr


def test_init_leaves_no_part_behind() -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)); "
    result = subprocess.run(
        [sys.executable, "-c", limit + "from fastmesh.cli import main; main()", "init"],
        capture_output=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        text=True,
        timeout=30,
        check=False,
    )
    assert (result.returncode, result.stderr) == (1, "fastmesh.yaml: cannot be written: File too large\n")
    assert not Path("fastmesh.yaml").exists()


def test_schema() -> None:
    result = run("schema")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["title"] == "fastmesh configuration"


@pytest.mark.parametrize("name", ["check", "init", "schema"])
def test_help(name: str) -> None:
    result = run(name, "--help")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"Usage: main {name} ")
