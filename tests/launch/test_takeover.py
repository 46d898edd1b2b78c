"""Traffic that is taken over: by a cgroup, by a network namespace, with and without root."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from kit.dns import NameServer, free_dns_port
from kit.limits import wait_until
from kit.ports import free_port
from kit.upstream import answering

from fastmesh.host.launch import isolation, takeover

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces are made by root here")

# A host of its own, of which only the loopback interface is there: rules do not meet those of this one.
HOST = """
ip link set lo up
ip address add 10.77.0.1/32 dev lo
ip route add default dev lo src 10.77.0.1
exec "$@"
"""
IN_A_HOST = ["unshare", "-n", "sh", "-c", HOST, "-"]
# As nobody, who finds Python even where it is in root's home.
NOBODY = """
set -e
home=$(dirname "$1"); kept=$2; shift 2
mount --bind "$home" "$kept"
case "$home" in /root/*)
    mount -t tmpfs -o mode=755 fm-launch /root; mkdir -p "$home"; mount --bind "$kept" "$home";;
esac
exec setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=-all --no-new-privs "$@"
"""
CALL = "curl -sS -m 10 http://10.77.0.2/"


@pytest.fixture
def config(upstream, tmp_path):
    """A service behind a Unix socket, which is there in all network namespaces."""
    server = upstream(answering(b"hello"), address=str(tmp_path / "up.sock"))
    (tmp_path / "up.sock").chmod(0o777)
    server.tolerate()
    outbound = {
        "name": "outbound",
        "role": "outbound",
        "bind": f"127.0.0.1:{free_port()}",
        "transparent": True,
    }
    return {
        "intercept": {"outbound": {}},
        "listeners": [outbound],
        "services": {"svc-b": {"endpoints": [f"unix:{server.address}"], "addresses": ["10.77.0.2:80"]}},
    }


@pytest.fixture
def as_nobody(tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    for directory in (tmp_path, *tmp_path.parents):
        if directory.is_relative_to("/tmp") and directory != Path("/tmp"):
            directory.chmod(0o755)
    real = Path(os.path.realpath(sys.executable)).parent.parent
    return ["unshare", "-m", "bash", "-c", NOBODY, "-", str(real), str(kept), "env", "HOME=/tmp"]


@contextlib.contextmanager
def namespace_of(pid):
    """What runs a command in the network namespace of a process, also when that has gone."""
    fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)

    def inside(*command):
        line = ["nsenter", f"--net=/proc/self/fd/{fd}", *map(str, command)]
        done = subprocess.run(line, pass_fds=[fd], capture_output=True, text=True, check=True)
        return done.stdout

    try:
        yield inside
    finally:
        os.close(fd)


def cgroup(pid):
    """Its directory."""
    (path,) = [line[3:] for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines() if line[:3] == "0::"]
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    (point,) = [mount[1] for mount in mounts if mount[2] == "cgroup2"]
    return Path(point + path)


# by cgroup


def test_by_cgroup(launch, config):
    run = launch(config, "sh", "-c", f"{CALL}; echo; exec sleep 1000", options=[], prefix=IN_A_HOST)
    run.wait_out("hello\n")
    sleep = run.child(lambda title: "sleep" in title)
    mine = cgroup(sleep)
    assert mine.name == f"fastmesh-{run.config.name}-{run.pid}"
    with namespace_of(run.pid) as inside:
        assert "fastmesh_cgroup_" in inside("nft", "list", "tables")
        run.signal(signal.SIGTERM)
        assert run.wait() == 143, run.err()
        assert inside("nft", "list", "tables") == ""
    assert not mine.exists()


def test_others_are_not_taken_over(launch, config):
    run = launch(config, "sh", "-c", "echo ready; exec sleep 1000", options=[], prefix=IN_A_HOST)
    run.wait_out("ready\n")
    with namespace_of(run.pid) as inside, pytest.raises(subprocess.CalledProcessError):
        inside("curl", "-sS", "-m", "1", "http://10.77.0.2/")
    run.signal(signal.SIGTERM)
    assert run.wait() == 143


def test_traffic_fails_while_the_sidecar_is_dead_and_passes_again(launch, config, tmp_path):
    command = f"trap '{CALL}; echo' USR1; echo ready; while :; do read line < again; done"
    os.mkfifo(tmp_path / "again")
    run = launch(config, "bash", "-c", f"{command}", options=[], prefix=IN_A_HOST)
    run.wait_out("ready\n")
    good = run.config.read_text()
    run.config.write_text("listeners: []\n")
    os.kill(run.find("supervisor"), signal.SIGKILL)
    run.wait_err("run: the sidecar (pid ", 2)
    run.signal(signal.SIGUSR1)
    run.wait_err("Failed to connect to 10.77.0.2")
    run.config.write_text(good)
    run.wait_err("run: the sidecar is back")
    run.signal(signal.SIGUSR1)
    run.wait_out("hello\n")
    run.signal(signal.SIGTERM)
    assert run.wait() == 143


def test_a_run_that_is_killed_leaves_no_rules(launch, config):
    run = launch(
        config, "sh", "-c", "setsid sleep 1000 & echo ready; exec sleep 2000", options=[], prefix=IN_A_HOST
    )
    run.wait_out("ready\n")
    run.family()
    mine = cgroup(run.child(lambda title: "sleep 2000" in title))
    with namespace_of(run.pid) as inside:
        os.kill(run.pid, signal.SIGKILL)
        run.wait_gone()
        assert inside("nft", "list", "tables") == ""
    assert not mine.exists()


def test_what_nobody_has_cleaned_up_intercept_down_does(launch, config):
    run = launch(config, "sh", "-c", "echo ready; exec sleep 2000", options=[], prefix=IN_A_HOST)
    run.wait_out("ready\n")
    guard, sleep = run.find("guard"), run.child(lambda title: "sleep" in title)
    mine = cgroup(sleep)
    with namespace_of(run.pid) as inside:
        os.kill(run.pid, signal.SIGSTOP)
        os.kill(guard, signal.SIGKILL)
        os.kill(run.pid, signal.SIGKILL)
        run.wait_gone()
        assert "fastmesh_cgroup_" in inside("nft", "list", "tables")
        fastmesh = [sys.executable, "-P", "-c", "from fastmesh.cli import main; main()"]
        inside(*fastmesh, "intercept", "down", "-c", run.config, "--cgroup", mine)
        assert inside("nft", "list", "tables") == ""
    wait_until(lambda: not (mine / "cgroup.procs").read_text(), "an empty cgroup")
    mine.rmdir()


def test_nothing_to_take_over(launch, config):
    del config["intercept"]
    run = launch(config, "echo", "started", options=[], prefix=IN_A_HOST)
    assert run.wait() == 1
    assert "has no `intercept`" in run.err()
    assert run.err().count("the command was not started") == 1
    assert run.out() == ""


def test_without_root(launch, config, as_nobody):
    run = launch(config, "echo", "started", options=[], prefix=as_nobody)
    assert run.wait() == 1
    assert "needs root (CAP_NET_ADMIN)" in run.err()
    assert "--explicit" in run.err()


# by network namespace


def isolated(launch, config, as_nobody, user):
    """Options of `launch` for a user."""
    return {"options": ["--isolate"], "prefix": as_nobody if user == "nobody" else IN_A_HOST}


@pytest.mark.parametrize("user", ["root", "nobody"])
def test_isolated(launch, config, as_nobody, user):
    port = free_port()
    elsewhere = socket.create_server(("127.0.0.1", port))
    with elsewhere:
        command = f"id -u; {CALL}; echo; curl -sS -m 5 http://127.0.0.1:{port}/; exit 6"
        run = launch(config, "sh", "-c", command, **isolated(launch, config, as_nobody, user))
        assert run.wait() == 6, run.err()
    assert run.out() == f"{0 if user == 'root' else 65534}\nhello\n"
    # What listens on the host's loopback is out of reach.
    assert f"Failed to connect to 127.0.0.1 port {port}" in run.err()


@pytest.mark.parametrize("user", ["root", "nobody"])
def test_isolated_and_asking_for_names(launch, config, as_nobody, user):
    """The sidecar's resolver answers inside: by /etc/resolv.conf, and whoever else is asked."""
    server = NameServer()
    try:
        config["dns"] = {"listen": f"127.0.0.1:{free_dns_port()}", "upstream": server.text}
        ask = "dig +short +time=5"
        command = (
            f"curl -sS -m 10 http://svc-b.mesh/; echo; {ask} example.com; {ask} +tcp @192.0.2.9 example.com;"
            f"{ask} svc-b; grep -c . /etc/resolv.conf"
        )
        before = Path("/etc/resolv.conf").read_text()
        # In our own network namespace, where the name server is.
        prefix = as_nobody if user == "nobody" else []
        run = launch(config, "sh", "-c", command, options=["--isolate"], prefix=prefix)
        assert run.wait() == 0, run.err()
        hello, *found = run.out().split()
        assert hello == "hello"
        assert found[:3] == ["192.0.2.1", "192.0.2.1", "10.77.0.2"]
        assert Path("/etc/resolv.conf").read_text() == before
        assert "no names" not in run.err()
    finally:
        server.close()


def test_isolated_without_a_resolver(launch, config):
    run = launch(config, "true", options=["--isolate"])
    assert run.wait() == 0
    assert (
        "run: the command can look up no names, for the configuration has no `dns`; with `dns: {" in run.err()
    )


def test_isolated_with_a_resolver_elsewhere(launch, config):
    config["dns"] = {"listen": "10.77.0.9:53"}
    run = launch(config, "true", options=["--isolate"])
    assert run.wait() == 2
    assert "--isolate needs `dns.listen` on loopback, such as 127.0.0.1:53" in run.err()


def test_isolated_with_tproxy(launch, config):
    config["intercept"]["method"] = "tproxy"
    run = launch(config, "true", options=["--isolate"])
    assert run.wait() == 2
    assert "--isolate goes with `intercept.method: redirect` alone: tproxy shows" in run.err()


@pytest.mark.parametrize("user", ["root", "nobody"])
def test_isolated_and_explicit(launch, config, as_nobody, user):
    config["listeners"][0]["transparent"] = False
    del config["intercept"]
    options = isolated(launch, config, as_nobody, user)
    options["options"].append("--explicit")
    run = launch(config, "curl", "-sS", "http://svc-b/", **options)
    assert run.wait() == 0, run.err()
    assert run.out() == "hello"


@pytest.mark.parametrize("user", ["root", "nobody"])
def test_isolated_and_called(launch, config, as_nobody, script, user):
    """The inbound listener is outside, the application is found inside."""
    port, app = free_port(), free_port()
    config["listeners"].append(
        {"name": "inbound", "role": "inbound", "bind": f"127.0.0.1:{port}", "tls": "none", "to": "app"}
    )
    config["services"]["app"] = {"endpoints": [f"127.0.0.1:{app}"]}
    text = f"""
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"from inside")
print("ready", flush=True)
http.server.HTTPServer(("127.0.0.1", {app}), Handler).serve_forever()
"""
    prefix = as_nobody if user == "nobody" else []
    run = launch(config, *script(text), options=["--isolate"], prefix=prefix)
    run.wait_out("ready\n")

    def asked():
        done = subprocess.run(
            ["curl", "-sS", "-m", "10", f"http://127.0.0.1:{port}/"],
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout == "from inside"

    wait_until(asked, f"an answer from inside: {run.err()}")
    run.family()
    os.kill(run.pid, signal.SIGKILL)
    run.wait_gone()


def test_a_sidecar_that_dies_is_back_for_an_isolated_command(launch, config):
    command = f"echo ready; trap '{CALL}; echo' USR1; while :; do sleep 0.1; done"
    run = launch(config, "bash", "-c", command, options=["--isolate"])
    run.wait_out("ready\n")
    os.kill(run.find("supervisor"), signal.SIGKILL)
    run.wait_err("run: the sidecar is back")
    run.signal(signal.SIGUSR1)
    run.wait_out("hello\n")
    run.signal(signal.SIGTERM)
    assert run.wait() == 143


def test_the_applications_port_is_taken(launch, config):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        app = taken.getsockname()[1]
        config["listeners"].append(
            {
                "name": "inbound",
                "role": "inbound",
                "bind": f"127.0.0.1:{free_port()}",
                "tls": "none",
                "to": "app",
            }
        )
        config["services"]["app"] = {"endpoints": [f"127.0.0.1:{app}"]}
        run = launch(config, "echo", "started", options=["--isolate"])
        assert run.wait() == 1
    assert f"cannot listen on 127.0.0.1:{app}" in run.err()
    assert "the command was not started" in run.err()


def test_a_kernel_that_gives_users_no_namespaces(monkeypatch):
    def refuse(_):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(isolation, "unshare", refuse)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(isolation.IsolationError, match="gives users no namespaces of their own") as caught:
        isolation.Namespace([])
    assert "run this as root, or with --explicit alone" in str(caught.value)


def test_names_of_cgroups():
    assert takeover.plain_label('a"; b/ü.yaml') == "a---b--.yaml"
    assert len(takeover.plain_label("x" * 300)) == 64
    for path in ("", "/system.slice/a\\x2db.service"):
        assert takeover.usable(path) == path
    for path in ("/..", "/a/../b", '/a"b', "/a;b", "/a b", "/a//b"):
        with pytest.raises(takeover.TakeoverError, match="use --isolate"):
            takeover.usable(path)


def test_no_place_for_files(monkeypatch):
    """Where / cannot be written there is /run, if that can."""

    def none():
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(takeover.tempfile, "gettempdir", none)
    assert takeover._temporary() == "/run"
    monkeypatch.setattr(takeover, "_RUN", "/no-such-directory")
    with pytest.raises(takeover.TakeoverError, match="mount a tmpfs at /tmp or"):
        takeover._temporary()


def test_the_sockets_inside_are_not_inherited():
    namespace = isolation.Namespace([("outbound", "127.0.0.1", 4005)])
    try:
        assert [sock.get_inheritable() for _, sock in namespace.sockets] == [False]
    finally:
        namespace.close()


def test_an_installation_that_is_killed_may_have_been_done():
    def work():
        os.kill(os.getpid(), signal.SIGKILL)

    one = takeover.CgroupTakeover(None)
    one._install = work
    with pytest.raises(takeover.TakeoverError):
        one.up()
    assert one._up
