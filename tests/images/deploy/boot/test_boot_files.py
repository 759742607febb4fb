# SPDX-License-Identifier: MIT
"""Which file in /boot is the kernel that runs, and which RAM disk belongs to it; on folders, by content."""

from __future__ import annotations

import bz2
import gzip
import lzma
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from images.deploy.onboard import boot_files
from images.deploy.onboard.board import Board
from images.deploy.onboard.boot_files import EMPTY_RAM_DISK, Boot, modules_in, plain_image
from images.deploy.onboard.frames import RefusedError

RELEASE = "6.12.1-test"
OTHER = "6.12.1-test-other"


def banner(release: str = RELEASE, build: int = 7) -> bytes:
    return f"Linux version {release} (me@here) (gcc 14.2.0) #{build} SMP Mon Jan 6".encode()


def kernel(release: str = RELEASE, build: int = 7, more: bytes = b"") -> bytes:
    head = struct.pack("<IIQQQQQQ4sI", 0, 0, 0, 0, 0, 0, 0, 0, b"ARM\x64", 0)
    # Every kernel also has the format of /proc/version in it, which is not a banner.
    return head + b"%s version %s (me@here)\0" + banner(release, build) + b"\n\0" + more


KERNEL = kernel()
UIMAGE_HEAD = b"\x27\x05\x19\x56".ljust(64, b"\1")


def zboot(packed: bytes, how: bytes) -> bytes:
    head = b"MZ\0\0zimg" + struct.pack("<2I", 64, len(packed)) + bytes(8) + how
    return head.ljust(64, b"\0") + packed + b"signature"


def archive(*names: str) -> bytes:
    """A cpio archive of empty files."""
    out = b""
    for name in (*names, "TRAILER!!!"):
        size = f"{len(name) + 1:08X}".encode()
        entry = b"070701" + b"0" * 88 + size + b"0" * 8 + name.encode() + b"\0"
        out += entry + bytes(-len(entry) % 4)
    return out


MODULES = archive("init", f"usr/lib/modules/{RELEASE}/modules.dep")
OTHERS_MODULES = archive("init", f"lib/modules/{OTHER}/modules.dep")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in (
        "boot/firmware/npu-bsp/files",
        "flash",
        "proc/sys/kernel",
        "proc/device-tree/chosen",
    ):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "proc/sys/kernel/osrelease").write_text(f"{RELEASE}\n")
    (tmp_path / "proc/version").write_bytes(banner() + b"\n")
    return tmp_path


def boot(root: Path, *, anew: bool = True) -> Boot:
    if anew:
        boot_files._found.clear()
    return Boot(Board(str(root), "/boot/firmware"), ["/boot/firmware", "/flash"])


def put(root: Path, name: str, content: bytes) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(content)


def kernel_of(root: Path) -> str:
    looked = boot(root)
    path, content = looked.kernel()
    assert content == KERNEL
    return looked.shown(path)


def ram_disk_of(root: Path) -> str:
    looked = boot(root)
    path, content = looked.ram_disk()
    assert content
    return looked.shown(path) if path else "none"


# --- kernels ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (f"boot/vmlinuz-{RELEASE}", KERNEL),
        ("boot/Image", KERNEL),
        ("boot/Image.gz", gzip.compress(KERNEL)),
        ("boot/firmware/vmlinuz", gzip.compress(KERNEL)),
        ("flash/KERNEL", KERNEL),
        ("boot/kernel8.img", lzma.compress(KERNEL)),
        ("boot/Image.bz2", bz2.compress(KERNEL)),
        ("boot/uImage", UIMAGE_HEAD + gzip.compress(KERNEL)),
        ("boot/0123456789abcdef/6.12.1-test/linux", KERNEL),
        ("boot/nixos/abc-linux-6.12-Image", KERNEL),
        ("boot/vmlinuz", zboot(gzip.compress(KERNEL), b"gzip\0")),
        ("boot/vmlinuz", zboot(lzma.compress(KERNEL), b"xzkern\0")),
    ],
)
def test_a_kernel_is_found_whatever_it_is_called(root: Path, name: str, content: bytes) -> None:
    put(root, name, content)
    put(root, f"boot/vmlinuz-{OTHER}", kernel(OTHER))
    put(root, "boot/vmlinuz.old", kernel(build=6))
    put(root, "boot/firmware/board.dtb", b"\xd0\x0d\xfe\xed" + bytes(100))
    put(root, "boot/System.map.gz", gzip.compress(banner() + b"\n"))
    assert kernel_of(root) == f"/{name}"


@pytest.mark.parametrize("program", ["zstd", "lz4", "lzop"])
def test_what_python_cannot_unpack_a_program_does(
    root: Path, program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    packed = subprocess.run([program, "-c"], input=KERNEL, capture_output=True, check=True).stdout
    put(root, "boot/Image", packed)
    assert kernel_of(root) == "/boot/Image"
    put(root, "boot/Image", zboot(packed, program.encode()))  # a signature follows what is packed
    assert kernel_of(root) == "/boot/Image"
    monkeypatch.setenv("PATH", str(root))
    with pytest.raises(
        RefusedError, match=f"/boot/Image is packed with {program}, and this board has"
    ):
        boot(root).kernel()


def test_the_whole_banner_counts(root: Path) -> None:
    """The same release built again, by somebody else, or a release that begins alike: another kernel."""
    put(root, f"boot/vmlinuz-{RELEASE}", kernel(build=70))
    put(root, "boot/Image", kernel(OTHER))
    put(root, "boot/Image.gz", gzip.compress(b"no kernel"))
    put(root, "boot/fitImage", b"\xd0\x0d\xfe\xed" + bytes(100))
    fit = b"\xd0\x0d\xfe\xed" + bytes(52) + b"\0\0\0\1" + bytes(4) + b"\0\0\0\1images\0\0"
    put(root, "boot/kernel.img", fit)  # as OpenWrt calls it
    put(root, "boot/board.dtb", b"\xd0\x0d\xfe\xed" + bytes(52) + b"\0\0\0\1" + bytes(4))
    stub = b"MZ".ljust(0x200, b"\0") + b".sdmagic.linux\0\0" + KERNEL
    put(root, "boot/EFI/Linux/arch-linux.efi", stub)
    put(root, "boot/boot.img", b"ANDROID!" + bytes(100))
    put(root, "boot/vmlinux", b"\x7fELF" + bytes(100))
    with pytest.raises(RefusedError) as error:
        boot(root).kernel()
    said = str(error.value)
    assert f"is the kernel that runs ({banner().decode()})" in said
    assert f"/boot/vmlinuz-{RELEASE} is {banner(build=70).decode()}" in said
    assert f"/boot/Image is Linux version {OTHER} " in said
    assert "/boot/Image.gz is not an arm64 Image" in said
    assert "/boot/fitImage is a FIT image" in said
    assert "/boot/kernel.img is a FIT image" in said
    assert "/boot/EFI/Linux/arch-linux.efi is an EFI program with a kernel in it (UKI)" in said
    assert "board.dtb" not in said
    assert "/boot/boot.img is an Android boot image" in said
    assert "vmlinux " not in said


def test_the_same_kernel_under_several_names_is_one(root: Path) -> None:
    put(root, f"boot/vmlinuz-{RELEASE}", KERNEL)
    (root / "boot/vmlinuz").symlink_to(f"vmlinuz-{RELEASE}")
    put(root, "boot/firmware/Image.gz", gzip.compress(KERNEL))
    put(root, "boot/firmware/npu-bsp/files/abc", kernel(more=b"our own copy"))
    assert kernel_of(root) == f"/boot/vmlinuz-{RELEASE}"


def test_kernels_that_differ_below_one_banner_are_refused(root: Path) -> None:
    put(root, f"boot/vmlinuz-{RELEASE}", KERNEL)
    put(root, "flash/KERNEL", kernel(more=b"another configuration"))
    with pytest.raises(RefusedError, match=rf"/boot/vmlinuz-{RELEASE} and /flash/KERNEL both have"):
        boot(root).kernel()


def test_kernels_are_unpacked_as_booti_wants_them() -> None:
    packed = gzip.compress(KERNEL)
    for content in (
        KERNEL,
        packed,
        packed + b"padding",
        zboot(packed, b"gzip\0"),
        UIMAGE_HEAD + packed,
    ):
        assert plain_image(content) == KERNEL
    with pytest.raises(RefusedError, match="not an arm64 Image"):
        plain_image(b"\x7fELF" + bytes(100))
    for broken in (packed[:3] + b"x" * 50, lzma.compress(KERNEL)[:8] + b"x" * 50):
        with pytest.raises(RefusedError, match="is broken"):
            plain_image(broken)


# --- RAM disks ----------------------------------------------------------------------------------------


def chosen(root: Path, size_bytes: int, width: int = 8) -> None:
    """What U-Boot says of the RAM disk that it hands over."""
    for which, at in (("start", 0x48000000), ("end", 0x48000000 + size_bytes)):
        put(root, f"proc/device-tree/chosen/linux,initrd-{which}", at.to_bytes(width, "big"))


@pytest.mark.parametrize(
    "name",
    [
        f"boot/initrd.img-{RELEASE}",
        f"boot/initramfs-{RELEASE}.img",
        f"boot/initrd-{RELEASE}",
        f"boot/initramfs-{RELEASE}.cpio.gz",
        f"boot/uInitrd-{RELEASE}",
        f"boot/0123456789abcdef/{RELEASE}/initrd",
        "boot/initrd.img",
        "boot/firmware/initramfs.gz",
        "boot/initramfs-linux.img",
        "flash/INITRD",
    ],
)
def test_a_ram_disk_is_found_whatever_it_is_called(root: Path, name: str) -> None:
    put(root, name, gzip.compress(MODULES))
    put(root, f"boot/initramfs-{OTHER}.img", gzip.compress(OTHERS_MODULES))
    put(root, f"boot/initramfs-{RELEASE}kdump.img", MODULES + b"kdump")
    put(root, "boot/initramfs-0-rescue-0123456789abcdef.img", MODULES + b"rescue")
    put(root, f"boot/initrd.img-{RELEASE}.old", MODULES + b"old")
    put(root, "boot/initrd-other", gzip.compress(OTHERS_MODULES))
    assert ram_disk_of(root) == f"/{name}"


def test_the_size_that_was_booted_tells_them_apart(root: Path) -> None:
    put(root, "boot/initrd-a", b"no modules in here")
    put(root, "boot/initrd-b", b"none here either")
    with pytest.raises(RefusedError, match=r"several RAM disks .*/boot/initrd-a, /boot/initrd-b"):
        boot(root).ram_disk()
    for width in (4, 8):
        chosen(root, len(b"none here either"), width)
        assert ram_disk_of(root) == "/boot/initrd-b"
    # U-Boot hands a uInitrd over without its header.
    put(root, "boot/initrd-a", UIMAGE_HEAD + b"x" * 40)
    chosen(root, 40)
    assert boot(root).ram_disk()[1] == b"x" * 40
    # Neither size nor modules say that it is one of these.
    chosen(root, 41)
    with pytest.raises(
        RefusedError, match=r"none of the RAM disks .* is of 6\.12\.1-test: /boot/ini"
    ):
        boot(root).ram_disk()
    # Made again since the last boot: its name says whose it is.
    put(root, f"boot/initrd.img-{RELEASE}", MODULES + b"newer")
    assert ram_disk_of(root) == f"/boot/initrd.img-{RELEASE}"


def test_two_of_one_release(root: Path) -> None:
    put(root, f"boot/initrd.img-{RELEASE}", MODULES)
    put(root, f"boot/firmware/initrd.img-{RELEASE}", MODULES)
    assert ram_disk_of(root) == f"/boot/initrd.img-{RELEASE}"
    put(root, f"boot/initramfs-{RELEASE}.img", MODULES + b"dracut's")
    with pytest.raises(RefusedError, match=r"several RAM disks could be the one of 6\.12\.1-test"):
        boot(root).ram_disk()
    chosen(root, len(MODULES) + len(b"dracut's"))
    assert ram_disk_of(root) == f"/boot/initramfs-{RELEASE}.img"


def test_a_board_without_a_ram_disk_gets_an_empty_one(root: Path) -> None:
    assert ram_disk_of(root) == "none"
    assert boot(root).ram_disk()[1] == EMPTY_RAM_DISK
    if shutil.which("cpio"):
        done = subprocess.run(["cpio", "-t"], input=EMPTY_RAM_DISK, capture_output=True, check=True)
        assert done.stdout == b""
    # One was booted, and is not here; or UEFI may have brought one, which nothing tells.
    chosen(root, 5)
    with pytest.raises(RefusedError, match="there is none"):
        boot(root).ram_disk()
    for which in ("start", "end"):
        (root / f"proc/device-tree/chosen/linux,initrd-{which}").unlink()
    (root / "sys/firmware/efi").mkdir(parents=True)
    with pytest.raises(RefusedError, match="there is none"):
        boot(root).ram_disk()


def test_modules_in_a_ram_disk() -> None:
    assert modules_in(gzip.compress(MODULES)) == {RELEASE}
    # As Debian's since 13, and as with microcode: an archive that is not packed comes first.
    assert modules_in(archive("early") + bytes(400) + lzma.compress(MODULES)) == {RELEASE}
    assert modules_in(MODULES + OTHERS_MODULES) == {RELEASE, OTHER}
    assert modules_in(b"\x1f\x8bbroken") == modules_in(b"") == modules_in(b"anything") == set()


def test_a_file_larger_than_any_kernel_is_left_alone(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boot_files, "_MOST_BYTES", 200)
    put(root, "boot/Image", KERNEL)
    put(root, "boot/image.tar.gz", gzip.compress(bytes(range(256)) * 2) + bytes(300))
    assert kernel_of(root) == "/boot/Image"


def test_what_was_found_is_not_looked_for_again_until_a_file_changes(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(root, "boot/vmlinuz", gzip.compress(KERNEL))
    put(root, "boot/initrd.img", gzip.compress(MODULES))
    unpacked: list[str] = []
    plain = boot_files.plain_kernel

    def counted(path: str) -> bytes:
        unpacked.append(path)
        return plain(path)

    monkeypatch.setattr(boot_files, "plain_kernel", counted)
    first = boot(root)
    answers = first.kernel(), first.ram_disk()
    assert (boot(root, anew=False).kernel(), boot(root, anew=False).ram_disk()) == answers
    assert len(unpacked) == 1
    changed = kernel(more=b"rebuilt")
    put(root, "boot/vmlinuz", gzip.compress(changed))
    assert boot(root, anew=False).kernel()[1] == changed
    assert len(unpacked) == 2
