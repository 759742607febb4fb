# SPDX-License-Identifier: MIT
"""Mesa from source: names, patches, options and what ``--mesa`` takes; nothing is compiled here."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bsp.base.compile.patching import Patch
from bsp.base.errors import UserError
from bsp.base.progress import Step
from userspace.npu.mesa import build, configure, manifest, patches, source
from userspace.payload import plan
from virtual.gates import packages

ARM64 = b"\x7fELF\x02\x01" + bytes(12) + b"\xb7\0" + bytes(44)
DELEGATE = ARM64 + b"\0tflite_plugin_create_delegate\0"


def made_tree(path: Path, *, version: str = "25.0.7", teflon: bool = True) -> Path:
    for name in ("src/gallium", "src/gallium/frontends/teflon" if teflon else "src"):
        (path / name).mkdir(parents=True, exist_ok=True)
    (path / "VERSION").write_text(version + "\n")
    (path / "src/gallium/meson.build").write_text("")
    (path / "meson_options.txt").write_text(
        "option(\n  'gallium-drivers',\n  choices : ['auto', 'etnaviv', 'zink'],\n)\n"
        + ("option(\n  'teflon',\n  type : 'boolean',\n)\n" if teflon else "")
        + "option(\n  'glx',\n  type : 'combo',\n)\n"
    )
    (path / "code.c").write_text("".join(f"line {number}\n" for number in range(1, 31)))
    (path / "other.c").write_text("other\n")
    return path


def made_series(folder: Path, tree: Path, *edits: tuple[str, str]) -> None:
    """A series of patches, each one an edit of code.c, as git makes them."""
    work = folder.parent / "work"
    made_tree(work)
    git = ["git", "-C", str(work), "-c", "user.name=a", "-c", "user.email=a@b"]

    def run(*words: str) -> None:
        subprocess.run([*git, *words], check=True, capture_output=True)

    run("init")
    run("add", "-A")
    run("commit", "-m", "base")
    for number, (old, new) in enumerate(edits):
        text = (work / "code.c").read_text()
        (work / "code.c").write_text(text.replace(old + "\n", new + "\n"))
        run("commit", "-am", f"part: change {number}")
    (folder / "25.0").mkdir(parents=True)
    run("format-patch", "-q", "--no-signature", "-o", str(folder / "25.0"), f"HEAD~{len(edits)}")
    (folder / "25.0/series.toml").write_text(
        'format = 1\ntitle = "t"\nversions = ["25.0"]\njudged = "25.0.7"\n'
    )


@pytest.fixture
def series(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Two patches; the second changes a line that the first one brought."""
    monkeypatch.setenv("NPU_BSP_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "patches"
    made_series(folder, tmp_path, ("line 10", "line ten"), ("line ten", "line X"))
    monkeypatch.setattr(patches, "FOLDER", folder)
    patches.all_series.cache_clear()
    yield folder
    patches.all_series.cache_clear()


def tree_at(path: Path, *, fixed: bool = False) -> source.MesaTree:
    return source.MesaTree(path, f"path:{path}", "25.0.7", "as it is on disk", fixed)


# --- names -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("trixie", "is not a source of Mesa"),
        ("distro:trixie", "did you mean 'distribution'"),
        ("tarball:https://example.org/mesa.tar.xz", "has no hash"),
        ("git:https://example.org/mesa.git", "names no ref"),
        ("path:/nowhere/at/all", "there is no folder"),
        ("distribution:NOT A SUITE", "is not a suite"),
    ],
)
def test_a_source_that_cannot_be_read_is_refused_before_anything_is_fetched(
    name: str, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        build.request_for(source=name)


def test_other_arguments_are_looked_at_first_too() -> None:
    with pytest.raises(UserError, match="did you mean 'rocket'"):
        build.request_for(drivers="etnaviv,rokcet")
    with pytest.raises(UserError, match=r"no series of patches '24\.0'"):
        build.request_for(patches="24.0")
    with pytest.raises(UserError, match="--jobs -1"):
        build.request_for(jobs=-1)


def test_a_folder_has_to_be_a_mesa_with_teflon(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="is not a source of Mesa"):
        source.mesa_tree(f"path:{tmp_path / 'empty'}")
    old = made_tree(tmp_path / "old", version="23.3.0", teflon=False)
    with pytest.raises(UserError, match=r"Mesa 23\.3\.0 has no Teflon yet"):
        source.mesa_tree(f"path:{old}")
    found = source.mesa_tree(f"path:{made_tree(tmp_path / 'good')}")
    assert (found.version, found.series, found.fixed) == ("25.0.7", "25.0", False)


def test_options_follow_what_the_tree_has(tmp_path: Path) -> None:
    tree = made_tree(tmp_path)
    assert configure.options_for(tree, "25.0.7", ["etnaviv"]) == (
        "-Dteflon=true", "-Dgallium-drivers=etnaviv", "-Dglx=disabled",
    )  # fmt: skip
    with pytest.raises(UserError, match="has no driver 'rocket'; of the NPUs' it has: etnaviv"):
        configure.options_for(tree, "25.0.7", ["rocket"])
    (tree / "meson_options.txt").write_text(
        "option(\n  'gallium-drivers',\n  choices : ['etnaviv'],\n)\n"
    )
    with pytest.raises(UserError, match="has no meson option 'teflon'"):
        configure.options_for(tree, "99.0", ["etnaviv"])


def test_a_missing_compiler_is_named_with_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for tool in ("ninja", "pkg-config", "bison", "flex"):
        (tmp_path / tool).write_text("#!/bin/sh\n")
        (tmp_path / tool).chmod(0o755)
    monkeypatch.setattr("bsp.base.process.find_tool", lambda name: str(tmp_path / name)
                        if (tmp_path / name).exists() else None)  # fmt: skip
    with pytest.raises(UserError, match="aarch64-linux-gnu-gcc") as caught:
        configure.require_tools()
    assert "gcc-aarch64-linux-gnu" in caught.value.hint


# --- patches -----------------------------------------------------------------------------------


def test_patches_go_into_a_copy_and_the_version_says_so(series: Path, tmp_path: Path) -> None:
    tree = made_tree(tmp_path / "mesa")
    found = patches.patched(tree_at(tree, fixed=True), "25.0", manifest.mark("0.2.0"))
    assert "line X\n" in (found.path / "code.c").read_text()
    assert (found.path / "VERSION").read_text() == "25.0.7+npu-bsp0.2.0.p2\n"
    assert "line 10\n" in (tree / "code.c").read_text()  # hard links, and yet untouched
    assert (tree / "VERSION").read_text() == "25.0.7\n"
    assert [patches.title_of(patch) for patch in found.applied] == [
        "part: change 0",
        "part: change 1",
    ]


def test_what_the_source_has_already_is_left_out(series: Path, tmp_path: Path) -> None:
    tree = made_tree(tmp_path / "mesa")
    text = (tree / "code.c").read_text()
    (tree / "code.c").write_text(text.replace("line 10\n", "line X\n"))  # both, as upstream
    found = patches.patched(tree_at(tree), "25.0", manifest.mark("0.2.0"))
    assert (found.path, found.applied, len(found.present)) == (tree, (), 2)
    (tree / "code.c").write_text(text.replace("line 10\n", "line ten\n"))  # the first one only
    found = patches.patched(tree_at(tree), "25.0", manifest.mark("0.2.0"))
    assert [patch.path.name[:4] for patch in found.applied] == ["0002"]
    assert "line X\n" in (found.path / "code.c").read_text()


def test_one_that_does_not_apply_is_named_with_hunk_and_file(series: Path, tmp_path: Path) -> None:
    tree = made_tree(tmp_path / "mesa")
    (tree / "code.c").write_text((tree / "code.c").read_text().replace("line 9\n", "another\n"))
    for fixed in (True, False):
        with pytest.raises(
            UserError, match=r"25.0/0001-.* to this Mesa: hunk 1 of code.c \(line \d+\)"
        ):
            patches.patched(tree_at(tree, fixed=fixed), "25.0", manifest.mark("0.2.0"))
    assert not [path for path in tmp_path.glob("mesa-patched*") if path.is_dir()]


def test_a_folder_that_is_edited_is_copied_again_where_it_changed(
    series: Path, tmp_path: Path
) -> None:
    tree = made_tree(tmp_path / "mesa")

    def renewed() -> dict[str, int]:
        found = patches.patched(tree_at(tree), "25.0", manifest.mark("0.2.0"))
        return {
            path.name: path.stat().st_mtime_ns for path in found.path.glob("*") if path.is_file()
        }

    first = renewed()
    assert renewed() == first  # nothing for ninja to do
    (tree / "other.c").write_text("edited\n")
    os.utime(tree / "other.c", (1, 1))
    second = renewed()
    assert {name for name in first if first[name] != second[name]} == {"other.c"}
    (tree / "code.c").write_text((tree / "code.c").read_text().replace("line 30", "line thirty"))
    third = renewed()
    assert {name for name in second if second[name] != third[name]} == {"code.c"}


def test_each_of_our_patches_says_what_a_maintainer_asks() -> None:
    for name in patches.all_series():
        of_series = patches.patches_of(name)
        assert of_series
        for patch in of_series:
            text = patch.path.read_text(encoding="utf-8")
            assert patches.title_of(patch).partition(":")[0] in ("teflon", "etnaviv"), patch.name
            message = text.partition("\n---\n")[0]
            for part in ("Model: ", "Silicon: ", "Finding: "):
                assert f"\n{part}" in message, f"{patch.name} has no {part}"
            assert "Signed-off-by" not in text  # that is for who sends it


def test_patches_touch_the_delegate_and_its_driver_only() -> None:
    for name in patches.all_series():
        for file in patches.touched_by(patches.patches_of(name)):
            assert file.startswith(
                (
                    "src/gallium/frontends/teflon/",
                    "src/gallium/drivers/etnaviv/",
                    "src/gallium/include/pipe/",
                )
            )


# --- what --mesa takes ---------------------------------------------------------------------------


def made_build(folder: Path, library: bytes = DELEGATE, **changes: object) -> Path:
    (folder / "lib").mkdir(parents=True)
    (folder / "lib/libteflon.so").write_bytes(library)
    (folder / "licences").mkdir()
    (folder / "licences/mesa").write_text("MIT\n")
    record = {
        "format": 1, "name": "mesa", "version": "25.0.7", "title": "25.0.7 + 2 patches of npu-bsp 0.2.0",
        "build_id": "0123456789ab", "origin": "mesa 25.0.7-2 (trixie)", "built_for": "trixie",
        "drivers": ["etnaviv"], "patches": [], "patches_present": [], "licence": "MIT",
        "files": {"lib/libteflon.so": hashlib.sha256(library).hexdigest()}, **changes,
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(record))
    return folder


def test_a_folder_of_build_mesa_is_read(tmp_path: Path) -> None:
    found = manifest.read_built(
        made_build(tmp_path / "built", DELEGATE + b"\0GLIBC_2.38\0GLIBC_2.17\0")
    )
    assert (found.version, found.glibc) == ("25.0.7", "2.38")
    assert "25.0.7 + 2 patches of npu-bsp 0.2.0" in found.text()


def test_what_is_no_such_folder_is_refused_with_why(tmp_path: Path) -> None:
    def refused(folder: Path, said: str) -> None:
        with pytest.raises(UserError, match=said) as caught:
            manifest.read_built(folder)
        assert "build-mesa" in caught.value.hint

    refused(tmp_path / "none", "there is no such folder")
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", "it is a file")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "it has no manifest.json")
    refused(made_build(tmp_path / "bundle", name="bundle"), "of something else")
    refused(made_build(tmp_path / "newer", format=2), "another version of this project")
    changed = made_build(tmp_path / "changed")
    (changed / "lib/libteflon.so").write_bytes(DELEGATE + b"x")
    refused(changed, "changed since: lib/libteflon.so")
    refused(
        made_build(tmp_path / "amd64", DELEGATE.replace(b"\xb7\0", b"\x3e\0", 1)),
        "not a library for arm64",
    )
    refused(made_build(tmp_path / "other", ARM64), "is not a TFLite delegate")


def test_a_delegate_for_a_newer_c_library_does_not_get_into_a_payload(tmp_path: Path) -> None:
    built = manifest.read_built(made_build(tmp_path / "built", DELEGATE + b"\0GLIBC_2.41\0"))
    with pytest.raises(UserError, match=r"needs glibc 2\.41, bookworm has 2\.36") as caught:
        plan._refuse_newer_libc(built, "bookworm", "2.36")
    assert "build-mesa --distribution bookworm" in caught.value.hint


def test_exactly_one_delegate_is_named(tmp_path: Path) -> None:
    built = made_build(tmp_path / "built")
    assert packages.named_delegate("", "", str(built)) == str(built)
    for words in (("", "", ""), ("", "trixie", str(built))):
        with pytest.raises(UserError, match="one of --package, --suite and --mesa"):
            packages.named_delegate(*words)


def test_a_version_that_a_library_carries_is_said_in_words() -> None:
    assert manifest.named("25.0.7+npu-bsp0.2.0.p9") == "25.0.7 + 9 patches of npu-bsp 0.2.0"
    assert manifest.named("25.0.7-2+deb13u1") == "25.0.7-2+deb13u1"
    assert Patch("25.0", Path("0001-x.patch")).name == "25.0/0001-x.patch"


def test_progress_is_ninjas() -> None:
    now = Step("Compiling", 0)
    build._note(
        now,
        [b"[3/568] Compiling C object a.o", b"warning: [9/9]", b"[17/568] Compiling C object b.o"],
    )
    assert now.detail == "17 of 568"
