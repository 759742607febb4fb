# SPDX-License-Identifier: MIT
"""A configured Debian of the board's architecture, built from packages on the host, as one tar file.

mmdebstrap isolates the build (by root, or by a user namespace), ``install.sh`` installs the packages, and
qemu-user runs their scripts. The result has neither keys nor a host name: each disk gets its own.
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

# What a board needs to boot, for SSH, to write its disk, and to run Python. apt is left out (only apt
# itself counts it as essential): boards get their software in generations.
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
    """Return the root file system of a Debian suite, cached; the first use makes it in about two minutes.

    Args:
        more: packages besides ``PACKAGES``, with what they depend on.
        settings: files to write before the packages are configured: path below the root -> content.

    Raises:
        UserError: the suite has no such package; something is missing that only root can set up.
        InfrastructureError: a package cannot be fetched or configured.
    """
    folder = require_possible()
    archive = Archive(distribution, ARCHITECTURE)
    for package in more:
        archive.version(package)  # apt's own message for an unknown name fills a page
    added = sorted(set(more))
    debs = archive.download([*PACKAGES, *added], with_dependencies=True)
    digest = hashlib.sha256((HERE / "install.sh").read_bytes())
    for deb in debs:
        digest.update(deb.name.encode() + b"\n")
    settings = settings or {}
    for path, content in sorted(settings.items()):
        digest.update(path.encode() + b"\0" + content)
    key = digest.hexdigest()[:16]
    prefix = f"{distribution}-{ARCHITECTURE}"
    if added:
        chosen = hashlib.sha256("\n".join(added).encode()).hexdigest()[:8]
        prefix = f"chosen-{chosen}-{prefix}"

    def make(target: Path) -> None:
        require_rights()
        with step(f"Installing Debian {distribution} for the board") as progress:
            progress.note(counted(len(debs), "package"))
            _install(debs, distribution, target, progress, settings)
        # Older roots are outdated, but the newest of them may be in use right now.
        tars = folder.glob(f"{prefix}-*.tar")
        for old in sorted(tars, key=lambda path: path.stat().st_mtime)[:-1]:
            remove(old)
            remove(old.with_name(f".{old.name}.base"))  # of images/disk/base.py

    return Rootfs(make_once(folder / f"{prefix}-{key}.tar", make), key)


def require_possible() -> Path:
    """Check that a root exists or can be made here, before a command starts with other work.

    Returns:
        The folder of the cache that holds roots.

    Raises:
        UserError: none exists, and something is missing that only root can set up.
    """
    folder = cache_dir() / "rootfs"
    folder.mkdir(parents=True, exist_ok=True)
    if not any(folder.glob("*.tar")):
        require_rights()
    return folder


def _install(
    debs: list[Path], distribution: str, target: Path, progress: Step, settings: Mapping[str, bytes]
) -> None:
    # Readable by everybody: in a user namespace mmdebstrap runs as another user.
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
        copy_settings = f'; cp -R {shared}/settings/. "$1"' if settings else ""
        with target.open("wb") as tar, watched(workspace, len(debs), progress.note):
            run(
                [
                    *isolation, "mmdebstrap", f"--mode={mode}", f"--architectures={ARCHITECTURE}",
                    "--variant=custom", "--format=tar", "--quiet",
                    "--skip=update,check/qemu,check/signed-by,output/dev",
                    f'--setup-hook=mkdir -p "$1/proc" "$1/sys"; {_merge_usr(distribution)}{copy_settings}',
                    f'--customize-hook=sh {shared}/install.sh "$1" {shared}',
                    distribution, "-", f"deb {debian_mirror()} {distribution} main",
                ],
                stdout=tar,
                # Folders of packages that still name /bin go through the links (see _merge_usr).
                env={
                    "TMPDIR": str(workspace),
                    "TAR_OPTIONS": "--keep-directory-symlink",
                    # QEMU's default signs pointers, as trixie's programs do: five times as slow.
                    "QEMU_CPU": "cortex-a53",
                },
                timeout_s=3600,
                hint="NPU_BSP_CACHE must have 1 GB free"
                if mode == "root"
                else "allow user namespaces (on Ubuntu: sysctl "
                "kernel.apparmor_restrict_unprivileged_userns); or run it as root",
            )  # fmt: skip


def _merge_usr(distribution: str) -> str:
    """Return a shell command that makes /bin and its like links into /usr.

    From trixie on base-files does so; in bookworm it was usrmerge's task.
    """
    if distribution != "bookworm":
        return ":"
    return (
        'mkdir -p "$1/usr/bin" "$1/usr/sbin" "$1/usr/lib"; '
        'for name in bin sbin lib; do ln -s "usr/$name" "$1/$name"; done'
    )
