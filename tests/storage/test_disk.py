"""Full disks and network filesystems."""

import errno
import shutil
from pathlib import Path

import pytest

from steve.storage import disk
from steve.storage.disk import full_disk_line, is_full, network_filesystem

MOUNTS = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
23 22 0:5 / /proc rw - proc proc rw
40 22 0:40 / /home rw,relatime shared:20 - nfs4 server:/home rw,vers=4.2
41 40 8:2 / /home/local rw - xfs /dev/sdb1 rw
42 22 0:41 / /with\\040space rw - lustre server:/lustre rw
43 22 0:42 / /twice rw - ext4 /dev/sdc1 rw
44 22 0:43 / /twice rw - cifs //server/share rw
45 22 0:44 / /ssh rw - fuse.sshfs me@server: rw
46 22 0:45 / /key rw - fuse.encfs encfs rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/data/run", None),
        ("/", None),
        ("/home", "nfs4"),
        ("/home/me/output", "nfs4"),
        ("/homes/me", None),
        ("/home/local/output", None),
        ("/with space/run", "lustre"),
        ("/twice/run", "cifs"),
        ("/ssh/run", "fuse.sshfs"),
        ("/key/run", None),
    ],
)
def test_a_network_filesystem_is_known_by_its_type(tmp_path, path, kind):
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS)
    assert network_filesystem(disk.Path(path), mounts) == kind


def test_a_mount_whose_name_is_no_utf8_stops_nobody(tmp_path):
    mounts = tmp_path / "mountinfo"
    mounts.write_bytes(
        b"1 0 8:1 / / rw - ext4 /dev/sda1 rw\n"
        b"2 1 0:9 / /tmp/usb\xff\x85 rw - tmpfs none rw\n"
        b"3 1 0:8 / /net rw - nfs4 host:/x rw\n"
    )
    assert network_filesystem(Path("/net/run"), mounts) == "nfs4"
    assert network_filesystem(Path("/tmp/run"), mounts) is None


def test_this_systems_own_list_can_be_read(tmp_path):
    assert network_filesystem(disk.Path("/proc/self")) is None
    assert network_filesystem(tmp_path / "not" / "there") is None


@pytest.mark.parametrize(
    ("code", "full"),
    [(errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EIO, False)],
)
def test_what_counts_as_full(code, full):
    assert is_full(OSError(code, "error")) == full


def test_the_line_names_the_file_and_the_free_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 8, 4321)
    )
    error = OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "a" / "b"))
    line = full_disk_line(error, tmp_path)
    assert line == f"{tmp_path}/a/b: No space left on device (4,321 bytes are free)"


def test_where_no_file_is_known_the_line_names_the_folder(tmp_path):
    line = full_disk_line(OSError(errno.EDQUOT, "Disk quota exceeded"), tmp_path)
    assert line.startswith(f"{tmp_path}: Disk quota exceeded (")
