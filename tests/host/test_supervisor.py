"""The supervisor with real workers: start, its failures, deaths and their replacement, drain, reload."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import time
from pathlib import Path

import pytest
from kit import procfs
from kit.limits import DEADLINE, PATIENCE, wait_until
from kit.ports import free_port
from kit.shares import owners
from kit.supervised import connect, exchange

from fastmesh._core import Area

CONFIG_ERROR = "/etc/somewhere/edge.yaml:3:5: unknown key `prot`, did you mean `protocol`?"


def refused(port: int) -> bool:
    try:
        connect(port).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:
        pass  # it was in the queue when the socket was closed
    return False


@contextlib.contextmanager
def room_for(pid, count):
    """The process can open just so many more descriptors."""
    used = {int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    free = [number for number in range(max(used) + count + 2) if number not in used]
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (free[count], before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


# start


def test_ready_line_names_listeners_workers_and_pid(host):
    host.start(snapshot=host.snapshot(binds={"edge": host.bind(), "db": host.bind()}))
    line = host.wait_line("fastmesh ready: ")
    listeners = f"edge 127.0.0.1:{host.port()}, db 127.0.0.1:{host.port('db')}"
    assert line == f"fastmesh ready: {listeners}; workers 2; pid {host.pid}"
    host.echo()
    host.echo(host.port("db"))


def test_start_frame_carries_the_path_and_the_override(host):
    host.start("--workers", "1", "--workload", "svc-b", snapshot=host.snapshot(workers=1))
    sent = {"config": "/etc/somewhere/edge.yaml", "workers": 1, "workload": "svc-b"}
    assert host.heard("start") == [{"type": "start", **sent}]
    assert host.wait_line("fastmesh ready: ").split("; ")[1] == "workers 1"


def test_titles(host):
    host.start()
    assert procfs.title(host.pid) == "fastmesh: supervisor (edge.yaml)"
    titles = {procfs.title(pid) for pid in host.wait_workers()}
    assert titles == {"fastmesh: worker 0 (edge.yaml)", "fastmesh: worker 1 (edge.yaml)"}


def test_all_families(host, tmp_path):
    path = tmp_path / "edge.sock"
    binds = {"four": host.bind(), "six": host.bind(host="::1"), "unix": host.bind(path=str(path))}
    host.start(snapshot=host.snapshot(binds=binds))
    host.echo(host.port("four"))
    host.echo(host.port("six"), socket.AF_INET6, "::1")
    for _ in range(8):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(DEADLINE)
            sock.connect(str(path))
            exchange(sock)
    host.stop()
    assert not path.exists()


def test_the_agent_has_only_its_descriptors_and_no_variables_of_ours(host):
    host.start(env={"NOTIFY_SOCKET": "@fastmesh-nobody", "WATCHDOG_USEC": "2000000"})
    (birth,) = host.heard("birth")
    opened = set(birth["fds"]) - {0, 1, 2} - set(birth["given"])
    # its log, and the descriptor of the directory that was listed
    assert len(opened) == 2
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "LISTEN_FDS"} & set(birth["environ"])


def test_workers_hold_only_their_own_sockets(host):
    host.start(snapshot=host.snapshot(workers=3))
    held = [{fd for fd in procfs.fds(pid) if fd.startswith("socket:")} for pid in host.wait_workers(3)]
    assert all(held)
    # Two of them share the way into the inbox of the third, and nothing else.
    assert [len(held[0] & held[1]), len(held[1] & held[2]), len(held[0] & held[2])] == [1, 1, 1]
    assert not held[0] & held[1] & held[2]


def test_a_socket_for_all_workers_is_shared_out(host):
    """Every worker is woken by every connection, and the first one gets them all."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as shared:
        port = shared.getsockname()[1]
        host.start(
            snapshot=host.snapshot(workers=3, binds={"edge": host.bind(port)}), sockets={"edge": shared}
        )
    workers = host.wait_workers(3)
    socks = [connect(port) for _ in range(12)]
    for sock in socks:
        exchange(sock)
    wait_until(lambda: owners(workers, ("127.0.0.1", port)) == [4, 4, 4], "an even deal")
    for sock in socks:
        sock.close()


@pytest.mark.parametrize(
    ("answers", "code", "texts"),
    [
        (
            [{"type": "config_error", "errors": [CONFIG_ERROR], "initial": True}],
            2,
            [CONFIG_ERROR, "not started: 1 error"],
        ),
        (
            [{"type": "pki_error", "message": "pki: no such directory"}],
            5,
            ["fastmesh: pki: no such directory"],
        ),
        ([{"type": "exit", "code": 7}], 4, ["agent", "ended with exit code 7 before it had read"]),
        ([{"type": "raw", "hex": "ffffffff"}], 4, ["a frame of 4294967295 bytes"]),
    ],
)
def test_the_agent_cannot_start(host, answers, code, texts):
    host.on("start", *answers)
    host.launch()
    assert host.wait() == code
    for text in texts:
        assert text in host.stderr()


def test_a_worker_that_cannot_boot_stops_the_start_with_its_reason(host):
    broken = host.snapshot()
    del broken["services"]
    host.on("start", {"type": "snapshot", "snapshot": broken})
    host.launch()
    assert host.wait() == 4
    assert "cannot start: " in host.stderr()
    assert "services" in host.stderr()
    assert "fastmesh ready" not in host.stderr()


def test_too_many_workers(host):
    host.on("start", {"type": "snapshot", "snapshot": host.snapshot(workers=3)})
    host.launch("--workers", "2")
    assert host.wait() == 2
    assert "workers: 3: at most 2" in host.stderr()


def test_port_taken(host):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        host.on("start", {"type": "snapshot", "snapshot": host.snapshot(binds={"edge": host.bind(port)})})
        host.launch()
        assert host.wait() == 3
    assert f"cannot listen on 127.0.0.1:{port} (listener edge)" in host.stderr()
    assert f"ss -ltnp 'sport = :{port}'" in host.stderr()


def test_a_second_instance_does_not_take_half_of_the_connections(host, tmp_path, echo_server):
    host.start()
    second = type(host)(tmp_path / "second", echo_server.port)
    second.directory.mkdir()
    bind = second.bind(host.port())
    second.on("start", {"type": "snapshot", "snapshot": second.snapshot(binds={"edge": bind})})
    second.launch()
    assert second.wait() == 3
    host.echo()


def test_a_signal_during_the_start_ends_it(host):
    host.on("start", {"type": "hang"})
    host.launch()
    wait_until(lambda: host.heard("start"), "the agent's start")
    host.signal(signal.SIGTERM)
    assert host.wait() == 0


# admin


def test_admin_socket_is_handed_over_and_survives_the_agent(host):
    host.start(snapshot=host.snapshot(admin={"host": "127.0.0.1", "port": 0, "explicit": True}))
    port = host.port("admin")
    assert wait_until(lambda: host.heard("admin"), "the admin socket")[0]["ports"] == [port]
    os.kill(host.agent(), signal.SIGKILL)
    wait_until(lambda: len(host.heard("birth")) == 2, "another agent")
    # Nobody has to accept for a connection to be taken.
    connect(port).close()
    assert host.heard("birth")[1]["admin"] == [port]


def test_admin_address_taken(host):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        admin = {"host": "127.0.0.1", "port": port, "explicit": True}
        host.on("start", {"type": "snapshot", "snapshot": host.snapshot(admin=admin)})
        host.launch()
        assert host.wait() == 3
        assert f"cannot listen on 127.0.0.1:{port} (listener admin)" in host.stderr()


def test_default_admin_address_taken_is_no_reason_to_stop(host):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        host.start(snapshot=host.snapshot(admin={"host": "127.0.0.1", "port": port, "explicit": False}))
        assert f"no admin API: cannot listen on 127.0.0.1:{port}" in host.stderr()
        host.echo()


# deaths


def test_a_killed_worker_is_replaced_on_the_same_socket(host):
    host.start()
    for death in range(1, 4):
        pids = host.wait_workers()
        os.kill(pids[0], signal.SIGKILL)
        # Each connects at once: half of them wait in the dead worker's queue for its successor.
        for _ in range(8):
            host.echo()
        after = host.wait_workers(other_than=pids[:1])
        assert after[1] == pids[1]
        host.wait_line("worker 0 (pid", count=death)
    assert f"worker 0 (pid {pids[0]}) was killed by SIGKILL" in host.stderr()
    assert host.heard("status")[-1]["workers"][0]["restarts"] == 3


def test_a_worker_that_cannot_be_replaced_yet_is_tried_again(host):
    host.start()
    before = host.wait_workers()
    # A channel needs two, and the dead worker's leaves one.
    with room_for(host.pid, 0):
        os.kill(before[0], signal.SIGKILL)
        host.wait_line("worker 0 cannot start: Too many open files")
    host.wait_workers(other_than=before[:1])
    host.echo()


def test_a_connection_on_another_worker_outlives_a_dead_one(host):
    host.start()
    with connect(host.port()) as sock:
        exchange(sock)
        owner = [
            pid
            for pid in host.wait_workers()
            if sock.getsockname()[1] in procfs.owned_peers(pid, host.port())
        ]
        assert len(owner) == 1
        (other,) = set(host.wait_workers()) - set(owner)
        os.kill(other, signal.SIGKILL)
        host.wait_workers(other_than=[other])
        exchange(sock)


def test_a_killed_agent_is_resumed_with_the_snapshot_in_use(host):
    host.start()
    with connect(host.port()) as sock:
        os.kill(host.agent(), signal.SIGKILL)
        exchange(sock)
        wait_until(lambda: len(host.heard("birth")) == 2, "another agent")
        wait_until(lambda: host.heard("resume"), "its snapshot")
        assert host.heard("resume")[0] == {
            "type": "resume",
            "config": "/etc/somewhere/edge.yaml",
            "workers": None,
            "workload": None,
            "snapshot": host.snapshot(),
        }
        exchange(sock)
    assert len(host.heard("start")) == 1
    status = wait_until(lambda: host.heard("status")[-1:], "the workers' state")[0]
    assert [row["state"] for row in status["workers"]] == ["ready", "ready"]
    assert status["agent_restarts"] == 1


def test_an_agent_that_hangs_matters_to_nobody(host):
    host.start()
    (first, _) = host.wait_workers()
    os.kill(host.agent(), signal.SIGSTOP)
    host.echo()
    os.kill(first, signal.SIGKILL)
    host.wait_line(f"worker 0 (pid {first}) was killed by SIGKILL")
    for _ in range(8):
        host.echo()
    host.signal(signal.SIGTERM)
    assert host.wait() == 0


def test_the_agent_dies_with_the_supervisor_even_when_it_hangs(host):
    host.start()
    agent, workers = host.agent(), host.wait_workers()
    os.kill(agent, signal.SIGSTOP)
    host.signal(signal.SIGKILL)
    host.wait()
    wait_until(lambda: not any(procfs.alive(pid) for pid in [agent, *workers]), "the end of all")


def test_workers_finish_what_they_have_when_the_supervisor_is_killed(host):
    host.start()
    port = host.port()
    workers = host.wait_workers()
    with connect(port) as sock:
        exchange(sock)
        host.signal(signal.SIGKILL)
        host.wait()
        wait_until(lambda: refused(port), "that nobody accepts any more")
        exchange(sock)
    wait_until(lambda: not any(procfs.alive(pid) for pid in workers), "the workers' end")


# the keys of session tickets


def test_the_keys_of_tickets_are_turned(host):
    """Beside everything else, and also while the agent is dead."""
    host.start("--ticket-interval", "0.02")
    birth = host.heard("birth")[-1]
    fd = os.open(f"/proc/{birth['pid']}/fd/{birth['given'][1]}", os.O_RDWR | os.O_CLOEXEC)
    area = Area.attach(fd)
    os.close(fd)
    os.kill(birth["pid"], signal.SIGKILL)
    wait_until(lambda: area.ticket_turn > 5, "a few new keys")
    with connect(host.port()) as sock:
        exchange(sock)


# the end


def test_drain_lets_exchanges_finish_and_refuses_new_ones(host, tmp_path):
    pid_file = tmp_path / "pid"
    host.start("--pid-file", str(pid_file))
    assert pid_file.read_text() == f"{host.pid}\n"
    port = host.port()
    with connect(port) as sock:
        exchange(sock)
        host.signal(signal.SIGTERM)
        wait_until(lambda: refused(port), "that nobody accepts any more")
        exchange(sock)
        assert host.heard("status")[-1]["draining"]
        assert host.process.poll() is None
    assert host.wait() == 0
    assert host.heard("stop")
    assert not pid_file.exists()


def test_inbound_listeners_are_withdrawn_and_the_others_serve_on(host):
    snapshot = host.snapshot(binds={"out": host.bind(), "in": host.bind()})
    for listener, role in zip(snapshot["listeners"], ("outbound", "inbound"), strict=True):
        listener["role"] = role
    host.start(snapshot=snapshot)
    with connect(host.port("in")) as inside, connect(host.port("out")) as outside:
        exchange(inside)
        host.signal(signal.SIGUSR2)
        wait_until(lambda: refused(host.port("in")), "that nobody accepts there any more")
        exchange(outside)
        # Opaque connections go on.
        exchange(inside)
        host.echo(host.port("out"))
        # A successor gets no socket to let anybody in, and a reload none anew.
        killed = host.wait_workers()
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        host.wait_workers(other_than=killed)
        host.echo(host.port("out"))
        assert refused(host.port("in"))
        host.on("reload", {"type": "snapshot", "snapshot": {**snapshot, "number": 2}})
        host.signal(signal.SIGHUP)
        host.wait_line("not reloaded: the proxy is about to stop")
        assert refused(host.port("in"))
    host.stop()


def test_connections_that_waited_in_the_accept_queue_are_served_in_a_drain(host):
    host.start(snapshot=host.snapshot(workers=1))
    port = host.port()
    (worker,) = host.wait_workers(1)
    os.kill(worker, signal.SIGSTOP)
    socks = [connect(port) for _ in range(5)]
    host.signal(signal.SIGTERM)
    host.wait_line("draining")
    os.kill(worker, signal.SIGCONT)
    for sock in socks:
        exchange(sock)
        sock.close()
    assert host.wait() == 0


def test_the_drain_deadline(host):
    host.start(snapshot=host.snapshot(drain_ms=300))
    with connect(host.port()) as sock:
        exchange(sock)
        begin = time.monotonic()
        host.signal(signal.SIGTERM)
        assert host.wait() == 0
        assert time.monotonic() - begin >= 0.3
        assert sock.recv(1) == b""


def test_a_worker_that_hangs_does_not_outlive_the_deadline(host):
    host.start(snapshot=host.snapshot(drain_ms=100))
    for pid in host.wait_workers():
        os.kill(pid, signal.SIGSTOP)
    host.signal(signal.SIGTERM)
    assert host.wait() == 0
    assert "has not ended in time; killed" in host.stderr()


def test_the_second_signal_ends_at_once(host):
    host.start(snapshot=host.snapshot(drain_ms=600_000))
    with connect(host.port()) as sock:
        exchange(sock)
        host.signal(signal.SIGINT)
        host.wait_line("draining")
        host.signal(signal.SIGINT)
        assert host.wait() == 0


def test_the_second_signal_does_not_wait_for_an_agent_that_hangs(host):
    """Nor for workers that do: everything has the same half second, not each its own grace."""
    host.start(snapshot=host.snapshot(drain_ms=600_000))
    os.kill(host.agent(), signal.SIGSTOP)
    with connect(host.port()) as sock:
        exchange(sock)
        host.signal(signal.SIGTERM)
        host.wait_line("draining")
        begin = time.monotonic()
        host.signal(signal.SIGTERM)
        assert host.wait() == 0
    assert time.monotonic() - begin < 3.0 * PATIENCE


def test_signals_to_the_whole_group_count_once(host):
    host.start()
    with connect(host.port()) as sock:
        exchange(sock)
        os.killpg(host.pid, signal.SIGTERM)
        host.wait_line("draining")
        exchange(sock)
    assert host.wait() == 0


# reload


def test_reload_with_the_same_listeners(host):
    host.start()
    port = host.port()
    changed = host.snapshot(2, binds={"edge": host.bind()}, drain_ms=400)
    host.on("reload", {"type": "snapshot", "snapshot": changed})
    with connect(port) as sock:
        exchange(sock)
        host.signal(signal.SIGHUP)
        host.wait_line("snapshot 2 is in use")
        exchange(sock)
        host.echo(port)
        (worker, _) = host.wait_workers()
        os.kill(worker, signal.SIGKILL)
        host.wait_workers(other_than=[worker])
        host.echo(port)
    os.kill(host.agent(), signal.SIGKILL)
    wait_until(lambda: host.heard("resume"), "the agent's snapshot")
    assert host.heard("resume")[0]["snapshot"]["number"] == 2


def test_reload_with_a_bad_configuration_changes_nothing(host):
    host.start()
    host.on("reload", {"type": "config_error", "errors": [CONFIG_ERROR], "initial": False})
    host.signal(signal.SIGHUP)
    host.wait_line("not reloaded: 1 error in the configuration")
    assert CONFIG_ERROR in host.stderr().splitlines()
    host.echo()


def identity(number: int) -> dict[str, object]:
    """What the agent says of a new identity; to a proxy that has none it is a change all the same."""
    return {"type": "parts", "number": number, "digest": f"{number:064x}", "parts": {"identity": None}}


def in_use(host) -> dict[str, object]:
    """The snapshot that the next agent is told to be in use."""
    told = len(host.heard("resume"))
    os.kill(host.agent(), signal.SIGKILL)
    wait_until(lambda: len(host.heard("resume")) > told, "its successor")
    return host.heard("resume")[-1]["snapshot"]


def test_a_renewed_identity_is_no_answer_to_a_reload(host):
    host.start()
    third = {"type": "snapshot", "snapshot": host.snapshot(3, binds={"edge": host.bind()})}
    host.on("reload", identity(2))
    host.signal(signal.SIGHUP)
    wait_until(lambda: len(host.heard("reload")) == 1, "the reload")
    host.echo()
    host.on("reload", third)
    host.signal(signal.SIGHUP)
    host.wait_line("snapshot 3 is in use")
    assert "snapshot 2 is in use" not in host.stderr()
    host.stop()


def test_a_renewed_identity_goes_into_the_snapshot_in_use(host):
    """Not into one that the agent made meanwhile and that could not be put to use."""
    host.start()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        binds = {"edge": host.bind(), "new": host.bind(taken.getsockname()[1])}
        refused = host.snapshot(2, binds=binds)
        host.on("reload", {"type": "snapshot", "snapshot": refused}, identity(3))
        host.signal(signal.SIGHUP)
        host.wait_line("not reloaded: ")
        wait_until(lambda: host.heard("resume"), "that the agent is told")
    before = in_use(host)
    assert (before["number"], len(before["listeners"])) == (1, 1)
    host.on("reload", identity(2))
    host.signal(signal.SIGHUP)
    wait_until(lambda: len(host.heard("reload")) == 2, "the reload")
    after = in_use(host)
    assert after == before | {"number": 2, "digest": f"{2:064x}"}
    host.echo()


def test_reload_adds_a_listener(host):
    host.start()
    edge, new = host.port(), free_port()
    changed = host.snapshot(2, binds={"edge": host.bind(), "new": host.bind(new)})
    host.on("reload", {"type": "snapshot", "snapshot": changed})
    host.signal(signal.SIGHUP)
    host.wait_line("snapshot 2 is in use")
    for _ in range(6):
        host.echo(new)
        host.echo(edge)
    (worker, other) = host.wait_workers()
    os.kill(worker, signal.SIGKILL)
    assert host.wait_workers(other_than=[worker])[1] == other
    for _ in range(6):
        host.echo(new)
    host.signal(signal.SIGTERM)
    wait_until(lambda: refused(new), "that the new listener has gone, too")


def test_a_worker_that_cannot_be_given_a_new_socket_is_replaced(host):
    """Out of descriptors in the middle of a reload: the supervisor goes on, and so does the new listener."""
    host.start()
    before, new = host.wait_workers(), free_port()
    changed = host.snapshot(2, binds={"edge": host.bind(), "new": host.bind(new)})
    host.on("reload", {"type": "snapshot", "snapshot": changed})
    # For the listener's two sockets, and no copy of them.
    with room_for(host.pid, 2):
        host.signal(signal.SIGHUP)
        host.wait_line("cannot be given its new sockets: Too many open files; replaced", 2)
    for worker in host.wait_workers(other_than=before):
        # Those that were born in that room live in it.
        resource.prlimit(worker, resource.RLIMIT_NOFILE, resource.prlimit(host.pid, resource.RLIMIT_NOFILE))
    for _ in range(6):
        host.echo(new)
        host.echo()


def test_reload_that_moves_or_removes_listeners_is_refused(host):
    host.start(snapshot=host.snapshot(binds={"edge": host.bind(), "old": host.bind()}))
    before, after = host.port(), free_port()
    changed = host.snapshot(2, binds={"edge": host.bind(after)})
    host.on("reload", {"type": "snapshot", "snapshot": changed})
    host.signal(signal.SIGHUP)
    line = host.wait_line("not reloaded: listeners can only be added")
    assert f"edge has moved from 127.0.0.1:{before} to 127.0.0.1:{after}, old is gone" in line
    wait_until(lambda: host.heard("resume"), "the agent's snapshot")
    assert refused(after)
    host.echo()
    host.echo(host.port("old"))


def test_reload_with_a_listener_that_cannot_be_had(host):
    host.start()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bind = host.bind(taken.getsockname()[1])
        changed = host.snapshot(2, binds={"edge": host.bind(), "more": bind})
        host.on("reload", {"type": "snapshot", "snapshot": changed})
        host.signal(signal.SIGHUP)
        host.wait_line("not reloaded: cannot listen on")
    wait_until(lambda: host.heard("resume"), "the agent's snapshot")
    assert host.heard("resume")[0]["snapshot"]["number"] == 1
    host.echo()


def test_reload_tells_what_needs_another_start(host):
    host.start()
    host.on("reload", {"type": "snapshot", "snapshot": host.snapshot(2, workers=4)})
    host.signal(signal.SIGHUP)
    host.wait_line("workers changed in the configuration: takes effect at the next start")
    host.wait_line("snapshot 2 is in use")
    assert len(host.wait_workers()) == 2


def refusals(host) -> list[str]:
    """Why workers go on with an older snapshot, as the agent was told last."""
    return [worker["refused"] for worker in host.heard("status")[-1]["workers"]]


def test_a_snapshot_that_workers_refuse(host):
    host.start()
    broken = host.snapshot(2)
    del broken["services"]
    host.on("reload", {"type": "snapshot", "snapshot": broken})
    host.signal(signal.SIGHUP)
    host.wait_line("refused snapshot 2", count=2)
    wait_until(lambda: all(refusals(host)), "that the agent knows")
    host.on("reload", {"type": "snapshot", "snapshot": host.snapshot(3, binds={"edge": host.bind()})})
    host.signal(signal.SIGHUP)
    wait_until(lambda: not any(refusals(host)), "that the agent knows of the end")
    host.echo()


def test_a_reload_that_reaches_a_dead_agent_is_answered_by_its_successor(host):
    host.start()
    host.on("reload", {"type": "exit", "code": 1})
    host.signal(signal.SIGHUP)
    wait_until(lambda: host.heard("reload"), "the reload")
    host.on("reload", {"type": "snapshot", "snapshot": host.snapshot(2)})
    host.wait_line("snapshot 2 is in use")


# service manager


def test_notify(host):
    address = f"\0fastmesh-host-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.settimeout(DEADLINE)
        env = {"NOTIFY_SOCKET": "@" + address[1:], "WATCHDOG_USEC": "100000"}
        host.on("reload", {"type": "snapshot", "snapshot": host.snapshot(2)})
        host.start(env=env)

        def told(key: str) -> list[str]:
            while True:
                lines = manager.recv(4096).decode().split("\n")
                if lines[0].startswith(key):
                    return lines

        ready = told("READY=1")
        assert f"MAINPID={host.pid}" in ready
        told("WATCHDOG=1")
        told("WATCHDOG=1")
        host.signal(signal.SIGHUP)
        assert told("RELOADING=1")[1].startswith("MONOTONIC_USEC=")
        assert "STATUS=snapshot 2 is in use" in told("READY=1")
        host.signal(signal.SIGTERM)
        told("STOPPING=1")
    assert host.wait() == 0


def test_pid_file_that_cannot_be_written(host, tmp_path):
    host.on("start", {"type": "snapshot", "snapshot": host.snapshot()})
    host.launch("--pid-file", str(tmp_path / "no" / "pid"))
    assert host.wait() == 2
    assert "pid file" in host.stderr()


def test_pid_file_that_is_a_directory(host, tmp_path):
    host.on("start", {"type": "snapshot", "snapshot": host.snapshot()})
    host.launch("--pid-file", str(tmp_path))
    assert host.wait() == 2
    assert host.stderr() == f"fastmesh: pid file {tmp_path}: Is a directory\n"


def test_pid_file_that_cannot_be_put_in_place(host, tmp_path):
    path = tmp_path / "pids" / "edge.pid"
    path.parent.mkdir()
    host.on("start")
    host.launch("--pid-file", str(path))
    wait_until(lambda: host.heard("start"), "the agent")
    for draft in path.parent.iterdir():
        draft.unlink()
    path.parent.rmdir()
    host.on("reload", {"type": "snapshot", "snapshot": host.snapshot()})
    host.signal(signal.SIGHUP)
    assert host.wait() == 2
    assert f"pid file {path}: No such file or directory" in host.stderr()


def test_socket_activation(host, tmp_path):
    path = tmp_path / "edge.sock"
    with (
        socket.create_server(("127.0.0.1", 0)) as by_name,
        socket.create_server(("127.0.0.1", 0)) as by_address,
        socket.create_server(str(path), family=socket.AF_UNIX) as unix,
        socket.create_server(("127.0.0.1", 0)) as unused,
    ):
        binds = {
            "edge": host.bind(1),  # the socket's own address counts
            "db": host.bind(by_address.getsockname()[1]),
            "local": host.bind(path=str(path)),
        }
        host.on("start", {"type": "snapshot", "snapshot": host.snapshot(binds=binds)})
        host.launch(sockets={"edge": by_name, "edge.socket": by_address, "": unix, "spare": unused})
        host.wait_line("fastmesh ready: ")
        for port in (by_name.getsockname()[1], by_address.getsockname()[1]):
            for _ in range(4):
                host.echo(port)
        assert "the service manager passed a socket that no listener takes: spare" in host.stderr()
        host.stop()
        assert path.exists()
        # Still the manager's: connections wait for the next start.
        connect(by_name.getsockname()[1]).close()


def test_what_is_passed_must_listen(host):
    with socket.socket() as plain:
        host.on("start")
        host.launch(sockets={"edge": plain})
        assert host.wait() == 3
        assert "descriptor 3 (edge) in LISTEN_FDS is no listening stream socket" in host.stderr()
