# SPDX-License-Identifier: MIT
"""The doctor on what a virtual board really said, healthy and with faults put in.

``doctor/*.txt`` were captured on virtual-a311d; its device tree, mostly the same, is in ``fdt.txt``.
(The section ``mesa`` came later: what was in Python's answer then was moved there. So did ``elsewhere``
and the sections after ``mesa``, from another boot; the lines of ``cards`` and ``by_path`` are as udev's
rules make them.)
Where a fault cannot be had there (a vendor's driver, a SoC with clocks), sections of a captured text are
replaced: a stand-in, and named so.
"""

from __future__ import annotations

import base64
import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bsp.base.errors import InfrastructureError
from bsp.boot_survey.facts import facts_of
from bsp.catalog import load_board, load_soc, npu_of
from bsp.profile import Board
from tests.bsp.dts.trees import IMX8MP, IMX8MP_DOMAIN, IMX8MP_NPU, compiled, switched_off
from userspace.npu.doctor import checks, doctor
from userspace.npu.doctor.facts import (
    parse_config,
    parse_facts,
    parse_genpd,
    script,
    without_unused,
)

CAPTURED = Path(__file__).parent / "captured"
SURVEYED = Path(__file__).parents[2] / "bsp" / "boot_survey" / "captured"
FDT = (CAPTURED / "fdt.txt").read_text()
ORDER = [
    "compatible", "stack", "boot-script", "kernel", "node", "status", "owners", "power-domain", "supplies",
    "clocks", "config", "memory", "module", "probe", "identity", "container", "device-node", "permissions",
    "libc", "vendor-runtime", "library", "delegate-driver", "mesa", "runtime", "model", "displays",
]  # fmt: skip


def captured(name: str, *, fdt: str | None = FDT, **sections: str) -> str:
    """A captured text; ``sections`` replace its sections of these names."""
    text = (CAPTURED / f"{name}.txt").read_text()
    for section, content in {**({"fdt": fdt} if fdt else {}), **sections}.items():
        before, mark, rest = text.partition(f"@@section {section}\n")
        after = rest[rest.index("@@section ") :]
        text = f"{before}{mark}{content.rstrip()}\n{after}"
    return text


def judged(text: str, *, wanted: Board | None = None) -> Any:
    return doctor.judge(parse_facts(text), wanted=wanted, host="desk")


def check(document: Any, name: str) -> Any:
    return next(dict(each) for each in document["checks"] if each["name"] == name)


def test_a_healthy_board() -> None:
    document = judged(captured("healthy"))
    assert [each["name"] for each in document["checks"]] == ORDER
    assert {each["status"] for each in document["checks"]} == {"ok"}
    assert (document["first_broken"], document["verdict"]) == (None, "healthy")
    assert (document["board"], document["stack"]) == ("virtual-a311d", "etnaviv")
    assert document["generation"] == "ca438874337b"
    for each in document["checks"]:
        assert set(each) == {"name", "status", "found", "expected", "next"}
    assert max(map(len, doctor.text(document).splitlines())) <= 80


def test_a_mesa_that_was_built_here_is_named_with_its_patches() -> None:
    document = judged(captured("healthy", mesa="25.0.7+npu-bsp0.2.0.p25"))
    found = check(document, "mesa")
    assert (found["status"], found["found"]) == ("ok", "Mesa 25.0.7 + 25 patches of npu-bsp 0.2.0")


@pytest.mark.parametrize(
    ("name", "first", "found", "command"),
    [
        ("disabled", "status", "disabled", "./inv deploy --host desk"),
        ("blacklisted", "module", "blacklisted", "modprobe etnaviv"),
        ("node-mode", "permissions", "mode 600", "chgrp render"),
        ("no-library", "library", "has none", "./inv deploy --host desk"),
        ("old-mesa", "mesa", "Mesa 24.0.7", "./inv deploy --host desk"),
        ("wrong-python", "runtime", "Python 3.13.5", "./inv build-userspace"),
    ],
)
def test_faults_that_were_put_into_a_virtual_board(
    name: str, first: str, found: str, command: str
) -> None:
    document = judged(captured(name, fdt=None if name == "disabled" else FDT))
    assert document["first_broken"] == first
    assert found in check(document, first)["found"]
    assert command in document["next"]
    assert document["next"] == check(document, first)["next"]


@pytest.mark.parametrize(
    ("layout", "next_command"),
    [
        ("npu-bsp", "./inv deploy --host desk"),
        ("armbian-vim3", "./inv deploy --host desk --adopt  # once; then without --adopt"),
        ("toradex", "./inv deploy --host desk --adopt  # once; then without --adopt"),
        ("", "./inv deploy --host desk --adopt  # once; then without --adopt"),
        ("haos", "./inv deploy --host desk --adopt --dry-run  # says how"),
        ("torizon", "./inv deploy --host desk --adopt --dry-run  # says how"),
    ],
)
def test_a_board_that_boots_in_another_way_is_adopted_first(layout: str, next_command: str) -> None:
    ours = re.search(r"@@section cmdline\n(.*)", captured("disabled", fdt=None))
    assert ours
    cmdline = ours[1] if layout == "npu-bsp" else re.sub(r"npu_bsp\.\S+", "", ours[1])
    facts = parse_facts(captured("disabled", fdt=None, cmdline=cmdline))
    boot = None
    if layout:
        boot = facts_of(tomllib.loads((SURVEYED / f"{layout}.toml").read_text())["facts"])
    document = doctor.judge(facts, host="desk", boot=boot)
    assert document["first_broken"] == "status"
    assert document["next"].startswith(next_command)
    # The same for a kernel that is too old: flags of a deployment come after the adoption.
    facts = parse_facts(captured("healthy", kernel="6.1.0-35-arm64", cmdline=cmdline))
    found = check(doctor.judge(facts, host="desk", boot=boot), "kernel")["next"]
    assert found == (f"{next_command} --kernel 6.12" if layout == "npu-bsp" else document["next"])


STAND_INS = [
    ("kernel", "6.1.0-35-arm64", "kernel", "etnaviv_hwdb.c"),
    ("modules", "galcore", "stack", "galcore"),
    ("memory", "CmaTotal:  65536 kB\nCmaFree:  0 kB", "memory", "0 of 65536 KiB"),
    ("memory", "CmaTotal:  0 kB\nCmaFree:  0 kB", "memory", "0 of 0 KiB"),
    ("config", "# CONFIG_DRM_ETNAVIV is not set", "config", "DRM_ETNAVIV"),
    ("render_nodes", "", "device-node", "none"),
    ("python", "", "runtime", "no python3"),
]


@pytest.mark.parametrize(("section", "content", "first", "found"), STAND_INS)
def test_faults_that_text_stands_in_for(section: str, content: str, first: str, found: str) -> None:
    document = judged(captured("healthy", **{section: content}))
    assert document["first_broken"] == first
    assert found in check(document, first)["found"]
    assert document["next"]


def imx8mp(tmp_path: Path, *more: str) -> Any:
    """Judge an EVK whose tree is a small one, with more in it."""
    source = IMX8MP.replace("polyhex,imx8mp-debix-model-a", "fsl,imx8mp-evk")
    blob = compiled(tmp_path / "it.dtb", source, "".join(more)).read_bytes()
    return judged(captured("evk-clock", fdt=base64.encodebytes(blob).decode()))


def test_what_the_bootloader_switched_off(tmp_path: Path) -> None:
    assert check(imx8mp(tmp_path), "status")["status"] == "ok"
    lite = imx8mp(tmp_path, switched_off(IMX8MP_NPU), switched_off(IMX8MP_DOMAIN))
    for name, path in (("status", IMX8MP_NPU), ("power-domain", IMX8MP_DOMAIN)):
        found = check(lite, name)
        assert found["status"] == "broken"
        assert f"{path} is disabled" in found["found"]
        assert "U-Boot probably did" in found["found"]
        assert found["next"] == "./inv build-dts --from-host desk"  # which asks
    assert lite["first_broken"] == "status"
    empty = check(imx8mp(tmp_path, switched_off(IMX8MP_NPU, status="")), "status")
    assert "is off (its status is empty)" in empty["found"]
    above = check(imx8mp(tmp_path, switched_off("/soc@0")), "status")
    assert "/soc@0 is disabled" in above["found"]
    provider = "/soc@0/bus@30000000/clock-controller@30380000"
    assert provider in check(imx8mp(tmp_path, switched_off(provider)), "status")["found"]


def test_a_node_that_no_driver_can_take(tmp_path: Path) -> None:
    broken = check(imx8mp(tmp_path, "&npu { /delete-property/ interrupts; };"), "node")
    assert broken["status"] == "broken"
    assert f"{IMX8MP_NPU} has no interrupts" in broken["found"]
    assert check(imx8mp(tmp_path), "node")["status"] == "ok"


def test_two_owners_of_one_npu(tmp_path: Path) -> None:
    vipsi = (
        'vipsi@38500000 { compatible = "fsl,imx8-vipsi"; reg = <0 0x38500000 0 0x20000>; STATUS };'
    )
    found = check(imx8mp(tmp_path, "/ { " + vipsi.replace("STATUS", "") + " };"), "owners")
    assert found["status"] == "broken"
    assert IMX8MP_NPU in found["found"]
    assert "/vipsi@38500000 (fsl,imx8-vipsi, for galcore, at the same registers)" in found["found"]
    off = "/ { " + vipsi.replace("STATUS", 'status = "disabled";') + " };"
    assert check(imx8mp(tmp_path, off), "owners")["status"] == "ok"


def test_a_driver_that_has_found_the_npu_knows_it_whatever_the_kernel() -> None:
    """No released kernel knows the T527's NPU; one of one's own may."""
    board = "xunlong,orangepi-4a\nallwinner,sun55i-t527"
    assert check(judged(captured("healthy", compatible=board)), "kernel")["status"] == "ok"
    nothing = judged(captured("healthy", compatible=board, python=""))
    assert check(nothing, "kernel")["status"] == "broken"
    assert "as far as is known of released kernels" in check(nothing, "kernel")["found"]


def test_a_driver_that_was_backported_to_an_old_kernel() -> None:
    """That the NPU came up is a better witness than the kernel's number."""
    old = {"compatible": "khadas,vim3\namlogic,a311d", "kernel": "6.1.92-vendor"}
    assert check(judged(captured("healthy", **old)), "kernel")["status"] == "ok"
    without = check(judged(captured("healthy", **old, python="")), "kernel")
    assert (without["status"], without["expected"]) == ("broken", "Linux 6.7 or later")


@pytest.mark.parametrize(
    ("board", "kernel", "flag"),
    [
        ("khadas,vim3\namlogic,a311d", "6.1.92", "--kernel 6.12"),
        ("radxa,rock-5b\nrockchip,rk3588", "6.12.9", "--kernel 7.3"),
        ("fsl,imx93-11x11-evk\nfsl,imx93", "6.12.9", "--kernel 7.3"),
    ],
)
def test_the_kernel_to_take_knows_the_npu(board: str, kernel: str, flag: str) -> None:
    sections = {"compatible": board, "kernel": kernel, "python": "", "render_nodes": "", "log": ""}
    text = captured("healthy", model="a model", **sections)
    found = check(judged(text), "kernel")
    assert (found["status"], found["next"]) == ("broken", f"./inv deploy --host desk {flag}")


ROCKET = "rocket fdab0000.npu: Rockchip NPU core 0 version: 1179210309\n"


@pytest.mark.parametrize(
    ("log", "status", "found"),
    [
        (ROCKET, "ok", "core 0 version"),
        (f"rocket fdab0000.npu: failed to get clocks for core 0\n{ROCKET}", "ok", "core 0 version"),
        (f"{ROCKET}rocket fdab0000.npu: NPU job timed out\n", "broken", "timed out"),
        (
            "rocket fdab0000.npu: failed to get clocks for core 0\n",
            "broken",
            "failed to get clocks",
        ),
    ],
)
def test_what_rocket_says(log: str, status: str, found: str) -> None:
    cores = "".join(
        f"{each}.npu /npu@{each} rocket- 0 active\n"
        for each in ("fdab0000", "fdac0000", "fdad0000")
    )
    board = "radxa,rock-5b\nrockchip,rk3588"
    probe = check(judged(captured("healthy", compatible=board, devices=cores, log=log)), "probe")
    assert probe["status"] == status
    assert found in probe["found"]


def test_a_gpu_with_the_npus_driver_is_not_taken_for_the_npu() -> None:
    """An i.MX 8M Plus has two GPUs that Etnaviv drives, too; here the NPU's node is off."""
    log = (
        "etnaviv-gpu 38000000.gpu: model: GC7000, revision: 6204\n"
        "etnaviv-gpu 38008000.gpu: model: GC520, revision: 5341\n"
    )
    npu = "etnaviv-gpu 38500000.npu: model: GC8000, revision: 8002\n"
    off = check(judged(captured("evk-clock", fdt=None, log=log)), "identity")
    assert off["status"] == "unknown"
    for order in (log + npu, npu + log):
        found = check(judged(captured("evk-clock", fdt=None, log=order)), "identity")
        assert (found["status"], found["found"]) == ("ok", "GC8000 r8002 (from the kernel's log)")


def test_a_log_whose_beginning_is_overwritten_does_not_say_that_nothing_was_cut() -> None:
    """Unused regulators are cut half a minute after the boot; the log is a ring."""
    nothing = {"render_nodes": "", "devices": ""}
    for said, status in (("yes\n", "ok"), ("yes\nbegins late\n", "unknown")):
        document = judged(captured("healthy", log_readable=said, **nothing))
        assert check(document, "supplies")["status"] == status
        came_up = judged(captured("healthy", log_readable=said))
        assert check(came_up, "supplies")["status"] == "ok"


@pytest.mark.parametrize(
    ("first", "late"),
    [("[    0.000000] Booting Linux", False), ("[12345.678901] npu", True), ("Booting", False)],
)
def test_where_a_log_begins(tmp_path: Path, first: str, late: bool) -> None:
    fake = tmp_path / "dmesg"
    fake.write_text(f"#!/bin/sh\necho '{first}'; echo '[12346.000000] more'\n")
    fake.chmod(0o755)
    answer = subprocess.run(
        ["sh", "-s"], input=script(str(tmp_path)), capture_output=True, check=True,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert parse_facts(answer.stdout.decode()).log_begins_late is late


def test_two_owners_where_only_root_may_read_the_whole_tree() -> None:
    """Then the script sends the nodes of NPUs alone, a vendor's too."""
    assert "amlogic, galcore" in script().decode().splitlines()[1]
    nodes = {
        f"{IMX8MP_NPU}/compatible": b"vivante,gc\0",
        "/vipsi@38500000/compatible": b"fsl,imx8-vipsi\0",
    }
    rows = "\n".join(f"{path} {value.hex()}" for path, value in nodes.items())
    document = judged(captured("evk-clock", fdt="", nodes=rows))
    assert check(document, "owners")["status"] == "broken"


def test_what_cannot_be_seen_is_unknown_and_breaks_nothing() -> None:
    document = judged(captured("healthy", fdt="", clk_summary="", memory="", log="", genpd=""))
    unknown = [each["name"] for each in document["checks"] if each["status"] == "unknown"]
    assert unknown == ["node", "status", "owners", "power-domain", "clocks", "memory"]
    assert document["first_broken"] is None


def test_a_board_without_profile_is_pointed_at_new_board() -> None:
    document = judged(captured("healthy", compatible="acme,board\n"))
    assert document["board"] is None
    assert check(document, "compatible")["status"] == "unknown"
    assert "new-board" in check(document, "compatible")["next"]


def test_the_inventory_and_the_board_disagree() -> None:
    document = judged(captured("healthy"), wanted=load_board("vim3"))
    assert document["first_broken"] == "compatible"
    assert "khadas,vim3" in check(document, "compatible")["expected"]


def test_a_board_without_npu() -> None:
    document = judged(captured("healthy", compatible="linux,dummy-virt\n"))
    assert document["board"] == "virtual"
    assert document["first_broken"] == "node"


# A stand-in for a board with clocks: an A311D's, on the virtual board's device, whose clock is fixed.
def test_a_clock_at_another_rate_than_the_profile_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    virtual = npu_of(load_board("virtual-a311d"))
    real = load_soc("a311d").npu
    assert virtual
    assert real
    with_clocks = msgspec.structs.replace(virtual, clocks=real.clocks)
    monkeypatch.setattr(checks, "npu_of", lambda _: with_clocks)
    assert judged(captured("healthy"))["first_broken"] is None
    slow = (CAPTURED / "healthy.txt").read_text()
    rows = re.search(r"@@section clk_summary\n(.*?)@@section", slow, re.DOTALL)
    assert rows
    document = judged(captured("healthy", clk_summary=rows[1].replace("800000000", "24000000 ")))
    assert document["first_broken"] == "clocks"
    assert check(document, "clocks")["found"].startswith("core 24 MHz (npu)")
    assert "core 800 MHz" in check(document, "clocks")["expected"]


@pytest.mark.parametrize(
    ("log", "first", "found"),
    [
        (
            "etnaviv-gpu 10000000.npu: model: GC0, revision: 0\n"
            "etnaviv-gpu 10000000.npu: Unknown GPU model\n"
            "etnaviv-gpu 10000000.npu: hw init failed: -6\n",
            "probe",
            "hw init failed",
        ),
        (
            "etnaviv-gpu 10000000.npu: model: GC8000, revision: 7120\n"
            "etnaviv-gpu 10000000.npu: recover hung GPU!\n",
            "probe",
            "recover hung GPU!",
        ),
        (
            "etnaviv-gpu 10000000.npu: hw init failed: -6\n"
            "etnaviv-gpu 10000000.npu: model: GC8000, revision: 7120\n",
            None,
            "",
        ),
    ],
)
def test_what_the_driver_says(log: str, first: str | None, found: str) -> None:
    document = judged(captured("healthy", log=log))
    assert document["first_broken"] == first
    if first:
        assert found in check(document, first)["found"]


def test_a_clock_at_the_wrong_rate_in_qemu_s_imx8mp_evk() -> None:
    """Captured in QEMU, booted with a device tree that asks for 400 MHz.

    Of tree and clocks, what does not concern the NPU was taken out. QEMU has no NPU there: it reads as GC0.
    """
    document = judged(captured("evk-clock", fdt=None))
    assert (document["board"], document["first_broken"]) == ("imx8mp-evk", "clocks")
    assert check(document, "power-domain")["found"] == "mlmix (on)"
    assert check(document, "clocks")["found"].startswith("core 400 MHz (npu_root_clk)")
    assert "core 800 MHz or more" in check(document, "clocks")["expected"]
    assert "Unknown GPU model" in check(document, "probe")["found"]
    assert "no clock or no power" in check(document, "identity")["found"]


def test_another_npu_than_the_profile_says() -> None:
    text = captured("healthy").replace('"revision": 28960', '"revision": 32770')
    document = judged(text)
    assert document["first_broken"] == "identity"
    assert "r8002" in check(document, "identity")["found"]


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ('"max_difference": 0', '"max_difference": 9', "9 off"),
        ('"constant": false', '"constant": true', "constant"),
        ("teflon: compiled graph", "teflon: gave up on graph", "took nothing"),
    ],
)
def test_a_convolution_that_goes_wrong(old: str, new: str, found: str) -> None:
    text = captured("healthy")
    assert old in text
    document = judged(text.replace(old, new))
    assert document["first_broken"] == "model"
    assert found in check(document, "model")["found"]


def test_an_ordinary_user_outside_the_group() -> None:
    node = "/dev/dri/renderD128 etnaviv 660 root render none"
    document = judged(captured("healthy", user="1000\nme users", render_nodes=node))
    assert document["first_broken"] == "permissions"
    assert "usermod -aG render" in document["next"]


def test_who_may_not_read_the_whole_tree_still_sees_the_node() -> None:
    rows = "\n".join(
        f"/npu@10000000/{name} {value.hex()}"
        for name, value in (
            ("compatible", b"vivante,gc\0"), ("status", b"disabled\0"), ("clock-names", b"core\0"),
        )
    )  # fmt: skip
    document = judged(captured("healthy", fdt="", nodes=rows))
    assert document["first_broken"] == "status"


def test_parsers() -> None:
    assert parse_config(["CONFIG_A=m", "# CONFIG_B is not set", "junk"]) == {"A": "m", "B": "n"}
    rows = [
        "domain                          status          children        performance",
        "    /device                         runtime status                  managed by",
        "-" * 70,
        "mlmix                           on                                              0",
        "    38500000.npu                    suspended                   0           SW",
    ]
    assert parse_genpd(rows) == {"38500000.npu": ("mlmix", "on")}
    with pytest.raises(InfrastructureError, match="cut short"):
        parse_facts("@@section machine\naarch64\n")


def test_only_what_the_board_runs_of_the_runner_is_sent() -> None:
    source = (
        "import base64\nimport os, sys\nfrom pathlib import Path\nHERE, LIMIT = Path('.'), 5\nOTHER = 1\n"
        "def used(): return helper(LIMIT)\ndef helper(x): return os.path.join(str(HERE), str(x))\n"
        "def unused(): return base64, sys\n"
    )
    kept = without_unused(source, {"used"})
    assert kept.splitlines()[:3] == [
        "import os",
        "from pathlib import Path",
        "HERE, LIMIT = (Path('.'), 5)",
    ]
    assert not any(word in kept for word in ("base64", "import sys", "unused", "OTHER"))
    names: Any = {}
    exec(kept, names)
    assert names["used"]() == "./5"


def test_the_script_here_and_nobody_opens_a_node_without_cores(tmp_path: Path) -> None:
    fake = tmp_path / "dmesg"
    fake.write_text(
        "#!/bin/sh\necho '[ 1.0] etnaviv-gpu 1.npu: model: GC0, revision: 0'\n"
        "echo '[ 1.0] etnaviv-gpu 1.npu: hw init failed: -6'\n"
    )
    fake.chmod(0o755)
    done = subprocess.run(
        ["sh", "-s"],
        input=script("/nowhere"),
        capture_output=True,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        timeout=60,
        check=False,
    )
    facts = parse_facts(done.stdout.decode())
    assert facts.python is not None, facts.python_said
    assert facts.python["devices"] is None  # not looked into
    assert facts.log[-1] == "etnaviv-gpu 1.npu: hw init failed: -6"
    assert facts.kernel == os.uname().release
    document = doctor.judge(facts)
    assert document["first_broken"]
