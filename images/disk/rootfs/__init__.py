# SPDX-License-Identifier: MIT
"""A configured Debian of the board's architecture, made on the host out of packages, as one tar file.

mmdebstrap provides the isolation (root, or a user namespace), ``install.sh`` does the installing, qemu-user
runs the packages' own scripts. The result holds no key and no name: those are made for each disk.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bsp.base.cache import cache_dir, make_once, remove
from bsp.base.packages.apt import Archive, debian_mirror
from bsp.base.process import run
from bsp.base.progress import Step, step
from bsp.base.words import counted

from .rights import require_rights
from .watch import watched

HERE = Path(__file__).parent

ARCHITECTURE = "arm64"

# What a board needs to boot, to be reached, to be written to, and to run Python. apt is left out (it
# counts as essential only to itself): boards get their software in generations.
PACKAGES = (
    "?and(?essential,?not(?exact-name(apt)))",
    "dbus", "dosfstools", "e2fsprogs", "iproute2", "kmod", "openssh-server", "procps", "python3",
    "systemd-sysv", "udev", "zstd",
)  # fmt: skip


@dataclass(frozen=True)
class Rootfs:
    """A root file system.

    Attributes:
        tar: its files, with owners and permissions.
        key: changes when its content may change.
    """

    tar: Path
    key: str


def root_tar(
    distribution: str = "trixie",
    more: Sequence[str] = (),
    *,
    settings: Mapping[str, bytes] | None = None,
) -> Rootfs:
    """Return the root file system of a Debian suite, made on first use (about two minutes), cached.

    Args:
        more: packages besides ``PACKAGES``, with what they depend on.
        settings: files that are there when the packages are configured: path below the root to content.

    Raises:
        UserError: the suite has no such package; something is missing that only root can set up.
        InfrastructureError: a package cannot be fetched or configured.
    """
    folder = require_possible()
    archive = Archive(distribution, ARCHITECTURE)
    for package in more:
        archive.version(package)  # apt's own words for a name that it does not know fill a page
    wanted = sorted(set(more))
    debs = archive.download([*PACKAGES, *wanted], with_dependencies=True)
    digest = hashlib.sha256((HERE / "install.sh").read_bytes())
    for deb in debs:
        digest.update(deb.name.encode() + b"\n")
    settings = settings or {}
    for path, content in sorted(settings.items()):
        digest.update(path.encode() + b"\0" + content)
    key = digest.hexdigest()[:16]
    prefix = f"{distribution}-{ARCHITECTURE}"
    if wanted:
        chosen = hashlib.sha256("\n".join(wanted).encode()).hexdigest()[:8]
        prefix = f"chosen-{chosen}-{prefix}"

    def make(target: Path) -> None:
        require_rights()
        with step(f"Installing Debian {distribution} for the board") as now:
            now.note(counted(len(debs), "package"))
            _install(debs, distribution, target, now, settings)
        # Debian has moved on: an older one is of no use, the newest may be in use right now.
        found = folder.glob(f"{prefix}-*.tar")
        for old in sorted(found, key=lambda path: path.stat().st_mtime)[:-1]:
            remove(old)
            remove(old.with_name(f".{old.name}.base"))  # of images/disk/base.py

    return Rootfs(make_once(folder / f"{prefix}-{key}.tar", make), key)


def require_possible() -> Path:
    """See to it that a root can be made here, or was made; for those who begin with something else.

    Returns:
        The cache's folder of roots.

    Raises:
        UserError: none was made yet, and something is missing that only root can set up.
    """
    folder = cache_dir() / "rootfs"
    folder.mkdir(parents=True, exist_ok=True)
    if not any(folder.glob("*.tar")):
        require_rights()
    return folder


def _install(
    debs: list[Path], distribution: str, target: Path, now: Step, settings: Mapping[str, bytes]
) -> None:
    # A folder that everybody may read: in a user namespace mmdebstrap is another user.
    with tempfile.TemporaryDirectory(prefix="npu-bsp-rootfs-", ignore_cleanup_errors=True) as name:
        shared = Path(name)
        shared.chmod(0o755)
        workspace = shared / "workspace"
        workspace.mkdir()
        workspace.chmod(0o1777)
        shutil.copyfile(HERE / "install.sh", shared / "install.sh")
        for deb in debs:
            shutil.copyfile(deb, shared / deb.name)
            (shared / deb.name).chmod(0o644)
        for path, content in settings.items():
            file = shared / "settings" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        mode = "root" if os.geteuid() == 0 else "unshare"
        # mmdebstrap's mounts in a namespace: they are gone when it ends, however it ends.
        isolation = ["unshare", "--mount"] if mode == "root" else []
        given = f'; cp -R {shared}/settings/. "$1"' if settings else ""
        with target.open("wb") as tar, watched(workspace, len(debs), now.note):
            run(
                [
                    *isolation, "mmdebstrap", f"--mode={mode}", f"--architectures={ARCHITECTURE}",
                    "--variant=custom", "--format=tar", "--quiet",
                    "--skip=update,check/qemu,check/signed-by,output/dev",
                    f'--setup-hook=mkdir -p "$1/proc" "$1/sys"; {_merge_usr(distribution)}{given}',
                    f'--customize-hook=sh {shared}/install.sh "$1" {shared}',
                    distribution, "-", f"deb {debian_mirror()} {distribution} main",
                ],
                stdout=tar,
                # Folders of packages that still name /bin go through the links (see _merge_usr).
                env={"TMPDIR": str(workspace), "TAR_OPTIONS": "--keep-directory-symlink"},
                timeout_s=3600,
                hint="NPU_BSP_CACHE must have 1 GB free"
                if mode == "root"
                else "user namespaces have to be allowed (on Ubuntu: sysctl "
                "kernel.apparmor_restrict_unprivileged_userns); or run it as root",
            )  # fmt: skip


def _merge_usr(distribution: str) -> str:
    """Shell that makes /bin and its like links into /usr, where no package of the suite does.

    From trixie on base-files has them; before, that was usrmerge's doing.
    """
    if distribution != "bookworm":
        return ":"
    return (
        'mkdir -p "$1/usr/bin" "$1/usr/sbin" "$1/usr/lib"; '
        'for name in bin sbin lib; do ln -s "usr/$name" "$1/$name"; done'
    )
