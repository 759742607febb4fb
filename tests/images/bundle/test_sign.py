# SPDX-License-Identifier: MIT
"""Signatures: host and board refuse what was tampered with, by whom is not trusted, before anything."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from bsp.base.errors import UserError
from bsp.base.process import run
from bsp.remote import ssh
from images.bundle import manifest as bundles
from images.bundle import sbom, sign
from images.bundle.manifest import Bundle
from images.deploy import plan
from images.deploy.command import ask_downgrade
from images.deploy.deploy import deploy
from images.deploy.transfer import agent as transfer
from tests.support.fake_board import FakeBoard, make_bundle

pytestmark = pytest.mark.skipif(
    shutil.which("ssh-keygen") is None or shutil.which("dtc") is None,
    reason="ssh-keygen or dtc is not installed",
)


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NPU_BSP_CONFIG", str(tmp_path / "config"))
    monkeypatch.setenv("NPU_BSP_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("NPU_BSP_INVENTORY", str(tmp_path / "inventory.toml"))
    monkeypatch.setenv("NPU_BSP_SSH_CONFIG", str(tmp_path / "ssh_config"))
    monkeypatch.setattr(ssh, "_RETRY_EVERY_S", 0.05)
    return tmp_path / "config"


@pytest.fixture
def signed(tmp_path: Path) -> Bundle:
    bundle = make_bundle(tmp_path / "one", kernel=b"new kernel")
    sign.sign(bundle)
    return bundle


def change(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    path.write_bytes(content)


def test_a_signed_bundle_verifies_and_is_signed_once(signed: Bundle) -> None:
    first = (signed.path / sign.SIGNATURE).stat().st_mtime_ns
    assert sign.verify(signed.path).generation == signed.generation
    sign.sign(signed)
    assert (signed.path / sign.SIGNATURE).stat().st_mtime_ns == first
    assert sign.config_dir().stat().st_mode & 0o077 == 0
    assert sign.signing_key().stat().st_mode & 0o077 == 0


def test_keys_that_cannot_sign(signed: Bundle, tmp_path: Path) -> None:
    key = tmp_path / "mine"
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", key])
    text = tmp_path / "text"
    text.write_text("no key\n")
    before = (signed.path / sign.SIGNATURE).read_bytes()
    for file, why in (
        (key.with_suffix(".pub"), "is a public key; a bundle is signed with the private one"),
        (key, "cannot sign: "),
        (text, "cannot sign: "),
        (tmp_path, "there is no signing key"),
        (Path(), "there is no signing key"),
    ):
        with pytest.raises(UserError, match=why) as caught:
            sign.sign(signed, file)
        assert caught.value.hint
    assert (signed.path / sign.SIGNATURE).read_bytes() == before


@pytest.mark.parametrize(
    "name", ["boot/kernel", "boot/board.dtb", "modules/6.12.1-test/kernel/drivers/m7.ko"]
)
def test_a_byte_that_was_changed(signed: Bundle, name: str) -> None:
    change(signed.path / name)
    with pytest.raises(UserError, match=f"not as the manifest says: {name}"):
        sign.verify(signed.path)


def test_more_or_less_than_was_signed(signed: Bundle) -> None:
    (signed.path / "boot/extra").write_bytes(b"")
    with pytest.raises(UserError, match="does not list: boot/extra"):
        sign.verify(signed.path)
    (signed.path / "boot/extra").unlink()
    link = signed.path / "modules/6.12.1-test/kernel/link.ko"
    link.unlink()
    link.symlink_to("/etc/passwd")
    with pytest.raises(UserError, match=r"link\.ko"):
        sign.verify(signed.path)
    (signed.path / "boot/initrd").unlink()
    with pytest.raises(UserError, match="boot/initrd"):
        sign.verify(signed.path)


def test_unsigned_unknown_and_forged(signed: Bundle, tmp_path: Path, config: Path) -> None:
    signature = signed.path / sign.SIGNATURE
    good = signature.read_bytes()
    signature.unlink()
    with pytest.raises(UserError, match="is not signed") as error:
        sign.check_signature(signed)
    assert "--sign" in error.value.hint
    other = make_bundle(tmp_path / "two", kernel=b"another")
    sign.sign(other)
    signature.write_bytes((other.path / sign.SIGNATURE).read_bytes())
    with pytest.raises(UserError, match="the manifest is not what was signed"):
        sign.check_signature(signed)
    signature.write_bytes(good)
    shutil.rmtree(config)  # another machine
    with pytest.raises(UserError, match="by a key that is not trusted here: SHA256:") as error:
        sign.check_signature(signed)
    assert "allowed-signers" in error.value.hint


def test_a_signature_for_something_else_is_none(signed: Bundle) -> None:
    from bsp.base.process import run

    manifest = (signed.path / "manifest.json").read_bytes()
    words = ["ssh-keygen", "-q", "-Y", "sign", "-f", str(sign.signing_key()), "-n", "git"]
    (signed.path / sign.SIGNATURE).write_bytes(run(words, stdin=manifest).stdout)
    with pytest.raises(UserError, match="not what was signed"):
        sign.check_signature(signed)


# --- the board -------------------------------------------------------------------------------


@pytest.fixture
def board(tmp_path: Path) -> Iterator[FakeBoard]:
    made = FakeBoard(tmp_path / "board", make_bundle(tmp_path / "factory"))
    try:
        yield made
    finally:
        made.close()


def trusted(board: FakeBoard) -> Path:
    return board.root / sign.BOARD_SIGNERS


@pytest.mark.slow
def test_a_board_takes_on_the_first_signer_and_then_nothing_else(
    board: FakeBoard, signed: Bundle, tmp_path: Path, config: Path
) -> None:
    assert deploy(board.target(), bundle=signed, board=None).outcome == "confirmed"
    assert trusted(board).read_text() == sign.trust_root()
    generation = board.root / "var/lib/npu-bsp/generations" / signed.generation
    assert (generation / sign.SIGNATURE).is_file()

    unsigned = make_bundle(tmp_path / "unsigned", kernel=b"unsigned kernel")
    for bundle, why in ((unsigned, "is not signed"), (forged(tmp_path), "is not what was signed")):
        with pytest.raises(
            UserError, match=f"refused the bundle; nothing was changed there.*{why}"
        ):
            deploy(board.target(), bundle=bundle, board=None)
    shutil.rmtree(config)
    strangers = make_bundle(tmp_path / "stranger", kernel=b"stranger's kernel")
    sign.sign(strangers)
    with pytest.raises(UserError, match="does not trust: SHA256:") as error:
        deploy(board.target(), bundle=strangers, board=None)
    assert sign.BOARD_SIGNERS in error.value.hint
    left = sorted(path.name for path in generation.parent.iterdir())
    assert strangers.generation not in left
    assert unsigned.generation not in left


def forged(folder: Path) -> Bundle:
    """A bundle whose manifest was changed after it was signed, in all that hangs on it."""
    bundle = make_bundle(folder / "forged", kernel=b"kernel with a back door")
    other = make_bundle(folder / "honest", kernel=b"honest kernel")
    sign.sign(other)
    shutil.copyfile(other.path / sign.SIGNATURE, bundle.path / sign.SIGNATURE)
    return bundle


def test_a_file_that_changes_while_it_is_sent_is_refused(board: FakeBoard, signed: Bundle) -> None:
    change(signed.path / "boot/kernel")
    with pytest.raises(transfer.BoardRefusedError, match="did not arrive as the manifest says"):
        deploy(board.target(), bundle=signed, board=None)


# --- downgrades ------------------------------------------------------------------------------


def test_what_is_a_downgrade() -> None:
    assert plan.is_downgrade("6.12.107+deb13-arm64", "6.12.99+deb13-arm64")
    assert plan.is_downgrade("7.3.4+deb13-arm64", "6.12.107-npu-0a1b2c3d")
    assert not plan.is_downgrade("6.12.107+deb13-arm64", "6.12.107-npu-0a1b2c3d")
    assert not plan.is_downgrade("6.9.1", "6.12.0")


def test_a_downgrade_is_asked_for(
    board: FakeBoard, signed: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "is_downgrade", lambda _running, _wanted: True)
    with pytest.raises(UserError, match=r"is older than .*; nothing was changed") as error:
        deploy(board.target(), bundle=signed, board=None, on_downgrade=ask_downgrade)
    assert "--allow-downgrade" in error.value.hint


# --- SBOM ------------------------------------------------------------------------------------


def test_the_sbom_is_valid_spdx(tmp_path: Path) -> None:
    pytest.importorskip("spdx_tools", reason="spdx-tools is a development requirement")
    from spdx_tools.spdx.parser.parse_anything import parse_file
    from spdx_tools.spdx.validation.document_validator import validate_full_spdx_document

    parts = [
        sbom.Part("libstdc++6", "14.2.0-19", "deb", "see its copyright file"),
        sbom.Part("linux-image-6.12.107+deb13-arm64", "1:6.12-1~x", "deb", "GPL-2"),
        sbom.Part("numpy", "2.5.5", "pypi", "BSD-3-Clause AND 0BSD AND MIT", "ab" * 32, "a wheel"),
    ]
    file = tmp_path / "sbom.spdx.json"
    file.write_bytes(sbom.document("vim3", parts))
    document = parse_file(str(file))
    assert validate_full_spdx_document(document) == []
    stated = {package.name: str(package.license_declared) for package in document.packages}
    assert stated["linux-image-6.12.107+deb13-arm64"] == "GPL-2.0-only"
    assert stated["numpy"] == "BSD-3-Clause AND 0BSD AND MIT"
    assert stated["libstdc++6"] == "NOASSERTION"
    assert sbom.document("vim3", parts) == file.read_bytes()


def test_the_sbom_is_a_file_of_the_bundle(tmp_path: Path) -> None:
    made = make_bundle(tmp_path / "one")
    assert bundles.load(made.path).generation == made.generation
