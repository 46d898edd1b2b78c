"""What makes the directory of keys safe: nothing half-written is ever visible, nothing is lost in a crash.

Rules that everything here keeps:

- A file appears under its name complete and on the disk (write, fsync, rename, fsync of the directory), or
  not at all. Files that belong together form an **entry**: a directory with one hidden sub-directory a
  version and a link `current` to one of them. Replacing the link replaces all files of the entry in one
  step. Links beside `current` give each file the stable path that other programs want.
- A reader opens the version's directory once and takes every file from that descriptor, so it can never see
  the key of one version and the certificate of another. If the version is removed meanwhile it starts again.
- Writers hold the directory's lock. What a killed writer left behind is invisible, and the next writer
  removes it.
- Keys have mode 0600, directories 0700, whatever the umask is.

Functions raise OSError as the system gave it and leave nothing of theirs behind; the callers name what
failed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
import time
from pathlib import Path
from shlex import quote

from fastmesh.certs.errors import PkiError, reason

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

KEY_MODE = 0o600
PUBLIC_MODE = 0o644
DIRECTORY_MODE = 0o700
CURRENT = "current"
# Kubernetes calls the same link so when it mounts a secret.
_LINKS = (CURRENT, "..data")
# Far above any chain or bundle; a bound so that a wrong path (a disk image, /dev/zero) is an error, not
# memory.
MAX_FILE = 4 * 1024 * 1024
LOCK_SECONDS = 30.0

# A block of PEM (RFC 7468 2), by its label.
_BLOCK = re.compile(r"-----BEGIN ([A-Z0-9 ]+)-----[^-]*(?:-(?!----)[^-]*)*-----END \1-----(?:\r?\n)?")
_LOCK = ".fastmesh-lock"
_VERSION = ".v-"
# Not shorter: the directory may be somebody's own (`--pki .`), and what is called so is removed.
_STAGE = ".fastmesh-new-"


def make_directory(path: Path) -> None:
    """Makes `path` (0700) and its parents if they are missing; one that exists keeps its mode."""
    missing = []
    at = path
    while not at.is_dir():
        missing.append(at)
        if at.parent == at:
            break
        at = at.parent
    for directory in reversed(missing):
        with contextlib.suppress(FileExistsError):
            directory.mkdir(mode=DIRECTORY_MODE)
            directory.chmod(DIRECTORY_MODE)
        if not directory.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(directory))
        sync_directory(directory.parent)


def sync_directory(path: Path) -> None:
    """Brings the names in `path` to the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        # Some network and FUSE file systems know no fsync of directories; there is nothing better to call.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(fd)


def write_new(path: Path, text: str, mode: int) -> None:
    """Writes a file that must not exist yet and brings its bytes (not its name) to the disk."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        os.fchmod(fd, mode)
        _write_all(fd, text.encode())
        os.fsync(fd)
    finally:
        os.close(fd)


def is_private(name: str) -> bool:
    """Whether a file of this name holds a private key, by the names that this package gives."""
    return name.endswith("key.pem")


def write_entry(entry: Path, files: Mapping[str, str], version: str) -> None:
    """Makes `files` the current version of `entry`, in one step for readers.

    The caller holds the lock. `version` must be new for this entry. If this fails, the entry has its old
    version or the new one, whole. Older versions, and what a killed writer left, are removed.
    """
    make_directory(entry)
    target = entry / f"{_VERSION}{version}"
    links = [entry / name for name in files]
    try:
        target.mkdir(mode=DIRECTORY_MODE)
        target.chmod(DIRECTORY_MODE)
        for name, text in files.items():
            write_new(target / name, text, KEY_MODE if is_private(name) else PUBLIC_MODE)
        sync_directory(target)
        # Links first where there is nothing: once `current` is there, other programs find every file. Real
        # files (a directory copied from another host) stay until `current` takes their place.
        for link in links:
            if not os.path.lexists(link):
                _link(link, f"{CURRENT}/{link.name}")
        # Before `current` is: else a power cut could keep the link and lose what it leads to.
        sync_directory(entry)
        _link(entry / CURRENT, target.name)
        for link in links:
            _link(link, f"{CURRENT}/{link.name}")
        for link in entry.iterdir():
            # A file that this version has no more.
            if link.name not in files and _target(link) == f"{CURRENT}/{link.name}":
                link.unlink()
        sync_directory(entry)
    except BaseException:
        with contextlib.suppress(OSError):
            _undo(entry, target, links)
        raise
    # Not when anything failed: until the new link is on the disk, a power cut may bring the old one back.
    with contextlib.suppress(OSError):
        _remove_other_versions(entry)


def tidy_entry(entry: Path) -> None:
    """Removes what a writer that was killed after its last step left: versions, with their keys, that are
    replaced. The caller holds the lock."""
    _remove_other_versions(entry)
    sync_directory(entry)


def replace(path: Path, text: str, mode: int, stage_in: Path) -> None:
    """Writes a file that may exist: the old one or the new one is there, whole, at every moment.

    It is built in `stage_in`, a directory on the same file system that the caller has the lock of.
    """
    new = stage_in / f"{_STAGE}{path.name}"
    try:
        new.unlink(missing_ok=True)
        write_new(new, text, mode)
        new.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def remove(path: Path) -> None:
    """Removes a file or a directory with all that is in it; nothing there is fine."""
    if os.path.lexists(path):
        _remove_tree(path)
        sync_directory(path.parent)


def read_entry(entry: Path, names: Sequence[str], optional: Sequence[str] = ()) -> dict[str, str]:
    """The files of one version of `entry`; a plain directory without `current` is read as it is. Those of
    `optional` that are not there are left out.

    Raises PkiError for a file that is no text of sensible size, or a key that others can read; OSError (with
    the file's path) when one cannot be opened.
    """
    for _ in range(100):
        fd = _open_version(entry)
        try:
            found = {name: _read_in(fd, name, entry) for name in names}
            for name in optional:
                with contextlib.suppress(FileNotFoundError):
                    found[name] = _read_in(fd, name, entry)
            # A version that is being removed may have lost a file before it was looked for.
            if len(found) == len(names) + len(optional) or _is_current(entry, fd):
                return found
        except FileNotFoundError:
            # The version was replaced while it was read, or the file is really not there.
            if _is_current(entry, fd):
                raise
        finally:
            os.close(fd)
    raise PkiError(f"{entry} is being replaced all the time and cannot be read")


def read_text(path: Path, limit: int | None = MAX_FILE, *, private: bool = False) -> str:
    """A text file of at most `limit` bytes; `private`: it is a key, whatever it is called. Raises as
    `read_entry`."""
    fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return _text(_read_at(fd, path.name, path, limit, private=private or is_private(path.name)), path)
    finally:
        os.close(fd)


def read_pem(path: Path) -> str:
    """A file that somebody else keeps, anywhere, with whatever stands in it: PEM is judged by its readers.
    Raises as `read_entry`, but for no mode."""
    data = _read_at(None, str(path), path, private=False)
    return data.decode("ascii", "replace").replace("\0", "\ufffd")


def certificates_in(pem: str) -> str:
    """The certificates of such a file, without what else stands in it: a key, as others have them in one."""
    return "".join(block[0] for block in _BLOCK.finditer(pem) if block[1].endswith("CERTIFICATE"))


def is_cut_off(pem: str) -> bool:
    """Whether such a file ends in the middle of something."""
    rest = _BLOCK.sub("", pem)
    return "-----BEGIN " in rest or rest.rpartition("\n")[2].startswith("-")


@contextlib.contextmanager
def lock(directory: Path, seconds: float = LOCK_SECONDS) -> Iterator[None]:
    """Holds the directory's lock, which a killed process gives back by itself. Waits at most `seconds`.

    What a killed process was building (see `stage`) is removed.
    """
    path = directory / _LOCK
    fd = _open_private(path, os.O_RDWR)
    try:
        deadline = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise PkiError(
                        f"another command has been working in {directory} for {seconds:.0f} seconds",
                        f"see which one with: fuser {quote(str(path))}",
                    ) from None
                time.sleep(0.01)
        for left in directory.glob(f"{_STAGE}*"):
            with contextlib.suppress(OSError):
                _remove_tree(left)
        yield
    finally:
        os.close(fd)


@contextlib.contextmanager
def stage(directory: Path) -> Iterator[Path]:
    """A new hidden directory inside `directory` to build something in, then to be renamed by the caller.

    What is still in it afterwards is removed. The caller holds the lock.
    """
    path = directory / f"{_STAGE}{os.getpid()}"
    path.mkdir(mode=DIRECTORY_MODE)
    try:
        path.chmod(DIRECTORY_MODE)
        yield path
    finally:
        with contextlib.suppress(OSError):
            _remove_tree(path)


def append_line(path: Path, line: str) -> None:
    """Appends one line to a record and brings it to the disk. The caller holds the lock.

    Only whole lines count. A line that a killed writer left unfinished is ended first, so that it can never
    run into this one; if the disk is full what was written of this line is taken back.
    """
    fd = _open_private(path, os.O_RDWR | os.O_APPEND)
    try:
        size = os.fstat(fd).st_size
        torn = size > 0 and os.pread(fd, 1, size - 1) != b"\n"
        try:
            _write_all(fd, (b"\n" if torn else b"") + line.encode() + b"\n")
            os.fsync(fd)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(fd, size)
            raise
    finally:
        os.close(fd)


def _open_private(path: Path, flags: int) -> int:
    """Opens a file that stays, and makes it (0600) if it is missing; one that exists keeps its mode."""
    flags |= os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, KEY_MODE)
    except FileExistsError:
        return os.open(path, flags)
    try:
        os.fchmod(fd, KEY_MODE)
    except OSError:
        os.close(fd)
        raise
    return fd


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _link(path: Path, target: str) -> None:
    """Makes `path` a symbolic link to `target`, replacing what was there in one step."""
    if _target(path) == target:
        return
    new = path.with_name(f"{_STAGE}{path.name}")
    new.unlink(missing_ok=True)
    new.symlink_to(target)
    try:
        new.replace(path)
    except OSError:
        new.unlink(missing_ok=True)
        raise


def _undo(entry: Path, target: Path, links: Sequence[Path]) -> None:
    """After a failure: removes what nothing leads to."""
    current = _target(entry / CURRENT)
    if current == target.name:
        return
    if target.is_dir():
        _remove_tree(target)
    if current is None:
        for link in links:
            if _target(link) == f"{CURRENT}/{link.name}":
                link.unlink()
        # Only an empty one goes.
        entry.rmdir()


def _remove_other_versions(entry: Path) -> None:
    current = _target(entry / CURRENT)
    for left in entry.iterdir():
        if left.name.startswith(_VERSION) and left.name != current:
            _remove_tree(left)
        elif left.name.startswith(_STAGE):
            left.unlink()


def _remove_tree(path: Path) -> None:
    """As shutil.rmtree, which would cost every sidecar the import of five compression modules."""
    if path.is_symlink() or not path.is_dir():
        path.unlink()
        return
    for inside in path.iterdir():
        _remove_tree(inside)
    path.rmdir()


def _target(link: Path) -> str | None:
    try:
        return str(link.readlink())
    except OSError:
        return None  # not there, or no link


def _open_version(entry: Path) -> int:
    for link in _LINKS:
        with contextlib.suppress(FileNotFoundError):
            return os.open(entry / link, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    return os.open(entry, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _read_in(version: int, name: str, entry: Path) -> str:
    try:
        return _text(_read_at(version, name, entry / name, private=is_private(name)), entry / name)
    except FileNotFoundError:
        # A key that was never here (a signing request) is put beside the links, not into the version.
        if not is_private(name) or _target(entry / name) is not None:
            raise
        return read_text(entry / name)


def _is_current(entry: Path, fd: int) -> bool:
    try:
        now = _open_version(entry)
    except FileNotFoundError:
        return True
    try:
        return os.path.sameopenfile(now, fd)
    finally:
        os.close(now)


def _text(data: bytes, path: Path) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise PkiError(f"{path} is no text file") from None


def _read_at(
    directory: int | None, name: str, path: Path, limit: int | None = MAX_FILE, *, private: bool
) -> bytes:
    # O_NONBLOCK: a FIFO under this name must be an error, not a hang.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        fd = os.open(name, flags, dir_fd=directory)
    except OSError as error:
        error.filename = str(path)
        raise
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise PkiError(f"{path} is no regular file")
        if limit is not None and status.st_size > limit:
            raise PkiError(
                f"{path} has {status.st_size} bytes; a file of keys or certificates is far smaller"
            )
        # Group read is let pass: that is how a service manager or Kubernetes (fsGroup) hands a key to a
        # service.
        if private and status.st_mode & (stat.S_IRWXO | stat.S_IWGRP):
            raise PkiError(
                f"{path} holds a private key and has mode {stat.S_IMODE(status.st_mode):04o}: others can "
                f"{'read' if status.st_mode & stat.S_IROTH else 'change'} it",
                f"take the right away (chmod 600 {quote(str(path))}) and, as the key may be known, "
                "issue a new one",
            )
        data = bytearray()
        while chunk := os.read(fd, 256 * 1024):
            data += chunk
        return bytes(data)
    except OSError as error:
        raise PkiError(f"{path} cannot be read: {reason(error)}") from error
    finally:
        os.close(fd)
