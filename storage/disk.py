"""The disk under a run: it may be full, or it may belong to another host."""

import errno
import os
import re
import shutil
from pathlib import Path

from ..util import NO_SPACE

MOUNTS = Path("/proc/self/mountinfo")
NETWORK_FILESYSTEM = re.compile(
    "9p|afs|beegfs|ceph|cifs|glusterfs|gpfs|lustre|ncpfs|nfs4?|orangefs|panfs|pvfs2|"
    "smb3|smbfs|wekafs|"
    r"fuse\.(ceph|cvmfs2|gcsfuse|glusterfs|juicefs|rclone|s3fs|sshfs)"
)


def is_full(error: OSError) -> bool:
    """Whether an error says that no space, or none of the user's quota, is left."""
    return error.errno in NO_SPACE


def full_disk_line(error: OSError, folder: Path) -> str:
    """One line of what could not be written and how much space there is.

    Args:
        error: one for which `is_full` holds.
        folder: named, and measured, where the error names no file.
    """
    path = Path(error.filename or folder)
    places = (path, *path.absolute().parents)
    free = shutil.disk_usage(next(place for place in places if place.exists())).free
    return f"{path}: {error.strerror} ({free:,} bytes are free)"


def file_error_line(error: OSError) -> str:
    """One line of why a file cannot be written or read.

    Args:
        error: names the file.
    """
    line = f"{error.filename}: {error.strerror}"
    if error.errno == errno.EFBIG:
        line += "; `ulimit -f`, or the filesystem, limits the size of a file"
    return line


def network_filesystem(path: Path, mounts: Path = MOUNTS) -> str | None:
    """The type of the filesystem that a path lies on, where other hosts share it.

    Args:
        path: need not exist yet.
        mounts: the kernel's list of mounted filesystems; see proc(5).
    """
    path = path.resolve()
    nearest, found = -1, None
    # Names may be of any bytes.
    for line in os.fsdecode(mounts.read_bytes()).split("\n")[:-1]:
        place, _, kind = line.partition(" - ")
        # The kernel writes a space as \\040.
        point = re.sub(
            r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), place.split()[4]
        )
        # Of two on the same place, the later one hides the earlier.
        if path.is_relative_to(point) and len(point) >= nearest:
            nearest, found = len(point), kind.split()[0]
    return found if found and NETWORK_FILESYSTEM.fullmatch(found) else None
