"""Mounts: whether a directory lies on a file system that other machines share.

There LMDB's memory map and locks end at the edge of this machine: two machines that write one log
destroy it, and even on one machine some of these file systems keep maps and files apart. So opening
a log there warns. Read from /proc/self/mountinfo; where there is none, nothing is known or said::

    36 35 0:48 / /srv/my\\040data rw,relatime shared:1 - nfs4 server:/export rw,vers=4.2
                 ^ mount point                           ^ type
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import NamedTuple

from eventlog.errors import NetworkFileSystemWarning

MOUNTINFO = Path("/proc/self/mountinfo")

NETWORK = frozenset(
    {
        # file servers
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "afs", "coda", "fuse.sshfs"),
        # cluster and object stores
        *("ceph", "fuse.ceph", "fuse.ceph-fuse", "glusterfs", "fuse.glusterfs", "lustre"),
        *("beegfs", "gpfs", "pvfs2", "orangefs", "fuse.moosefs", "fuse.juicefs", "fuse.s3fs"),
        # one block device, several machines: coherent files, but mutexes in a map are not
        *("ocfs2", "gfs2"),
        # what a virtual machine's host lends to it; Windows drives under WSL, too
        *("9p", "vboxsf", "fuse.vmhgfs-fuse"),
    }
)
"""Types that warn. virtiofs does not: it is the root of many a small virtual machine, whose kernel
alone uses it."""

_OCTAL = re.compile(r"\\([0-7]{3})")
_warned: set[Path] = set()


class Mount(NamedTuple):
    """Where a file system is mounted, and its type."""

    point: str
    type: str


def mount_of(path: str, mountinfo: str) -> Mount | None:
    """The mount that an absolute, resolved path lies on, out of the text of mountinfo.

    The longest mount point that leads to the path; of equal ones the last, which covers the others.
    """
    found: Mount | None = None
    for line in mountinfo.splitlines():
        before, separator, after = line.partition(" - ")
        fields = before.split()
        if not separator or len(fields) < 6 or not after.strip():
            continue
        point = _OCTAL.sub(lambda octal: chr(int(octal[1], 8)), fields[4])
        if not (path + "/").startswith(point.rstrip("/") + "/"):
            continue
        if found is None or len(point) >= len(found.point):
            found = Mount(point=point, type=after.split()[0])
    return found


def warn_of_network(directory: Path) -> None:
    """Warn, once a process and path, where the directory lies on a network file system.

    Warns NetworkFileSystemWarning.
    """
    path = directory.resolve()
    if path in _warned:
        return
    try:
        # Bytes that are no UTF-8 in a mount point must not hide the others.
        mount = mount_of(str(path), MOUNTINFO.read_text("utf-8", "surrogateescape"))
    except OSError:
        return
    if mount is None or mount.type not in NETWORK:
        return
    _warned.add(path)
    warnings.warn(
        f"the log {directory} lies on a network file system ({mount.type} at {mount.point}): used "
        "from more than one machine it is destroyed; keep it on a local disk",
        NetworkFileSystemWarning,
        stacklevel=2,
    )
