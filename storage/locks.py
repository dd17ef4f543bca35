"""Who may use an experiment's folder: the locks next to it."""

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import portalocker

from ..util import UserError
from .disk import file_error_line, full_disk_line, is_full
from .folders import Folders

CHILDREN_PATIENCE = 15.0  # seconds that a killed launch's processes get to end
# What flock answers where there is none; ENOTSUP is EOPNOTSUPP here.
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)
ASKING_PATIENCE = 1.0  # seconds in which one who only asks (`is_locked`) lets go


@contextmanager
def claimed(folders: Folders) -> Iterator[Callable[[], None]]:
    """Holds the experiment's folder: no second launch gets it at the same time.

    The lock is the kernel's: it is free as soon as its holder is gone, however it
    went. Processes that outlive a killed launcher for a moment hold a shared lock of
    their own, which is waited for.

    Yields:
        a function that holds the folder which has the name by now, and may have taken
        the place of another; it makes one where there is none.

    Raises:
        UserError: another launch has the folder.
    """
    try:
        folders.root.parent.mkdir(parents=True, exist_ok=True)
        for kind in ("run", "processes"):
            folders.lock(kind).touch()
    except OSError as error:
        raise unwritable(error, folders) from None
    exclusive = portalocker.LOCK_EX | portalocker.LOCK_NB
    with ExitStack() as stack:
        try:
            stack.enter_context(
                portalocker.Lock(
                    folders.lock("run"), "a", timeout=ASKING_PATIENCE, flags=exclusive
                )
            )
        except portalocker.LockException as error:
            check_locks(error, folders.root.parent)
            raise _in_use(folders) from None
        folder = stack.enter_context(ExitStack())
        which: os.stat_result | None = None

        def hold() -> None:
            nonlocal which
            try:
                with suppress(FileExistsError):  # a file, or a link to nowhere
                    folders.root.mkdir(parents=True, exist_ok=True)
                now = os.stat(folders.root)
            except OSError as error:
                raise unwritable(error, folders) from None
            if which is None or not os.path.samestat(which, now):
                folder.close()  # what was put aside is free
                folder.enter_context(held(folders))
                which = now

        if folders.root.exists():
            hold()  # by another name it may be in use
        try:
            with portalocker.Lock(
                folders.lock("processes"),
                "a",
                timeout=CHILDREN_PATIENCE,
                flags=exclusive,
            ):
                pass
        except portalocker.LockException:
            raise UserError(
                f"processes of an earlier launch still use {folders.root}; end them"
            ) from None
        yield hold


@contextmanager
def held(folders: Folders) -> Iterator[None]:
    """Holds the folder itself, whatever it is called and is renamed to meanwhile.

    Where a filesystem does not lock folders, nothing is held.

    Raises:
        UserError: another launch has it, by a link or by an earlier name; or it is no
            folder.
    """
    try:
        folder = os.open(folders.root, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise unwritable(error, folders) from None
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _in_use(folders) from None
        except OSError:
            pass
        yield
    finally:
        os.close(folder)


def _in_use(folders: Folders) -> UserError:
    return UserError(
        f"{folders.root} is in use by another launch; stop that one first, "
        "or give this one another --name"
    )


def check_locks(error: portalocker.LockException, folder: Path) -> None:
    """Raises a UserError where the filesystem, and no other process, refused a lock."""
    if code := _missing_locks(error):
        raise UserError(
            f"{folder} is on a filesystem without file locks "
            f"({os.strerror(code)}); choose another output_root"
        ) from None


def _missing_locks(error: portalocker.LockException) -> int | None:
    """What the filesystem says where it has no locks; None: another process has it."""
    cause = error.__cause__ or error.__context__
    code = getattr(cause, "errno", None)
    return code if code in NO_LOCKS else None


@contextmanager
def present(folders: Folders) -> Iterator[None]:
    """Held by each child for as long as it lives; see `claimed`."""
    shared = portalocker.LOCK_SH | portalocker.LOCK_NB
    with portalocker.Lock(folders.lock("processes"), "a", timeout=5, flags=shared):
        yield


def in_use(folders: Folders) -> bool:
    """Whether a launch has the folder now."""
    return is_locked(folders.lock("run"))


def is_locked(path: Path) -> bool:
    """Whether another process holds the lock exclusively.

    The probe takes a shared lock for an instant, so exclusive lockers must retry
    (ASKING_PATIENCE). Where there are no locks nobody holds one.
    """
    shared = portalocker.LOCK_SH | portalocker.LOCK_NB
    try:
        with portalocker.Lock(path, "r", timeout=0, flags=shared):
            return False
    except FileNotFoundError:
        return False
    except portalocker.LockException as error:
        return not _missing_locks(error)


def unwritable(error: OSError, folders: Folders) -> UserError:
    if is_full(error):
        line = full_disk_line(error, folders.root.parent)
        return UserError(f"cannot write to {line}; free some space")
    error.filename = error.filename or str(folders.root)
    return UserError(f"cannot write to {file_error_line(error)}")
