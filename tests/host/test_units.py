"""Parts of the host that need no supervisor: sockets, activation, backoff, timers, forking, notification."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import os
import resource
import signal
import socket
import subprocess
import sys
import time

import pytest
from kit import descriptors
from kit.limits import DEADLINE, wait_until

from fastmesh import cli
from fastmesh.host import children, exits, sockets
from fastmesh.host.activation import Activation
from fastmesh.host.children import Backoff
from fastmesh.host.handover import Inboxes
from fastmesh.host.notify import Notifier
from fastmesh.host.pidfile import PidFile
from fastmesh.host.process import fork, how_it_ended, say, spawn
from fastmesh.host.sockets import Listener, ListenError, ListenerSet
from fastmesh.host.timers import Timers

LOOPBACK = {"family": "inet", "host": "127.0.0.1", "port": 0, "path": None}


def unix(path):
    return {"family": "unix", "host": None, "port": None, "path": str(path)}


@pytest.fixture
def listener():
    made = []

    def make(bind, slots=1, name="edge"):
        made.append(Listener(name, bind))
        made[-1].open(slots)
        return made[-1]

    yield make
    for one in made:
        one.close()


# listeners


def test_exit_codes_are_those_of_the_command_line():
    for name in ("OK", "FAILURE", "CONFIG", "LISTEN", "BOOT", "PKI"):
        assert getattr(exits, f"EXIT_{name}") == getattr(cli, f"EXIT_{name}")


def test_a_socket_for_each_slot_on_one_port(listener):
    made = listener(LOOPBACK, 3)
    assert len({sock.getsockname() for sock in made.sockets}) == 1
    assert len({made.socket_of(slot).fileno() for slot in range(3)}) == 3
    for sock in made.sockets:
        assert not sock.getblocking()
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert not os.get_inheritable(sock.fileno())
    assert made.address == f"127.0.0.1:{made.sockets[0].getsockname()[1]}"


def test_both_wildcards_on_one_port(listener):
    four = listener(LOOPBACK | {"host": "0.0.0.0"})
    port = four.sockets[0].getsockname()[1]
    six = listener({"family": "inet6", "host": "::", "port": port, "path": None})
    assert six.address == f"[::]:{port}"


def test_a_port_with_connections_in_time_wait_can_be_bound(listener):
    first = listener(LOOPBACK)
    bind = LOOPBACK | {"port": first.sockets[0].getsockname()[1]}
    client = socket.create_connection(("127.0.0.1", bind["port"]))
    conn = wait_until(lambda: accept(first.sockets[0]), "the connection")
    conn.close()
    assert client.recv(1) == b""
    client.close()
    first.close()
    listener(bind)


def accept(sock):
    try:
        return sock.accept()[0]
    except BlockingIOError:
        return None


def test_unix_socket_that_nobody_listens_on_is_replaced(listener, tmp_path):
    path = tmp_path / "edge.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    made = listener(unix(path), 4)
    assert len(made.sockets) == 1
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    made.close()
    assert not path.exists()


def test_unix_socket_in_use(listener, tmp_path):
    path = tmp_path / "edge.sock"
    listener(unix(path))
    with pytest.raises(ListenError, match=r"another process listens there \(ss -xlp"):
        listener(unix(path))
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_unix_path_that_is_a_file(listener, tmp_path):
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(ListenError, match="a file that is no socket"):
        listener(unix(path))
    assert path.read_text() == "data"


def test_unix_path_that_others_have_taken_over_is_not_unlinked(listener, tmp_path):
    path = tmp_path / "edge.sock"
    made = listener(unix(path))
    path.unlink()
    other = listener(unix(path))
    made.close()
    assert path.exists()
    other.close()
    assert not path.exists()


@pytest.mark.parametrize(
    ("bind", "text"),
    [
        (LOOPBACK | {"host": "192.0.2.1", "port": 80}, "192.0.2.1:80 .listener edge.: this host has no such"),
        (unix("/nonexistent/edge.sock"), "the directory does not exist"),
        (unix("/tmp/" + "x" * 120), "longer than the 107 bytes"),
    ],
)
def test_addresses_that_cannot_be_had(listener, bind, text):
    with pytest.raises(ListenError, match=text):
        listener(bind)


def test_a_set_that_cannot_be_opened_whole_changes_nothing(tmp_path):
    listeners = ListenerSet(Activation({}))
    bad = {"name": "bad", "bind": unix("/nonexistent/x")}
    good = {"name": "good", "bind": unix(tmp_path / "good")}
    with pytest.raises(ListenError):
        listeners.extend([good, bad])
    assert not list(listeners)
    assert not (tmp_path / "good").exists()
    assert [one.name for one in listeners.extend([good])] == ["good"]
    assert listeners.extend([good]) == []
    listeners.close()


def test_a_listeners_role_is_that_of_the_last_snapshot(tmp_path):
    listeners = ListenerSet(Activation({}))
    one = {"name": "one", "bind": unix(tmp_path / "one"), "role": "outbound"}
    (opened,) = listeners.extend([one])
    with pytest.raises(ListenError):
        listeners.extend([{**one, "role": "inbound"}, {"name": "bad", "bind": unix("/nonexistent/x")}])
    assert opened.role == "outbound"
    listeners.withdraw()
    assert opened.sockets
    listeners.extend([{**one, "role": "inbound"}])
    listeners.withdraw()
    assert not opened.sockets
    listeners.close()


def test_a_unix_socket_that_the_kernel_does_not_give(monkeypatch, tmp_path):
    def refuse(*_):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(sockets.socket, "socket", refuse)
    with pytest.raises(ListenError, match="Too many open files"):
        ListenerSet(Activation({})).extend([{"name": "edge", "bind": unix(tmp_path / "edge")}])


@pytest.mark.skipif(os.geteuid() != 0, reason="needs CAP_NET_ADMIN")
@pytest.mark.parametrize(
    ("bind", "level", "option"),
    [
        (LOOPBACK, socket.IPPROTO_IP, 19),
        ({**LOOPBACK, "family": "inet6", "host": "::1"}, socket.IPPROTO_IPV6, 75),
    ],
)
def test_sockets_that_take_connections_to_any_address(listener, bind, level, option):
    for wanted in (0, 1):
        one = listener({**bind, "transparent": True} if wanted else bind, slots=2)
        assert [sock.getsockopt(level, option) for sock in one.sockets] == [wanted] * 2


@pytest.mark.skipif(os.geteuid() != 0, reason="gives its rights up")
def test_such_sockets_without_the_right_to():
    read, write = os.pipe()

    def child():
        os.setuid(65534)
        try:
            Listener("out", {**LOOPBACK, "transparent": True}).open(1)
        except ListenError as error:
            os.write(write, str(error).encode())
        return 0

    pid = fork(child, [write])
    os.close(write)
    text = read_all(read).decode()
    os.waitpid(pid, 0)
    assert "CAP_NET_ADMIN" in text and "method: redirect" in text and "listener out" in text


def test_a_set_says_that_the_method_cannot_change():
    listeners = ListenerSet(Activation({}))
    listeners.extend([{"name": "out", "bind": LOOPBACK}])
    with pytest.raises(ListenError, match=r"out has moved to another `intercept.method`.*restart"):
        listeners.extend([{"name": "out", "bind": {**LOOPBACK, "transparent": True}}])
    listeners.close()


# socket activation


def duplicates(fds):
    """Duplicates of `fds` in descriptors that follow each other and were free; the first of them."""
    lowest = 3
    while True:
        made = []
        for fd in fds:
            # The lowest free number from there on.
            made.append(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, lowest + len(made)))
        if made == [*range(made[0], made[0] + len(made))]:
            return made[0]
        lowest = made[-1]
        for fd in made:
            os.close(fd)


@pytest.fixture
def passed():
    """Activations on duplicates of files; duplicates that nobody has taken are closed at the end."""
    given = []

    def activation(*files, pid=None, count=None, names=""):
        first = duplicates([file.fileno() for file in files])
        given.extend((first + index, os.fstat(file.fileno()).st_ino) for index, file in enumerate(files))
        environ = {
            "LISTEN_PID": str(pid or os.getpid()),
            "LISTEN_FDS": str(len(files) if count is None else count),
            "LISTEN_FDNAMES": names,
        }
        made = Activation(environ, first)
        assert environ == {}
        return made

    yield activation
    for fd, inode in given:
        with contextlib.suppress(OSError):
            if os.fstat(fd).st_ino == inode:
                os.close(fd)


def test_activation_by_name_and_by_address(passed):
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        activation = passed(one, two, names="edge:unknown")
        activation.claim()
        by_address = LOOPBACK | {"port": two.getsockname()[1]}
        assert activation.take("nobody", LOOPBACK | {"port": 1}) == []
        (first,) = activation.take("edge", LOOPBACK | {"port": 1})
        assert first.getsockname() == one.getsockname()
        (second,) = activation.take("db", by_address)
        assert second.getsockname() == two.getsockname()
        assert activation.take("db", by_address) == []
        first.close()
        second.close()


def test_sockets_for_the_resolver(passed):
    """They are nobody else's, whatever their address, and only they need not be listening ones."""
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
    ):
        udp.bind(tcp.getsockname())
        activation = passed(tcp, udp, names="@dns:@dns")
        activation.claim()
        mine = activation.take_dns()
        assert [(sock.type, sock.getsockname()) for sock in mine] == [
            (kind, tcp.getsockname()) for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)
        ]
        assert activation.take("db", LOOPBACK | {"port": tcp.getsockname()[1]}) == []
        assert activation.take_dns() == activation.close_rest() == []
        for sock in mine:
            sock.close()
        with pytest.raises(ListenError, match="is no listening stream socket"):
            passed(udp, names="dns").claim()
        twice = passed(udp, udp, names="@dns:@dns")
        twice.claim()
        with pytest.raises(ListenError, match=r"^several sockets of one kind are called @dns"):
            twice.take_dns()
        twice.close_rest()
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as local,
            pytest.raises(ListenError, match="no IP"),
        ):
            passed(local, names="@dns").claim()


def test_activation_for_someone_else(passed):
    with socket.create_server(("127.0.0.1", 0)) as one:
        activation = passed(one, pid=1)
        activation.claim()
        assert activation.take("edge", LOOPBACK | {"port": one.getsockname()[1]}) == []


def test_activation_with_the_wrong_family(passed):
    with socket.create_server(("127.0.0.1", 0)) as one:
        activation = passed(one, names="edge")
        activation.claim()
        with pytest.raises(ListenError, match="of family AF_INET, the configuration says unix:/x"):
            activation.take("edge", unix("/x"))
        assert len(activation.close_rest()) == 1


def test_what_is_no_listening_socket_is_refused_and_left_alone(passed):
    """A wrong count names descriptors of ours: nothing may close them behind their owner's back."""
    with socket.create_server(("127.0.0.1", 0)) as one, socket.socket() as other:
        activation = passed(other, one)
        with pytest.raises(ListenError, match=r"descriptor \d+ \(no name\) in LISTEN_FDS is no listening"):
            activation.claim()
        before = descriptors.mine()
        del activation
        gc.collect()
        assert descriptors.mine() == before


def test_a_count_without_descriptors_is_refused(passed):
    with socket.create_server(("127.0.0.1", 0)) as one:
        activation = passed(one, count=1_000_000_000)
        with pytest.raises(ListenError, match="in LISTEN_FDS"):
            activation.claim()


def test_several_sockets_of_a_listener_are_dealt_to_the_workers(passed):
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        activation = passed(one, two, names="edge:edge")
        activation.claim()
        listeners = ListenerSet(activation)
        (edge,) = listeners.extend([{"name": "edge", "bind": LOOPBACK}])
        ports = [edge.socket_of(slot).getsockname()[1] for slot in range(3)]
        assert ports == [one.getsockname()[1], two.getsockname()[1], one.getsockname()[1]]
        listeners.close()


# processes


def read_all(fd):
    """What comes until the last writer has gone; closes the descriptor."""
    data = b""
    while more := os.read(fd, 4096):
        data += more
    os.close(fd)
    return data


def test_fork_closes_what_is_not_kept():
    read, write = os.pipe()
    other = os.open("/dev/null", os.O_RDONLY)

    def child():
        os.write(write, b" ".join(name.encode() for name in os.listdir("/proc/self/fd")))  # noqa: PTH208
        return 7

    pid = fork(child, [write])
    os.close(write)
    fds = {int(name) for name in read_all(read).split()}
    assert write in fds and other not in fds and read not in fds
    assert how_it_ended(os.waitpid(pid, 0)[1]) == "ended with exit code 7"
    os.close(other)


def test_a_child_that_raises_never_comes_back():
    code = """
import os
import resource
from fastmesh.host.process import fork
def child():
    raise RuntimeError("out of luck")
print("exit", os.waitstatus_to_exitcode(os.waitpid(fork(child, []), 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "exit 1\n"
    assert done.stderr.endswith("RuntimeError: out of luck\n")


def test_a_forked_child_ignores_the_signals_of_the_group():
    read, write = os.pipe()
    pid = fork(lambda: len(os.read(read, 1)), [read])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(pid, number)
    os.write(write, b"!")
    assert how_it_ended(os.waitpid(pid, 0)[1]) == "ended with exit code 1"
    os.close(read)
    os.close(write)


def test_spawn_passes_descriptors_on_and_no_input():
    read, write = os.pipe()
    pid = spawn(["/bin/sh", "-c", f"cat; echo $$ >/proc/self/fd/{write}"], [write])
    os.close(write)
    assert int(read_all(read)) == pid
    assert os.waitpid(pid, 0)[1] == 0


def test_a_program_that_is_not_there(capfd):
    pid = spawn(["/nonexistent/program"], [])
    assert how_it_ended(os.waitpid(pid, 0)[1]) == "ended with exit code 127"
    assert capfd.readouterr().err == "fastmesh: cannot run /nonexistent/program: No such file or directory\n"


def test_a_line_waits_for_no_reader_that_does_not_come():
    """With a full pipe for its stderr the supervisor would stop otherwise."""
    read, write = os.pipe2(os.O_NONBLOCK)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(write, b"x" * 4096)
    os.set_blocking(write, True)
    code = "from fastmesh.host.process import say; say('x' * 10000); say('y'); print('done')"
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=write, timeout=DEADLINE, check=True
    )
    assert done.stdout == b"done\n"
    os.close(read)
    os.close(write)


def test_a_line_is_whole_whatever_is_in_it(capfd):
    say("a\udcffb\ud800" + "x" * 10_000)
    assert capfd.readouterr().err == "fastmesh: a\\udcffb\\ud800" + "x" * 10_000 + "\n"


def test_how_it_ended_with_a_signal():
    assert how_it_ended(signal.SIGSEGV) == "was killed by SIGSEGV"
    assert how_it_ended(63) == "was killed by signal 63"


def test_backoff(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(children.time, "monotonic", lambda: now)
    backoff = Backoff()
    backoff.started()
    assert backoff.delay() == 0
    waits = [backoff.delay() for _ in range(30)]
    for index, wait in enumerate(waits):
        full = min(0.1 * 2**index, 10.0)
        assert full / 2 <= wait <= full
    backoff.started()
    now += 10
    assert backoff.delay() == 0


def test_timers_run_once_and_can_be_moved_and_cancelled():
    timers = Timers()
    ran = []
    assert timers.wait_ms() is None
    timers.after("late", 1000, lambda: ran.append("late"))
    timers.after("moved", 1000, lambda: ran.append("wrong"))
    timers.after("moved", 0, lambda: ran.append("moved"))
    timers.after("first", 0, lambda: timers.cancel("second"))
    timers.after("second", 0, lambda: ran.append("second"))
    assert timers.wait_ms() <= 1
    wait_until(lambda: timers.run() or ran, "a timer")
    assert ran == ["moved"]
    assert timers.wait_ms() > 900_000


def test_pid_file(tmp_path):
    path = tmp_path / "pid"
    file = PidFile(str(path))
    file.prepare()
    assert not path.exists()
    file.publish()
    assert path.read_text() == f"{os.getpid()}\n"
    assert list(tmp_path.iterdir()) == [path]
    for other in (b"1\n", b"\xff\n"):
        path.write_bytes(other)
        file.remove()
        assert path.exists()


# service manager


def test_notifier_without_a_manager_says_nothing():
    for environ in ({}, {"NOTIFY_SOCKET": "vsock:2:1"}, {"NOTIFY_SOCKET": "@fastmesh-nobody-is-there"}):
        notifier = Notifier(environ)
        notifier.ready("fine")
        assert environ == {}


def test_notifier_keeps_to_its_own_watchdog(tmp_path):
    environ = {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}
    assert Notifier(environ).watchdog_s is None
    environ = {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": str(os.getpid())}
    assert Notifier(environ).watchdog_s == 0.5


def test_notifier_does_not_wait_for_a_manager_that_does_not_read(tmp_path):
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        notifier = Notifier({"NOTIFY_SOCKET": path})
        begin = time.monotonic()
        for _ in range(5000):
            notifier.alive()
        assert time.monotonic() - begin < DEADLINE


# inboxes


def test_an_inbox_for_each_of_several_workers():
    inboxes = Inboxes(3)
    receiving, sending = inboxes.descriptors()
    assert len({*receiving, *sending}) == 6
    for fd in (*receiving, *sending):
        assert not os.get_blocking(fd)
        assert not os.get_inheritable(fd)
    inboxes.sending[1].send(b"first")
    inboxes.sending[1].send(b"second")
    assert inboxes.receiving[1].recv(64) == b"first", "messages, not a stream"
    inboxes.shut(1)
    with pytest.raises(ConnectionError):
        inboxes.sending[1].send(b"third")
    inboxes.sending[0].send(b"others go on")
    inboxes.close()
    inboxes.close()


def test_a_single_worker_has_no_inbox():
    inboxes = Inboxes(1)
    assert inboxes.descriptors() == ([], [])
    inboxes.shut(0)
    inboxes.close()


def test_no_inboxes_without_descriptors():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = max(descriptors.mine()) + 3
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
        with pytest.raises(OSError, match="Too many open files"):
            Inboxes(limit)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
