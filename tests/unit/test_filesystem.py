"""Guards what fjd believes of a filesystem: a wrong `local` takes half jobs, a wrong lock gives up the living."""

from __future__ import annotations

import builtins
import io
from typing import Any

import pytest

from fjd import filesystem
from fjd.filesystem import Filesystem

MOUNTS = r"""
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
23 22 0:21 / /proc rw - proc proc rw
40 22 0:40 / /home rw,relatime shared:2 - nfs4 server:/home rw,vers=4.2
41 22 0:41 / /mnt/big\040disk rw - ceph mon:/ rw
42 22 0:42 / /mnt/ssh rw - fuse.sshfs me@host:/ rw
43 22 0:43 / /mnt/gluster rw - fuse.glusterfs vol rw
44 22 0:44 / /over rw - ext4 /dev/vdb rw
45 44 0:45 / /over rw - nfs4 server:/over rw
46 22 0:46 / /home/me/scratch rw - xfs /dev/vdc rw
47 22 0:47 / /strange rw - newfs thing rw
""".lstrip()


@pytest.fixture
def mounts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with the MOUNTS above."""
    real_open = builtins.open

    def fake_open(path: Any, *args: Any, **more: Any) -> Any:
        return io.StringIO(MOUNTS) if path == "/proc/self/mountinfo" else real_open(path, *args, **more)

    monkeypatch.setattr(builtins, "open", fake_open)


@pytest.mark.usefixtures("mounts")
@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/srv/queue", Filesystem("ext4", is_local=True, locks_are_proof=True)),
        ("/", Filesystem("ext4", is_local=True, locks_are_proof=True)),
        ("/home/me/queue", Filesystem("nfs4", is_local=False, locks_are_proof=False)),
        ("/homework", Filesystem("ext4", is_local=True, locks_are_proof=True)),
        ("/home", Filesystem("nfs4", is_local=False, locks_are_proof=False)),
        ("/home/me/scratch/x", Filesystem("xfs", is_local=True, locks_are_proof=True)),
        ("/mnt/big disk/x", Filesystem("ceph", is_local=False, locks_are_proof=True)),
        ("/mnt/ssh/x", Filesystem("fuse.sshfs", is_local=False, locks_are_proof=False)),
        ("/mnt/gluster/x", Filesystem("fuse.glusterfs", is_local=False, locks_are_proof=True)),
        ("/over/x", Filesystem("nfs4", is_local=False, locks_are_proof=False)),
        ("/strange", Filesystem("newfs", is_local=False, locks_are_proof=False)),
    ],
)
def test_filesystem_is_known_by_the_mount_that_holds(path: str, found: Filesystem) -> None:
    assert filesystem.of(path) == found


@pytest.mark.usefixtures("mounts")
def test_filesystem_is_what_the_setting_says_when_it_says_something() -> None:
    assert filesystem.of("/srv/queue", "network") == Filesystem("ext4", is_local=False, locks_are_proof=False)
    assert filesystem.of("/home/me", "local") == Filesystem("nfs4", is_local=True, locks_are_proof=True)


def test_filesystem_is_taken_for_a_network_when_the_kernel_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_proc(*args: Any, **more: Any) -> Any:
        raise FileNotFoundError

    monkeypatch.setattr(builtins, "open", no_proc)
    assert filesystem.of("/srv") == Filesystem("unknown", is_local=False, locks_are_proof=False)


def test_filesystem_follows_links_to_where_the_project_lies(tmp_path: Any) -> None:
    (tmp_path / "link").symlink_to("/proc/self")
    assert filesystem.of(str(tmp_path / "link")).kind == "proc"
