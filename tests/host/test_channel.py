"""The channel's framing: whole, in pieces, with descriptors, against a peer that does not read or lies."""

from __future__ import annotations

import os
import select
import socket

import pytest
from kit import descriptors

from fastmesh.host.channel import (
    MAX_FRAME,
    Channel,
    ChannelError,
    encode,
    snapshot_bytes,
    snapshot_frame,
)


@pytest.fixture
def pair():
    left, sock = Channel.pair()
    right = Channel(sock)
    yield left, right
    left.close()
    right.close()


def receive(channel: Channel, count: int = 1):
    """`count` frames, with a deadline."""
    frames = []
    poll = select.poll()
    poll.register(channel.fileno(), select.POLLIN)
    while len(frames) < count:
        assert poll.poll(10_000), "no frame in time"
        frames += channel.receive()
    return frames


def test_frames_arrive_in_order(pair):
    left, right = pair
    left.send({"type": "a", "n": 1})
    left.send({"type": "b", "text": "ü\n"})
    frames = receive(right, 2)
    assert [frame.type for frame in frames] == ["a", "b"]
    assert frames[1].message == {"type": "b", "text": "ü\n"}


def test_descriptors_that_cannot_be_copied_leave_nothing(pair):
    left, right = pair
    before = descriptors.mine()
    with pytest.raises(OSError):
        left.send({"type": "x"}, descriptors=[0, -1])
    assert descriptors.mine() == before
    left.send({"type": "y"})
    assert [frame.type for frame in receive(right)] == ["y"]


def test_every_split_gives_the_same_frames():
    data = b"".join(
        len(body).to_bytes(4, "big") + body for body in (encode({"type": "x", "v": "1"}), b'{"type":"y"}')
    )
    for cut in range(1, len(data)):
        channel, sock = Channel.pair()
        sock.sendall(data[:cut])
        frames = channel.receive()
        sock.sendall(data[cut:])
        frames += channel.receive()
        assert [frame.type for frame in frames] == ["x", "y"]
        sock.close()
        channel.close()


def test_a_large_frame_waits_for_the_reader(pair):
    left, right = pair
    snapshot = b'{"number":7,"pad":"' + b"x" * (8 * 1024 * 1024) + b'"}'
    left.send(snapshot_frame(snapshot))
    assert left.waiting
    frames = []
    while not frames:
        frames = right.receive()
        left.flush()
    assert not left.waiting
    assert snapshot_bytes(frames[0]) == snapshot


def test_a_newer_frame_of_the_same_key_replaces_the_waiting_one(pair):
    left, right = pair
    left.send({"type": "filler", "pad": "x" * (8 * 1024 * 1024)})
    for number in range(1000):
        left.send({"type": "status", "number": number}, key="status")
    left.send({"type": "last"})
    frames = []
    while not frames or frames[-1].type != "last":
        frames += right.receive()
        left.flush()
    assert [frame.type for frame in frames] == ["filler", "status", "last"]
    assert frames[1].message["number"] == 999


def test_a_frame_that_has_begun_to_leave_is_not_replaced(pair):
    left, right = pair
    left.send({"type": "status", "pad": "x" * (8 * 1024 * 1024)}, key="status")
    left.send({"type": "status", "number": 2}, key="status")
    frames = []
    while len(frames) < 2:
        frames += right.receive()
        left.flush()
    assert frames[1].message == {"type": "status", "number": 2}


def test_descriptors_belong_to_their_frame(pair):
    left, right = pair
    pipes = [os.pipe() for _ in range(3)]
    left.send({"type": "none"})
    left.send({"type": "one"}, descriptors=[pipes[0][1]])
    left.send({"type": "two"}, descriptors=[pipes[1][1], pipes[2][1]])
    left.send({"type": "after"})
    for _, write in pipes:
        os.close(write)
    frames = receive(right, 4)
    assert [len(frame.descriptors) for frame in frames] == [0, 1, 2, 0]
    for (read, _), fd in zip(pipes, [fd for frame in frames for fd in frame.descriptors], strict=True):
        assert not os.get_inheritable(fd)
        os.write(fd, b"!")
        os.close(fd)
        assert os.read(read, 10) == b"!"
        os.close(read)


def test_descriptors_of_a_large_frame_that_arrives_in_pieces(pair):
    left, right = pair
    read, write = os.pipe()
    left.send({"type": "before"})
    left.send({"type": "big", "pad": "x" * (4 * 1024 * 1024)}, descriptors=[write])
    left.send({"type": "after"})
    os.close(write)
    frames = []
    while len(frames) < 3:
        frames += right.receive()
        left.flush()
    assert [len(frame.descriptors) for frame in frames] == [0, 1, 0]
    os.close(frames[1].descriptors[0])
    assert os.read(read, 1) == b""
    os.close(read)


def test_descriptors_of_a_frame_that_never_leaves_are_closed(pair):
    left, _ = pair
    left.send({"type": "filler", "pad": "x" * (8 * 1024 * 1024)})
    read, write = os.pipe()
    left.send({"type": "one"}, descriptors=[write])
    os.close(write)
    left.close()
    assert os.read(read, 1) == b""
    os.close(read)


def test_end_of_stream_comes_after_the_last_frame(pair):
    left, right = pair
    left.send({"type": "bye"})
    left.close()
    assert [frame.type for frame in right.receive()] == ["bye"]
    assert right.closed
    assert right.receive() == []
    right.send({"type": "into the void"})


def test_sending_to_a_peer_that_has_gone_keeps_what_it_sent():
    channel, sock = Channel.pair()
    sock.sendall(b'\x00\x00\x00\x0f{"type":"last"}')
    sock.close()
    channel.send({"type": "drain"})
    assert [frame.type for frame in channel.receive()] == ["last"]
    assert channel.closed
    channel.close()


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"{}", b'{"type":1}', b"\xff\xff", b'"type"', b"null"])
def test_what_is_no_frame_is_refused(body):
    channel, sock = Channel.pair()
    sock.sendall(len(body).to_bytes(4, "big") + body)
    with pytest.raises(ChannelError):
        channel.receive()
    sock.close()
    channel.close()


def test_a_length_over_the_limit_is_refused_before_its_bytes_come():
    channel, sock = Channel.pair()
    sock.sendall((MAX_FRAME + 1).to_bytes(4, "big"))
    with pytest.raises(ChannelError, match="at most"):
        channel.receive()
    sock.close()
    channel.close()


def test_too_large_to_send(pair):
    with pytest.raises(ValueError, match="at most"):
        pair[0].send(b"x" * (MAX_FRAME + 1))
    with pytest.raises(ValueError, match="descriptors"):
        pair[0].send({"type": "x"}, descriptors=range(300))


def test_snapshot_bytes_of_a_frame_written_by_someone_else():
    channel, sock = Channel.pair()
    body = b'{ "snapshot": {"number": 3}, "type": "snapshot" }'
    sock.sendall(len(body).to_bytes(4, "big") + body)
    (frame,) = channel.receive()
    assert frame.type == "snapshot"
    assert snapshot_bytes(frame) == b'{"number":3}'
    sock.close()
    channel.close()


def test_from_fd_is_not_inherited_further():
    left, right = socket.socketpair()
    fd = os.dup(right.fileno())
    os.set_inheritable(fd, True)
    channel = Channel.from_fd(fd)
    assert not os.get_inheritable(channel.fileno())
    channel.close()
    left.close()
    right.close()
