# SPDX-License-Identifier: MIT
"""RAUC bundles, made and verified by the real rauc."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bsp.base.errors import UserError, ValidationError
from bsp.catalog import load_board
from images.bundle import command as bundle_command
from images.bundle import rauc
from images.bundle.manifest import Bundle
from images.disk.image_root import read_access
from tests.support.fake_board import BOARD, make_bundle

needs_rauc = pytest.mark.skipif(
    os.geteuid() != 0 and not all(map(shutil.which, ("rauc", "mksquashfs"))),
    reason="rauc and squashfs-tools are not installed, and only root can install them",
)
pytestmark = [
    pytest.mark.skipif(shutil.which("dtc") is None, reason="dtc is not installed"),
    pytest.mark.usefixtures("own_state"),
]


@pytest.fixture(autouse=True)
def own_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NPU_BSP_CONFIG", str(tmp_path / "config"))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(
        tmp_path_factory.mktemp("rauc") / "bundle", userspace={"bin/runner": b"a program"}
    )


def small_root(path: Path) -> Path:
    """A root like Debian's, but for its size."""
    with tarfile.open(path, "w") as tar:
        for name in ("./usr", "./usr/bin", "./usr/lib", "./etc"):
            info = tarfile.TarInfo(name)
            info.type, info.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(info)
        link = tarfile.TarInfo("./lib")
        link.type, link.linkname = tarfile.SYMTYPE, "usr/lib"
        tar.addfile(link)
        tool = tarfile.TarInfo("./usr/bin/tool")
        tool.size, tool.mode = 4, 0o755
        tar.addfile(tool, io.BytesIO(b"tool"))
    return path


def request(tmp_path: Path, **changes: str) -> rauc.RaucRequest:
    return rauc.RaucRequest(load_board(BOARD), tmp_path / "out" / "update.raucb", **changes)


@needs_rauc
def test_made_signed_and_verified(tmp_path: Path, bundle: Bundle) -> None:
    asked = request(tmp_path)
    signing = rauc.prepare(asked).signing
    root = small_root(tmp_path / "root.tar")
    made = rauc.pack(asked, bundle, signing, read_access(None, None), root)
    assert made.document["verified"] == "by rauc info"
    assert made.document["development"]
    said = rauc.verify(made.path, signing.keyring)
    assert "npu-bsp-virtual" in said
    assert bundle.generation in said
    assert "verity" in said
    assert list(made.path.parent.iterdir()) == [made.path]  # nothing half-made beside it

    # What the slot gets.
    unsquashed = tmp_path / "content"
    subprocess.run(
        ["unsquashfs", "-q", "-n", "-d", str(unsquashed), str(made.path)],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    with tarfile.open(unsquashed / "rootfs.tar") as tar:
        names = tar.getnames()
        release = bundle.manifest.kernel_release
        for wanted in (
            "./usr/bin/tool", "./boot/Image", "./boot/initrd.img", "./boot/board.dtb",
            f"./usr/lib/modules/{release}/modules.dep", "./usr/lib/npu-bsp/userspace/bin/runner",
            "./etc/rauc/system.conf", "./etc/rauc/keyring.pem", "./etc/tmpfiles.d/npu-bsp.conf",
        ):  # fmt: skip
            assert wanted in names
        assert len(names) == len(set(names))
        # No identity of a device's own: all devices get the same slot.
        assert "./etc/ssh/ssh_host_ed25519_key" not in names
        machine = tar.extractfile("./etc/machine-id")
        assert machine
        assert machine.read() == b""
        conf = tar.extractfile("./etc/rauc/system.conf")
        assert conf
        assert b"compatible=npu-bsp-virtual" in conf.read()

    # Another keyring, and a changed byte.
    other_cert, other_key = tmp_path / "other" / "c.pem", tmp_path / "other" / "k.pem"
    rauc.development_certificate(other_cert, other_key)
    with pytest.raises(ValidationError, match="does not accept"):
        rauc.verify(made.path, other_cert)
    damaged = bytearray(made.path.read_bytes())
    damaged[-200] ^= 1  # in the signature, which ends the file
    made.path.write_bytes(damaged)
    with pytest.raises(ValidationError, match="does not accept"):
        rauc.verify(made.path, signing.keyring)

    # A key that is not the certificate's.
    wrong = request(tmp_path, cert=str(signing.cert), key=str(other_key))
    with pytest.raises(UserError, match="rauc could not make"):
        rauc.pack(wrong, bundle, rauc._signing(wrong, make=True), read_access(None, None), root)


@needs_rauc
def test_keys_are_tried_before_anything_takes_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_late(*_: object, **__: object) -> None:
        raise AssertionError("the bundle is made already")

    monkeypatch.setattr("images.bundle.assemble.bundle_for", too_late)
    names = {name: tmp_path / f"{name}.pem" for name in ("cert", "key", "other-cert", "other-key")}
    rauc.development_certificate(names["cert"], names["key"])
    rauc.development_certificate(names["other-cert"], names["other-key"])

    def make(output: Path, **flags: Any) -> None:
        rauc_flags = bundle_command.RaucFlags(**flags)
        bundle_command.make_rauc(
            BOARD, rauc_flags, bundle_command.BundleFlags(), output=str(output)
        )

    output = tmp_path / "out" / "update.raucb"
    cert, key = str(names["cert"]), str(names["key"])
    with pytest.raises(UserError, match="rauc could not make a bundle with"):
        make(output, cert=cert, key=str(names["other-key"]))
    with pytest.raises((UserError, ValidationError), match="rauc"):
        make(output, cert=cert, key=key, keyring=str(names["other-cert"]))
    assert list(output.parent.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        make(tmp_path / "file" / "update.raucb")
    with pytest.raises(AssertionError, match="made already"):
        make(output, cert=cert, key=key)


def test_programs_that_lack_are_named_before_anything_takes_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_late(*_: object, **__: object) -> None:
        raise AssertionError("the bundle is made already")

    monkeypatch.setattr("images.bundle.assemble.bundle_for", too_late)
    monkeypatch.setattr(rauc, "_has", lambda tool: tool not in ("rauc", "mksquashfs"))
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    rauc_flags, flags = bundle_command.RaucFlags(), bundle_command.BundleFlags()
    with pytest.raises(UserError, match="only root can install packages: rauc, squashfs-tools"):
        bundle_command.make_rauc(BOARD, rauc_flags, flags, output=str(tmp_path / "a.raucb"))
    planned = rauc.plan(request(tmp_path))
    assert planned.document["missing_packages"] == ["rauc", "squashfs-tools"]
    assert "rauc, squashfs-tools: root installs them first" in planned.text()


def test_flags() -> None:
    flags = bundle_command.RaucFlags
    with pytest.raises(UserError, match="expected npu-bsp or rauc"):
        bundle_command.check_format("mender", flags(), alone=False)
    with pytest.raises(UserError, match="for RAUC bundles"):
        bundle_command.check_format("npu-bsp", flags(dry_run=True), alone=False)
    with pytest.raises(UserError, match="do not apply to RAUC bundles"):
        bundle_command.check_format("rauc", flags(), alone=True)


def test_what_is_given_is_checked_before_anything_is_made(tmp_path: Path) -> None:
    planned = rauc.plan(request(tmp_path))
    assert planned.document["dry_run"]
    assert not planned.path.parent.exists()
    assert not (tmp_path / "config").exists()
    with pytest.raises(UserError, match="belong together"):
        rauc.plan(request(tmp_path, cert="x"))
    with pytest.raises(UserError, match="there is no file"):
        rauc.plan(request(tmp_path, cert="x", key="y"))
    other = tmp_path / "text"
    other.write_text("no key\n")
    with pytest.raises(UserError, match=r"--rauc-cert: .* has no certificate in PEM"):
        rauc.plan(request(tmp_path, cert=str(other), key=str(other)))
    with pytest.raises(UserError, match="expected public SSH keys"):
        rauc.plan(replace(request(tmp_path), ssh_key=str(other)))
    with pytest.raises(UserError, match="is a folder; expected the name of a file"):
        rauc.plan(replace(request(tmp_path), output=tmp_path))
    conf = tmp_path / "system.conf"
    for text, match in (
        ("[system]\n", "has no compatible"),
        ("[system]\ncompatible=a\n[slot.appfs.0]\n", "found slot.appfs.0"),
        ("[system]\ncompatible=a\n[slot.rootfs.0]\n[keyring]\npath=/x\n", "found /x"),
        ("nothing", "cannot read"),
    ):
        conf.write_text(text)
        with pytest.raises(UserError, match=match):
            rauc.plan(request(tmp_path, system=str(conf)))
    conf.write_text(rauc.default_system("my-product"))
    assert rauc.plan(request(tmp_path, system=str(conf))).document["compatible"] == "my-product"
