# SPDX-License-Identifier: MIT
"""build-kernel on a tiny tree: asked = got, patches, incremental and interrupted builds, bad input."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import msgspec
import pytest

from bsp.base.errors import InfrastructureError, UserError
from bsp.base.process import find_tool
from bsp.catalog import load_board
from bsp.kernel import command, objects, patches
from bsp.kernel import compile as build
from bsp.kernel.config import fragments
from bsp.kernel.config.compare import differences, read_config
from bsp.kernel.config.kconfig import modernised
from bsp.kernel.select import built_kernel, kernel_named
from bsp.profile import Board
from images.bundle import lock as locks

BOARD = load_board("virtual-a311d")

pytestmark = pytest.mark.skipif(
    not all(map(find_tool, ("gcc", "make", "depmod", "patch"))), reason="no compiler or depmod"
)


def request(tree: Path, *extra: Path, board: Board = BOARD) -> build.KernelRequest:
    return build.KernelRequest(board, f"path:{tree}", extra)


def fragment(folder: Path, *lines: str) -> Path:
    (folder / "user.config").write_text("\n".join(lines) + "\n")
    return folder / "user.config"


def test_a_build_and_what_it_leaves(tree: Path) -> None:
    prepared = build.prepare(request(tree))
    assert prepared.configured.differences == ()
    folder = build.build_kernel(prepared)
    kernel = built_kernel(str(folder))
    assert kernel.release.startswith("6.12.7-npu-")
    assert (kernel.modules / "modules.dep").read_text().strip() == "drivers/etnaviv.ko:"
    assert read_config(kernel.config)["DRM_ETNAVIV"] == "m"
    assert kernel_named(f"build:{kernel.version}").image == kernel.image

    # Nothing to do: the same folder, nothing compiled, nothing written.
    image = prepared.work.folder / "arch/arm64/boot/Image"
    before = image.stat().st_mtime_ns
    again = build.prepare(request(tree))
    assert again.configured.fresh
    assert build.build_kernel(again) == folder
    assert image.stat().st_mtime_ns == before
    assert not (prepared.work.folder / "npu-bsp.running").exists()

    # A changed source gives another build id, with the same configuration the same release.
    (tree / "drivers/etnaviv.c").write_text("int other;\n")
    other = built_kernel(str(build.build_kernel(build.prepare(request(tree)))))
    assert other.version != kernel.version
    assert other.release == kernel.release


def test_a_lock_file_wants_the_very_kernel_that_was_built(tree: Path, tmp_path: Path) -> None:
    folder = build.build_kernel(build.prepare(request(tree)))
    build_id = json.loads((folder / "build.json").read_bytes())["build_id"]
    inputs = locks.built_inputs(f"build:{build_id}")
    assert [each.kind for each in inputs] == [
        "kernel build", "kernel source", "compiler", "kernel fragment",
    ]  # fmt: skip
    content = locks.LockFile(locks.FORMAT, BOARD.name, f"build:{build_id}", tuple(inputs), {}, {})
    file = tmp_path / "lock.json"
    file.write_bytes(msgspec.json.encode(content))
    with locks.followed(BOARD, file):
        pass
    (folder / "build.json").write_bytes((folder / "build.json").read_bytes() + b"\n")
    with (
        pytest.raises(UserError, match="a kernel that was not built on this machine"),
        locks.followed(BOARD, file),
    ):
        pass


def test_dropped_changed_and_unknown_symbols_stop_before_compiling(
    tree: Path, tmp_path: Path
) -> None:
    asked = fragment(
        tmp_path, "# CONFIG_BLOCK is not set", "CONFIG_VIRTIO_BLKK=y", "CONFIG_DRM_ETNAVIV=y",
        "CONFIG_NR_CPUS=999", "# CONFIG_CRC32 is not set",
    )  # fmt: skip
    prepared = build.prepare(request(tree, asked))
    found = {each.asked.symbol: each for each in prepared.configured.differences}
    assert set(found) == {
        "BLK_DEV", "VIRTIO_BLK", "VIRTIO_BLKK", "DRM_ETNAVIV", "NR_CPUS", "CRC32",
    }  # fmt: skip
    chain = found["VIRTIO_BLK"].reasons
    assert chain[0].startswith("depends on BLK_DEV, which is n")
    assert chain[1].startswith("  depends on BLOCK, which is n")
    assert "did you mean 'VIRTIO_BLK'?" in found["VIRTIO_BLKK"].reasons[1]
    assert "limits this to a module" in found["DRM_ETNAVIV"].reasons[0]
    assert "between 2 and 64" in found["NR_CPUS"].reasons[0]
    assert "selected by DRM_ETNAVIV" in found["CRC32"].reasons[0]
    with pytest.raises(UserError, match="nothing was compiled") as error:
        build.build_kernel(prepared)
    assert error.value.exit_code == 2
    assert not (prepared.work.folder / "kernel/main.o").exists()


def test_what_an_interrupted_build_left_is_made_again(tree: Path) -> None:
    prepared = build.prepare(request(tree))
    folder = build.build_kernel(prepared)
    (prepared.work.folder / "npu-bsp.running").touch()
    half = prepared.work.folder / "drivers/etnaviv.o"
    half.write_bytes(b"half")  # newer than its .cmd: the compiler was killed
    assert build.build_kernel(build.prepare(request(tree))) == folder
    assert half.read_bytes()[:4] == b"\x7fELF"


def test_a_disk_that_fills_up_in_the_middle(tree: Path) -> None:
    makefile = (tree / "Makefile").read_text()
    # A real write to a device that is always full, at the second file.
    assert "cp $< $@; echo cmd" in makefile
    (tree / "Makefile").write_text(
        makefile.replace("cp $< $@; echo cmd", "cat $< > /dev/full && echo cmd")
    )
    with pytest.raises(InfrastructureError, match="the disk is full"):
        build.build_kernel(build.prepare(request(tree)))
    (tree / "Makefile").write_text(makefile)
    assert built_kernel(str(build.build_kernel(build.prepare(request(tree)))))


def test_a_source_that_does_not_compile(tree: Path) -> None:
    (tree / "kernel/main.c").write_text("int main(void) { return missing; }\n")
    with pytest.raises(UserError, match=r"main.c:1:.*error: .missing. undeclared"):
        build.build_kernel(build.prepare(request(tree)))
    (tree / "kernel/main.c").write_text("int main(void) { return 1; }\n")
    assert built_kernel(str(build.build_kernel(build.prepare(request(tree)))))


def test_what_was_changed_by_hand_becomes_a_fragment(tree: Path, tmp_path: Path) -> None:
    options = command.Options(kernel=f"path:{tree}")
    config = build.prepare(request(tree)).work.config
    config.write_text(config.read_text().replace("CONFIG_NR_CPUS=8", "CONFIG_NR_CPUS=16"))
    saved = tmp_path / "mine.config"
    document = command.save_fragment(BOARD, options, str(saved), menu=False)
    assert document["lines"] == ["CONFIG_NR_CPUS=16"]
    again = build.prepare(request(tree, saved))
    assert again.configured.differences == ()
    assert read_config(again.work.config)["NR_CPUS"] == "16"
    with pytest.raises(UserError, match="exists already"):
        command.save_fragment(BOARD, options, str(saved), menu=False)


def test_a_compiler_that_is_too_old(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tree / "scripts/min-tool-version.sh").write_text("echo 99.1.0\n")
    with pytest.raises(UserError, match=r"wants gcc 99.1.0 or newer; gcc is \d+"):
        build.prepare(request(tree))
    monkeypatch.setenv("CROSS_COMPILE", "no-such-")
    with pytest.raises(UserError, match="'no-such-gcc' is needed"):
        build.prepare(request(tree))


def test_a_tree_that_was_built_in(tree: Path) -> None:
    (tree / ".config").touch()
    with pytest.raises(UserError, match="was built in"):
        build.prepare(request(tree))


PATCH = """\
--- a/drivers/etnaviv.c
+++ b/drivers/etnaviv.c
@@ -1,5 +1,5 @@
 int etnaviv;
-int rate = 24000000;
+int rate = 800000000;
 int one;
 int two;
 int last;
"""


def series(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str = PATCH) -> None:
    (folder / "patches/rates").mkdir(parents=True)
    (folder / "patches/rates/series.toml").write_text(
        'format = 1\ntitle = "t"\nkernels = ["6.12"]\nwhy = "w"\nsource = "s"\n'
    )
    (folder / "patches/rates/0001-rates.patch").write_text(text)
    monkeypatch.setattr(patches, "FOLDER", folder / "patches")
    patches.all_series.cache_clear()


@pytest.fixture(autouse=True)
def _forget_series() -> object:
    yield None
    patches.all_series.cache_clear()


@pytest.mark.slow
def test_patches(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("rsync") is None:
        pytest.skip("rsync is not installed")
    series(tmp_path, monkeypatch)
    prepared = build.prepare(request(tree))
    assert [patch.name for patch in prepared.patches] == ["rates/0001-rates.patch"]
    assert "800000000" in (prepared.work.tree / "drivers/etnaviv.c").read_text()
    assert "24000000" in (tree / "drivers/etnaviv.c").read_text()  # the user's tree is as it was
    # A tree that has it already is used as it is.
    source = (tree / "drivers/etnaviv.c").read_text()
    (tree / "drivers/etnaviv.c").write_text(source.replace("24000000", "800000000"))
    assert build.prepare(request(tree)).work.tree == tree


def test_a_tree_that_has_the_change_in_words_of_its_own(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    series(tmp_path, monkeypatch)
    with (tmp_path / "patches/rates/series.toml").open("a") as file:
        file.write('[[already]]\nfile = "drivers/other.c"\nmatches = "rate = 8\\\\d+.*later"\n')
    (tree / "drivers/other.c").write_text("int rate = 800000000;\nint later;\n")
    assert build.prepare(request(tree)).patches == ()
    assert build.prepare(request(tree)).work.tree == tree


def test_a_patch_that_does_not_apply(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("rsync") is None:
        pytest.skip("rsync is not installed")
    # Fuzz would take it: only the context differs.
    series(tmp_path, monkeypatch, PATCH.replace(" int etnaviv;", " int another;"))
    with pytest.raises(
        UserError, match=r"rates/0001-rates.patch .*hunk 1 of drivers/etnaviv.c \(line 1\)"
    ):
        build.prepare(request(tree))


def test_fragments_that_cannot_be_read(tmp_path: Path) -> None:
    for text in ("CONFIG_X=y # why", "X=y", "config X", "CONFIG_A=a b"):
        with pytest.raises(UserError, match=r"user\.config:1"):
            fragments.merge([fragment(tmp_path, text)])
    with pytest.raises(UserError, match="there is no file"):
        fragments.fragment_files(BOARD, [tmp_path / "none"])


def test_a_fragment_is_no_pipe(tmp_path: Path) -> None:
    """As a shell's <(command) is one."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="is a pipe"):
        fragments.fragment_files(BOARD, [tmp_path / "pipe"])


def test_every_shipped_symbol_says_what_it_is_for() -> None:
    for file in fragments.FOLDER.glob("*.config"):
        asked = fragments.parse(file.read_text(), file.name)
        assert asked
        assert [each.symbol for each in asked if not each.purpose] == [], file


def test_shipped_series_are_whole() -> None:
    for name in patches.all_series():
        assert list((patches.FOLDER / name).glob("*.patch")), name


def test_a_distributions_kernel_may_have_modules_and_other_preferences(tmp_path: Path) -> None:
    asked = fragments.merge(
        [
            fragment(
                tmp_path, "# Disk", "CONFIG_EXT4_FS=y", "", "# Prefer: small", "CONFIG_NR_CPUS=8"
            )
        ]
    )
    got = {"EXT4_FS": "m", "NR_CPUS": "512"}
    assert differences(asked, got, module_will_do=True) == []
    assert len(differences(asked, got)) == 2
    assert [each.asked.symbol for each in differences(asked, {}, module_will_do=True)] == [
        "EXT4_FS"
    ]


def test_a_distributions_kernel_has_to_lack_what_a_user_switches_off(tmp_path: Path) -> None:
    ours = tmp_path / "base.config"
    ours.write_text("# CONFIG_WERROR is not set\n# CONFIG_SWAP is not set\n")
    users = tmp_path / "user.config"
    users.write_text("CONFIG_DEBUG_INFO=n\n# CONFIG_SWAP is not set\nCONFIG_AUDIT=n\n")
    asked = fragments.merge([ours, users])
    got = {"WERROR": "y", "SWAP": "y", "DEBUG_INFO": "y"}
    found = differences(asked, got, module_will_do=True, shipped_files=1)
    assert [each.asked.symbol for each in found] == ["DEBUG_INFO", "SWAP"]


def test_words_that_kconfiglib_does_not_know() -> None:
    assert modernised("\tdepends on A || B if C\n") == "\tdepends on (A || B) || !(C)\n"
    assert modernised("\tdepends on A # not if B\n") == "\tdepends on A # not if B\n"
    assert modernised("\tmodules\n").strip() == "option modules"


def test_progress_counts_what_the_makefiles_list(tree: Path) -> None:
    assert objects.count_objects(tree, {"DRM_ETNAVIV": "m"}) == 2
    assert objects.count_objects(tree, {}) == 1
