# SPDX-License-Identifier: MIT
"""What users give as fragments: choices, whole configurations, vendors' symbols; what is said of them."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bsp.base.errors import UserError
from bsp.base.project import PROJECT
from bsp.catalog import load_board
from bsp.kernel import command
from bsp.kernel import compile as build
from bsp.kernel.config import fragments
from bsp.kernel.config.compare import read_config
from bsp.kernel.config.report import MOST_PARAGRAPHS, describe_files
from bsp.kernel.config.vendor_symbols import vendor_lines
from bsp.kernel.config.whole_config import BY_ITSELF, Kind, kind_of

BOARD = load_board("virtual-a311d")
HEADER = "#\n# Automatically generated file; DO NOT EDIT.\n# Linux/arm64 6.12.7 Kernel Configuration\n#\n"

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("gcc", "make"))), reason="no compiler or make"
)


def given(tree: Path, text: str, name: str = "user.config") -> Path:
    path = tree.parent / "given" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def prepared(tree: Path, *files: Path) -> build.Prepared:
    return build.prepare(build.KernelRequest(BOARD, f"path:{tree}", files))


def config_of(result: build.Prepared) -> dict[str, str]:
    return read_config(result.work.config)


def reasons_for(tree: Path, text: str, name: str = "user.config") -> dict[str, tuple[str, ...]]:
    found = prepared(tree, given(tree, text, name)).configured.differences
    return {each.asked.symbol: each.reasons for each in found}


# --- the last one to name an option wins ---------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "gone", "to"),
    [
        ("CONFIG_PREEMPT=y", "PREEMPT_VOLUNTARY", "PREEMPT"),
        ("CONFIG_PREEMPT_NONE=y", "PREEMPT_VOLUNTARY", "PREEMPT_NONE"),
        ("# CONFIG_IKCONFIG is not set", "IKCONFIG_PROC", "IKCONFIG"),
        ("# CONFIG_IKCONFIG_PROC is not set", None, None),
        ("# CONFIG_PREEMPT_VOLUNTARY is not set", None, None),
        ("CONFIG_STMMAC=m", "STMMAC_MESON", "STMMAC"),
    ],
)
def test_a_choice_of_the_user_wins(tree: Path, line: str, gone: str | None, to: str | None) -> None:
    result = prepared(tree, given(tree, line + "\n"))
    assert result.configured.differences == ()
    gave_way = [(each.asked.symbol, each.to.symbol) for each in result.configured.gave_way]
    assert gave_way == ([(gone, to)] if gone else [])
    config = config_of(result)
    asked = fragments.parse(line, "x")[0]
    assert config.get(asked.symbol, "n") == asked.value
    if gone:
        assert config.get(gone, "n") != "y"


def test_the_last_of_the_users_fragments_wins(tree: Path) -> None:
    first = given(tree, "CONFIG_PREEMPT=y\nCONFIG_NR_CPUS=16\n", "a.config")
    second = given(tree, "CONFIG_PREEMPT_NONE=y\nCONFIG_NR_CPUS=32\n", "b.config")
    result = prepared(tree, first, second)
    assert result.configured.differences == ()
    assert {each.asked.symbol for each in result.configured.gave_way} == {
        "PREEMPT", "PREEMPT_VOLUNTARY",
    }  # fmt: skip
    assert (config_of(result)["PREEMPT_NONE"], config_of(result)["NR_CPUS"]) == ("y", "32")
    # What the base prefers is the user's word once a fragment says it again.
    third = given(tree, "CONFIG_PREEMPT_VOLUNTARY=y\n", "c.config")
    again = prepared(tree, first, second, third)
    assert config_of(again)["PREEMPT_VOLUNTARY"] == "y"
    assert not again.configured.asked["PREEMPT_VOLUNTARY"].preferred_only


def test_what_a_board_needs_does_not_give_way_to_what_it_depends_on(tree: Path) -> None:
    """Off is off, but then the disk, which the base asks for and does not merely prefer, is missed."""
    reasons = reasons_for(tree, "# CONFIG_BLOCK is not set\n")
    assert set(reasons) == {"BLK_DEV", "VIRTIO_BLK"}
    # Two members of one choice in one file contradict each other.
    both = reasons_for(tree, "CONFIG_PREEMPT=y\nCONFIG_PREEMPT_NONE=y\n")
    assert both == {"PREEMPT": ("one of several: PREEMPT_NONE was chosen",)}


# --- reasons are true ----------------------------------------------------------------------------


def test_reasons_say_where_a_value_comes_from(tree: Path) -> None:
    reasons = reasons_for(
        tree,
        "CONFIG_DRM_SCHED=y\nCONFIG_HAVE_BLOCK=n\nCONFIG_NOTHING_SETS=y\n"
        "# CONFIG_CRC32 is not set\nCONFIG_KASAN=y\nCONFIG_GCC_VERSIOM=1\n",
    )
    assert reasons.keys() == {
        "DRM_SCHED", "HAVE_BLOCK", "NOTHING_SETS", "CRC32", "KASAN", "GCC_VERSIOM",
    }  # fmt: skip
    assert "it is on where another symbol selects it: DRM_ETNAVIV" in reasons["DRM_SCHED"][0]
    assert "its value is a default (y if BLOCK)" in reasons["HAVE_BLOCK"][0]
    assert "select" not in reasons["HAVE_BLOCK"][0]
    assert "no default, and nothing selects it" in reasons["NOTHING_SETS"][0]
    assert reasons["CRC32"] == ("selected by DRM_ETNAVIV && DRM",)
    assert "CC_HAS_KASAN, which is n" in reasons["KASAN"][0]
    assert "what the compiler and its tools can do here decides it" in reasons["KASAN"][0]
    assert reasons["GCC_VERSIOM"][1] == "did you mean 'GCC_VERSION'?"


def test_a_prompt_that_is_not_shown(tree: Path) -> None:
    """FUTEX is on by default, and cannot be switched off without EXPERT."""
    reasons = reasons_for(tree, "# CONFIG_FUTEX is not set\n")
    assert reasons["FUTEX"][0].startswith("a default sets it, and it can be changed only where")
    assert "EXPERT, which is n" in reasons["FUTEX"][1]


def test_a_module_that_is_built_in_has_a_reason(tree: Path) -> None:
    reasons = reasons_for(tree, "# CONFIG_MODULES is not set\nCONFIG_DRM=m\n")
    assert reasons["DRM"] == ("MODULES is n, so that what would be a module is built in",)


def test_vendors_symbols_are_known_by_name(tree: Path) -> None:
    reasons = reasons_for(
        tree,
        "CONFIG_MXC_GPU_VIV=m\nCONFIG_AMLOGIC_THING=y\nCONFIG_VIRTIO_BLKK=y\nCONFIG_MXC_OTHER=y\n",
    )
    assert reasons["MXC_GPU_VIV"][1:] == vendor_lines("MXC_GPU_VIV")
    assert "NXP's linux-imx has it" in reasons["MXC_GPU_VIV"]
    assert "DRM_ETNAVIV" in reasons["MXC_GPU_VIV"][2]
    assert reasons["AMLOGIC_THING"][1] == "by its name it is of Amlogic's vendor tree"
    assert reasons["MXC_OTHER"][1] == "by its name it is of NXP's linux-imx"
    assert reasons["VIRTIO_BLKK"][1] == "did you mean 'VIRTIO_BLK'?"
    # A symbol that this tree does have is nobody else's.
    with (tree / "Kconfig").open("a") as file:
        file.write('config MXC_GPU_VIV\n\ttristate "in this tree"\n')
    assert "MXC_GPU_VIV" not in reasons_for(tree, "CONFIG_MXC_GPU_VIV=m\n")


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("CONFIG_X=Y", "CONFIG_X=y"),
        ("CONFIG_X=yes", "CONFIG_X=y"),
        ("CONFIG_X='m'", "CONFIG_X=m"),
        ("CONFIG_X=off", "CONFIG_X=n"),
        ("CONFIG_X=/bin/init", "in double quotes"),
        ("CONFIG_X='text'", "in double quotes"),
        ("#CONFIG_X is not set", "# CONFIG_X is not set"),
        ("# CONFIG_X not set", "# CONFIG_X is not set"),
        ("# X is not set", "# CONFIG_X is not set"),
        ("CONFIG_X is not set", "# CONFIG_X is not set"),
        ("# CONFIG_X is not set  # as it is slow", "# CONFIG_X is not set"),
        ("# CONFIG_X is not set, as it is slow", "# CONFIG_X is not set"),
    ],
)
def test_what_the_kernels_tools_would_pass_over_in_silence(line: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        fragments.parse(f"CONFIG_Y=y\n{line}\n", "mine")
    assert caught.value.message.startswith("mine:2: ")
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("CONFIG_X = y", "CONFIG_X=y"),
        ("CONFIG_X: m", "CONFIG_X=m"),
        ("X y", "CONFIG_X=y"),
        ("config_x=yes", "CONFIG_X=y"),
        ("export CONFIG_X=y;", "CONFIG_X=y"),
        ("NR_CPUS=8  # cores", "CONFIG_NR_CPUS=8"),
        ('CMDLINE = "a b"', 'CONFIG_CMDLINE="a b"'),
        ("VIM1.config", None),
        ("CONFIG_=y", None),
    ],
)
def test_a_line_that_is_nearly_one_of_a_fragment(line: str, meant: str | None) -> None:
    with pytest.raises(UserError, match="mine:1: expected CONFIG_X=VALUE") as caught:
        fragments.parse(line, "mine")
    hint = (
        f"did you mean {meant}?" if meant else "comments have a line of their own, beginning with #"
    )
    assert caught.value.hint == hint


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ('define KFEATURE_DESCRIPTION "Etnaviv"', "Yocto"),
        ("kconf hardware etnaviv.cfg", "Yocto"),
        ('include "other.cfg"', "Yocto"),
        ("+CONFIG_DRM_ETNAVIV=m", "patch"),
        ("--- a/.config", "patch"),
        ("structuredExtraConfig = with lib.kernel; {", "Nix"),
        ("DRM_ETNAVIV = lib.mkForce yes;", "Nix"),
        ('CMDLINE = freeform "quiet";', "Nix"),
        ("DRM_ETNAVIV = module;", "did you mean CONFIG_DRM_ETNAVIV=m?"),
    ],
)
def test_files_of_other_programs_are_called_that(line: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        fragments.parse(f"{line}\n", "it.config")
    assert hint in caught.value.hint


def test_what_a_later_line_takes_back_is_said(tree: Path) -> None:
    """Also from what the board needs, and from a line above it in the same file."""
    asking = given(
        tree, "# CONFIG_DRM_ETNAVIV is not set\nCONFIG_HID=y\nCONFIG_HID=n\nCONFIG_STMMAC=y\n"
    )
    request = build.KernelRequest(BOARD, f"path:{tree}", (asking,))
    configured = build.prepare(request).configured
    assert configured.differences == ()
    assert [each.text() for each in configured.gave_way] == [
        "DRM_ETNAVIV=m (base.config:11) to DRM_ETNAVIV=n (user.config:1)",
        "HID=y (user.config:2) to HID=n (user.config:3)",
    ]
    document = command.build_kernel_for(
        BOARD, command.Options(f"path:{tree}", (str(asking),), config_only=True)
    )
    count = document["symbols_asked"]
    assert f"{count} asked for, {count} as asked, 2 gave way" in command.text_of(document)


def test_what_is_switched_off_by_a_wrong_name_is_said(
    tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is off, as nobody can switch it on; what was meant may be on. KASAN lacks what it needs."""
    text = "# CONFIG_DRM_ETNAVVIV is not set\nCONFIG_hid=n\nCONFIG_XYZ=n\nCONFIG_KASAN=n\n"
    configured = prepared(tree, given(tree, text)).configured
    assert configured.differences == ()
    assert configured.nameless == (
        "DRM_ETNAVVIV (user.config:1) is no symbol of this kernel; did you mean 'DRM_ETNAVIV'?",
        "hid (user.config:2) is no symbol of this kernel; did you mean 'HID'?",
        "XYZ (user.config:3) is no symbol of this kernel",
    )
    assert "off, but by no choice: DRM_ETNAVVIV" in capsys.readouterr().err


def test_a_value_that_a_symbol_cannot_have_has_a_reason(tree: Path) -> None:
    (tree / "arch/mips").mkdir(parents=True)
    (tree / "arch/mips/Kconfig").write_text("config CPU_MIPS32\n\tbool\n")
    reasons = reasons_for(
        tree,
        'CONFIG_BLOCK=m\nCONFIG_DRM="m"\nCONFIG_NR_CPUS="8"\nCONFIG_LOAD=y\n'
        "CONFIG_NAME=5\nCONFIG_CPU_MIPS32=y\nCONFIG_hid=y\n",
    )
    assert {name: reasons[name][-1] for name in ("BLOCK", "DRM", "NR_CPUS", "LOAD", "NAME")} == {
        "BLOCK": "it is on or off, never a module: CONFIG_BLOCK=y",
        "DRM": "it takes y, m or n, without quotes",
        "NR_CPUS": "it is a number, without quotes: CONFIG_NR_CPUS=4",
        "LOAD": "it is a hexadecimal number: CONFIG_LOAD=0x10",
        "NAME": 'it is a text in double quotes; a quote in it is written \\": CONFIG_NAME="text"',
    }
    assert reasons["CPU_MIPS32"] == ("arm64 has no such symbol in this kernel (6.12.7), mips has",)
    assert reasons["hid"][-1] == "did you mean 'HID'?"


def test_all_values_that_options_have() -> None:
    values = ("y", "m", "n", "-1", "0xFf", '""', '"a b"', "")
    text = "".join(
        f"CONFIG_{name}={value}\n" for name, value in zip("ABCDEFGH", values, strict=True)
    )
    assert len(fragments.parse(f"# CONFIG_Z=y\n# Why: X is not used\n{text}", "mine")) == 8


# --- whole configurations ------------------------------------------------------------------------


def test_what_a_file_is() -> None:
    many = "".join(f"CONFIG_X{number}=y\n" for number in range(500))
    assert kind_of("a.config", "CONFIG_X=y\n# CONFIG_Y is not set\n")[0] is Kind.FRAGMENT
    assert kind_of("a.config", HEADER + "CONFIG_X=y\n")[0] is Kind.CONFIG
    assert (
        kind_of("a.config", "# Automatically generated make config: don't edit\n")[0] is Kind.CONFIG
    )
    assert kind_of("x", 'CONFIG_CC_VERSION_TEXT="gcc"\nCONFIG_X=y\n')[0] is Kind.EXCERPT
    for name in ("defconfig", "small_defconfig", "kvim3_defconfigbak", "defconfig.txt"):
        assert kind_of(name, "CONFIG_X=y\n")[0] is Kind.DEFCONFIG, name
    assert kind_of("beyond_defconfig.config", "CONFIG_X=y\n")[0] is Kind.FRAGMENT
    assert kind_of("mine", many)[0] is Kind.DEFCONFIG
    assert kind_of("a", HEADER)[1] == "by its first lines, of Linux 6.12.7"
    other = "by its first lines, of Linux 6.12.7 for another machine, x86"
    assert kind_of("a", HEADER.replace("Linux/arm64", "Linux/x86"))[1] == other
    assert kind_of("mine", many + "CONFIG_GCC_VERSION=120200\n")[0] is Kind.CONFIG
    assert kind_of("my_defconfig", HEADER)[0] is Kind.CONFIG  # somebody renamed a .config


@pytest.mark.slow
def test_a_defconfig_goes_on_defaults(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """HID_GENERIC needs HID, which a defconfig leaves to its default; a fragment has to name it."""
    text = "CONFIG_HID_GENERIC=y\n"
    assert "HID_GENERIC" in reasons_for(tree, text)
    result = prepared(tree, given(tree, text, "small_defconfig"))
    assert result.configured.differences == ()
    config = config_of(result)
    assert (config["HID"], config["HID_GENERIC"]) == ("y", "y")
    assert (config["DRM_ETNAVIV"], config["NR_CPUS"]) == ("m", "8")  # what the board needs is there
    assert "small_defconfig is taken for a defconfig (by its name)" in capsys.readouterr().err
    assert result.fragments[0]["kind"] == "defconfig"
    # The same lines below another name make another configuration.
    text = "CONFIG_NR_CPUS=8\n"
    assert config_of(prepared(tree, given(tree, text, "a_defconfig")))["HID"] == "y"
    assert config_of(prepared(tree, given(tree, text, "a.config"))).get("HID", "n") == "n"


@pytest.mark.parametrize("name", ["small_defconfig", "whole.config"])
def test_what_another_kernels_configuration_has_is_listed_and_the_rest_goes_on(
    tree: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """KASAN depends on what nothing here switches on; AMLOGIC_T1 is of another kernel."""
    header = HEADER if name == "whole.config" else ""
    asking = given(tree, f"{header}CONFIG_KASAN=y\nCONFIG_AMLOGIC_T1=y\nCONFIG_HID=y\n", name)
    result = prepared(tree, asking)
    result.refuse_differences()
    assert [each.asked.symbol for each in result.configured.not_had] == ["KASAN", "AMLOGIC_T1"]
    assert config_of(result)["HID"] == "y"
    said = capsys.readouterr().err
    assert (
        "2 symbols are not available in Linux 6.12.7; left out, as only a whole configuration or a "
        "preference asks for them" in said
    )
    assert "depends on CC_HAS_KASAN, which is n" in said
    assert "by its name it is of Amlogic's vendor tree" in said
    # What a fragment by hand asks for is not to be missed because another file asks for it as well.
    for files in ([by_hand(tree, "KASAN"), asking], [asking, by_hand(tree, "KASAN")]):
        with pytest.raises(UserError, match="KASAN: asked for y"):
            prepared(tree, *files).refuse_differences()


def by_hand(tree: Path, symbol: str) -> Path:
    return given(tree, f"CONFIG_{symbol}=y\n", "hand.config")


def test_what_the_board_needs_stays_needed_below_a_whole_configuration(tree: Path) -> None:
    """BLK_DEV is in the board's fragment and in the user's defconfig, which switches off what it needs."""
    asking = given(
        tree, "# CONFIG_BLOCK is not set\nCONFIG_BLK_DEV=y\nCONFIG_KASAN=y\n", "small_defconfig"
    )
    configured = prepared(tree, asking).configured
    assert {each.asked.symbol for each in configured.differences} == {"BLK_DEV", "VIRTIO_BLK"}
    assert [each.asked.symbol for each in configured.not_had] == ["KASAN"]


def test_a_preference_that_a_kernel_does_not_have_stops_nothing(tree: Path) -> None:
    """Linux 7.3 has no PREEMPT_VOLUNTARY for arm64: no kernel of that series could be configured."""
    asking = given(
        tree, "# Prefer: as it always was\nCONFIG_NO_MORE=y\nCONFIG_KASAN=y\n", "own.config"
    )
    configured = prepared(tree, asking).configured
    assert configured.differences == ()
    assert [each.asked.symbol for each in configured.not_had] == ["NO_MORE", "KASAN"]
    with pytest.raises(UserError, match="NO_MORE: asked for y"):
        prepared(
            tree, asking, given(tree, "CONFIG_NO_MORE=y\n", "more.config")
        ).refuse_differences()


def test_what_a_later_file_switches_off_is_said_of_a_defconfig(tree: Path) -> None:
    asking = given(tree, "CONFIG_HID=y\nCONFIG_HID_GENERIC=y\n", "small_defconfig")
    other = given(tree, "# CONFIG_HID is not set\n", "other.config")
    configured = prepared(tree, asking, other).configured
    assert configured.differences == ()
    (missing,) = configured.not_had
    assert missing.asked.symbol == "HID_GENERIC"
    assert "depends on HID, which is n" in missing.reasons[0]


def test_a_whole_config_is_not_held_to_what_nobody_can_ask_for(
    tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (
        "CONFIG_GCC_VERSION=990000\nCONFIG_CC_HAS_KASAN=y\nCONFIG_NOTHING_SETS=y\nCONFIG_DRM_SCHED=y\n"
        "CONFIG_HAVE_OLD_THING=y\nCONFIG_HID=y\nCONFIG_PREEMPT=y\n# CONFIG_PREEMPT_VOLUNTARY is not set\n"
        "# CONFIG_CRC32 is not set\n# CONFIG_DRM_ETNAVIV is not set\n# CONFIG_IKCONFIG is not set\n"
    )
    result = prepared(tree, given(tree, HEADER + text))
    configured = result.configured
    assert configured.differences == ()
    assert [each.symbol for each in configured.left_out] == [
        "GCC_VERSION", "CC_HAS_KASAN", "NOTHING_SETS", "DRM_SCHED", "HAVE_OLD_THING",
    ]  # fmt: skip
    config = config_of(result)
    assert config["PREEMPT"] == "y"
    assert config["DRM_ETNAVIV"] == "m"  # not set there means that nobody asked for it there
    assert config["CRC32"] == "y"  # which selects it
    assert config.get("IKCONFIG", "n") == "n"  # but a mere preference of ours gives way
    said = capsys.readouterr().err
    assert "user.config is taken for a whole .config (by its first lines, of Linux 6.12.7)" in said
    assert "GCC_VERSION, CC_HAS_KASAN" in said
    # A fragment by hand is held to what it says, but for what the compiler decides.
    by_hand = reasons_for(tree, text.replace("CONFIG_GCC_VERSION=990000\n", ""))
    assert by_hand.keys() == {"NOTHING_SETS", "DRM_SCHED", "HAVE_OLD_THING"}


def test_a_part_of_a_config(tree: Path) -> None:
    text = 'CONFIG_CC_VERSION_TEXT="gcc (Example) 14"\nCONFIG_GCC_VERSION=140200\nCONFIG_EXPERT=y\n'
    result = prepared(tree, given(tree, text, "from_dot_config"))
    assert result.configured.differences == ()
    left_out = {each.symbol for each in result.configured.left_out}
    assert left_out == {"CC_VERSION_TEXT", "GCC_VERSION"}
    config = config_of(result)
    assert (config["EXPERT"], config.get("HID", "n")) == ("y", "n")  # not on defaults


def test_its_own_configuration_comes_out_again(tree: Path) -> None:
    config = prepared(tree).work.config
    shutil.copyfile(config, tree.parent / "own.config")
    before = read_config(config)
    (tree.parent / "own.config").write_text(HEADER + (tree.parent / "own.config").read_text())
    again = prepared(tree, tree.parent / "own.config")
    assert again.configured.differences == ()
    assert config_of(again) == before
    packed = tree.parent / "config.gz"
    packed.write_bytes(gzip.compress((tree.parent / "own.config").read_bytes()))
    assert config_of(prepared(tree, packed)) == before


def test_names_of_symbols_without_prompts() -> None:
    for name in (
        "CC_VERSION_TEXT",
        "HAVE_KPROBES",
        "ARCH_HAS_KCOV",
        "CC_HAS_ASM_GOTO",
        "PAHOLE_VERSION",
        "RUSTC_LLVM_MAJOR_VERSION",
        "HAS_SEPARATE_PREEMPT_RESCHED_BITS",
    ):
        assert BY_ITSELF.fullmatch(name), name
    for name in ("ARCH_MESON", "ARCH_MXC", "HID", "SND_VERSION", "DRM_ETNAVIV"):
        assert not BY_ITSELF.fullmatch(name), name


# --- what is said is short -----------------------------------------------------------------------


@pytest.mark.slow
def test_a_long_report_goes_into_a_file(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "".join(f"CONFIG_AMLOGIC_T{number}=y\n" for number in range(300))
    with pytest.raises(UserError) as error:
        prepared(tree, given(tree, text)).refuse_differences()
    assert error.value.exit_code == 2
    assert error.value.message.startswith("300 symbols are not as asked for in Linux 6.12.7")
    assert error.value.message.count("asked for y") == MOST_PARAGRAPHS
    assert len(error.value.message) < 8000
    reports = tmp_path / "cache/reports"
    report = reports / "virtual-a311d-6.12.7-not-as-asked.txt"
    assert f"... and 280 more; all of them: {report}" in error.value.message
    assert report.read_text().count("asked for y") == 300
    # The same in a vendor's defconfig, also where it is told by its size alone.
    capsys.readouterr()
    text = "".join(f"CONFIG_OLD_T{number}=y\n" for number in range(900)) + "CONFIG_HID_GENERIC=y\n"
    result = prepared(tree, given(tree, text, "mine.config"))
    result.refuse_differences()
    assert config_of(result)["HID_GENERIC"] == "y"
    said = capsys.readouterr().err
    assert said.count("asked for y") == MOST_PARAGRAPHS
    report = reports / "virtual-a311d-6.12.7-not-had.txt"
    assert f"... and 880 more; all of them: {report}" in said
    assert report.read_text().count("asked for y") == 900


# --- the command line ----------------------------------------------------------------------------


@pytest.mark.slow
def test_fragments_may_be_repeated_and_errors_keep_to_their_exit_codes(tree: Path) -> None:
    files = [
        given(tree, "CONFIG_HID=y\n", "a.config"),
        given(tree, "CONFIG_NR_CPUS=16\n", "b.config"),
        given(tree, "CONFIG_PREEMPT=y\n", "c,d.config"),
    ]
    options = command.Options(fragment=(f"{files[0]},{files[1]}", str(files[2])))
    assert options.files() == tuple(files)

    def invoke(*words: str) -> tuple[int, dict[str, object]]:
        done = subprocess.run(
            [sys.executable, "-m", "invoke", "build-kernel", "--board", BOARD.name, "--kernel",
             f"path:{tree}", "--config-only", "--json", *words],
            cwd=PROJECT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        return done.returncode, json.loads(done.stdout)

    code, document = invoke(
        "--dry-run", "--fragment", f"{files[0]},{files[1]}", "--fragment", str(files[2])
    )
    assert code == 0
    assert [each["file"] for each in document["fragments"]] == list(map(str, files))  # type: ignore[attr-defined]
    binary = given(tree, "", "binary")
    binary.write_bytes(bytes(range(256)))
    broken = given(tree, "", "broken.gz")
    broken.write_bytes(gzip.compress(b"CONFIG_HID=y\n")[:-9])
    for bad in (binary, broken, tree, tree / "none"):
        code, document = invoke("--dry-run", "--fragment", str(bad))
        assert code == document["exit_code"] == 2, bad


@pytest.mark.parametrize(
    ("content", "symbols"),
    [
        ("CONFIG_HID=y\r\n# CONFIG_USB is not set\r\n".encode("utf-16"), {"HID": "y", "USB": "n"}),
        ("CONFIG_HID=y\n".encode("utf-16-be"), None),  # without a mark nothing tells what it is
        (b"\xef\xbb\xbfCONFIG_HID=y\n", {"HID": "y"}),
        (b'# \xe9t\xe9\nCONFIG_LOCALVERSION="-\xe9"\n', {"LOCALVERSION": '"-\u00e9"'}),
        (b"# nothing\n\n", {}),
        (b"", {}),
        (b"\x7fELF\2\1\1\0", None),
    ],
)
def test_what_other_editors_write_is_read(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    content: bytes,
    symbols: dict[str, str] | None,
) -> None:
    file = tmp_path / "user.config"
    file.write_bytes(content)
    if symbols is None:
        with pytest.raises(UserError, match=r"user\.config is not a text"):
            fragments.merge([file])
        return
    asked = fragments.merge([file])
    assert {each.symbol: each.value for each in asked.values()} == symbols
    describe_files([file])
    assert ("asks for nothing" in capsys.readouterr().err) == (not symbols)
