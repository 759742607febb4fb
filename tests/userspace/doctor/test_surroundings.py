# SPDX-License-Identifier: MIT
"""The doctor on what surrounds an NPU: containers, C libraries, vendors' runtimes, boot files, displays.

Where virtual boards do not have it (a display, a regulator, musl, a container), sections of a captured text
are replaced: stand-ins, in the words of the tools that print them.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from bsp.catalog import load_soc
from bsp.dts.tree import Tree
from userspace.npu.doctor import checks, device_tree, software, surroundings
from userspace.npu.doctor.check import Outcome
from userspace.npu.doctor.facts import Device, Facts, RenderNode, parse_facts, script
from userspace.npu.doctor.subject import Subject
from userspace.npu.doctor.system import parse_system

from .test_doctor import captured, check, judged

OWN = "console=ttyS0 root=LABEL=root"
ETNAVIV = "/dev/dri/renderD128 etnaviv 660 root render rw"
PANFROST = "/dev/dri/renderD129 panfrost 660 root render rw"
NOTHING = '@@json {"python": "3.12.3", "devices": [], "library": null, "runtime_error": "no"}'
GPU_AND_NPU = {
    "render_nodes": f"{ETNAVIV}\n{PANFROST}",
    "cards": "/dev/dri/card0 meson-drm display\n/dev/dri/card1 etnaviv none\n/dev/dri/card2 panfrost none",
}


# --- who owns which device node --------------------------------------------------------------


def test_a_desktop_beside_an_npu_and_the_rule_that_keeps_them_apart() -> None:
    document = judged(captured("healthy", **GPU_AND_NPU, displays="/usr/lib/xorg/Xorg"))
    assert document["first_broken"] == "displays"
    found = check(document, "displays")
    assert "etnaviv: /dev/dri/renderD128 (platform-etnaviv-render)" in found["found"]
    assert "panfrost: /dev/dri/renderD129" in found["found"]
    assert "Xorg may draw /dev/dri/card0 (meson-drm) with the NPU" in found["found"]
    tool, host, command = shlex.split(found["next"])  # the shell here takes it for one word
    assert (tool, host) == ("ssh", "desk")
    subprocess.run(["sh", "-n", "-c", command], check=True)
    assert 'GROUP="npu"' in command
    assert 'ENV{ID_SEAT}="seat-npu"' in command
    alone = {**GPU_AND_NPU, "render_nodes": f"{ETNAVIV.replace('render ', 'npu ')}\n{PANFROST}"}
    after = judged(captured("healthy", **alone, displays="/usr/lib/xorg/Xorg"))
    assert after["first_broken"] is None
    assert "for the group npu alone" in check(after, "displays")["found"]


def test_without_a_desktop_the_owners_are_said_and_nothing_is_broken() -> None:
    document = judged(captured("healthy", **GPU_AND_NPU))
    assert document["first_broken"] is None
    assert "who takes the first node takes the NPU" in check(document, "displays")["found"]
    assert "by-path/platform-etnaviv-render" in check(document, "device-node")["found"]


def test_an_npu_behind_the_same_node_as_a_gpu_is_no_intruder() -> None:
    """i.MX 8M Plus: etnaviv draws there."""
    devices = (
        "38000000.gpu /soc@0/gpu@38000000 etnaviv-gpu- 0 suspended\n"
        "10000000.npu /npu@10000000 etnaviv-gpu- 0 suspended"
    )
    given = {**GPU_AND_NPU, "devices": devices, "displays": "/usr/bin/weston"}
    document = judged(captured("healthy", **given))
    assert document["first_broken"] is None
    assert "the same device has a GPU" in check(document, "displays")["found"]


# --- the delegate, the runtime, the C library ------------------------------------------------


def on_rk3588(text: str) -> Subject:
    """The facts of a captured text, as those of an RK3588 with rocket."""
    node = RenderNode("/dev/accel/accel0", "rocket", "660", "root", "render", "rw")
    facts = replace(parse_facts(text), render_nodes=(node,), modules=("rocket",))
    return Subject(facts, None, load_soc("rk3588").npu, host="desk")


def test_a_delegate_without_the_driver_that_the_npu_needs() -> None:
    status, found, expected, command = software.delegate_driver(on_rk3588(captured("healthy")))
    assert status == "broken"
    assert "has only etnaviv" in found
    assert "rocket" in expected
    assert command == "./inv deploy --host desk"
    text = captured("healthy", delegate_drivers="etnaviv\nrocket\nethosu")
    assert software.delegate_driver(on_rk3588(text))[0] == "ok"
    assert (
        software.delegate_driver(on_rk3588(captured("healthy", delegate_drivers="")))[0]
        == "unknown"
    )


@pytest.mark.parametrize(
    ("file", "driver"),
    [
        ("/usr/lib/librknnrt.so", "rknpu"),
        ("/usr/local/lib/python3.12/dist-packages/rknnlite", "rknpu"),
        ("/usr/lib/aarch64-linux-gnu/libGAL.so", "galcore"),
        ("/usr/lib/libVIPlite.so", "vipcore"),
    ],
)
def test_a_runtime_that_speaks_only_the_vendor_s_driver(file: str, driver: str) -> None:
    lacks = {"libraries": "", "payload": "", "mesa": "", "delegate_drivers": "", "python": NOTHING}
    document = judged(captured("healthy", **lacks, vendor_libraries=file))
    assert document["first_broken"] == "vendor-runtime"
    assert f"{file} speaks only {driver}" in check(document, "vendor-runtime")["found"]
    beside = judged(captured("healthy", vendor_libraries=file))
    assert beside["first_broken"] is None
    assert "libteflon.so is there, too" in check(beside, "vendor-runtime")["found"]


@pytest.mark.parametrize("driver", ["rknpu", "galcore", "vipcore"])
def test_a_vendor_s_driver_holds_the_npu(driver: str) -> None:
    document = judged(captured("healthy", modules=driver, render_nodes=""))
    assert (document["first_broken"], document["stack"]) == ("stack", driver)
    assert f"{driver}, the vendor's driver" in check(document, "stack")["found"]


def test_musl() -> None:
    document = judged(captured("healthy", libc="/lib/ld-musl-aarch64.so.1"))
    assert document["first_broken"] == "libc"
    assert "/lib/ld-musl-aarch64.so.1" in check(document, "libc")["found"]
    assert "--device /dev/dri/renderD128" in document["next"]


def test_a_delegate_where_nobody_looks() -> None:
    place = "/usr/lib/aarch64-linux-gnu/libteflon.so"
    document = judged(captured("healthy", libraries="", payload="", elsewhere=place))
    assert document["first_broken"] == "library"
    assert place in check(document, "library")["found"]
    assert f"ln -s {place} /usr/lib/teflon/libteflon.so" in document["next"]


# --- containers ------------------------------------------------------------------------------

HIDDEN = {
    "container": "docker", "model": "", "compatible": "", "fdt": "", "devices": "", "log": "",
    "log_readable": "", "clk_summary": "", "cmdline": OWN, "payload": "", "manifest": "", "boot_files": "",
    "mounts": "", "by_path": "", "python": NOTHING.replace(', "runtime_error": "no"', ', "runtime": "r"'),
    "libraries": "/usr/lib/teflon/libteflon.so",
}  # fmt: skip


@pytest.mark.parametrize(
    ("fault", "found", "command"),
    [
        ({"render_nodes": "/dev/dri/renderD128 etnaviv absent - - none"},
         "was not given to it", "--device /dev/dri/renderD128"),
        ({"render_nodes": "/dev/dri/renderD128 etnaviv 660 root UNKNOWN none", "user": "1000\napp"},
         "may not open", '--group-add "$(stat -c %g /dev/dri/renderD128)"'),
        ({"libraries": ""}, "/usr/lib/teflon/libteflon.so is not in it", "--volume /usr/lib/teflon"),
        ({"libraries": "", "elsewhere": "/opt/x/libteflon.so"},
         "only /opt/x/libteflon.so", "ln -s /opt/x/libteflon.so /usr/lib/teflon/libteflon.so"),
    ],
)  # fmt: skip
def test_a_container_that_lacks_something(fault: dict[str, str], found: str, command: str) -> None:
    document = judged(captured("healthy", **{**HIDDEN, **fault}))
    assert document["first_broken"] == "container", document["checks"]
    assert found in check(document, "container")["found"]
    assert command in document["next"]
    assert not document["next"].startswith("ssh desk udevadm")


@pytest.mark.parametrize(
    ("rows", "command"),
    [
        ("podman", "podman run --device /dev/dri/renderD128"),
        ("libpod", "podman run --device /dev/dri/renderD128"),
        ("lxc", "lxc.mount.entry = /dev/dri/renderD128 dev/dri/renderD128 none"),
        ("systemd-nspawn", "systemd-nspawn --bind=/dev/dri/renderD128"),
        ("kubernetes\ncontainerd", "hostPath volume for /dev/dri/renderD128"),
        ("kubepods", "hostPath volume for /dev/dri/renderD128"),
    ],
)
def test_each_kind_of_container_gets_the_device_in_its_own_way(rows: str, command: str) -> None:
    absent = "/dev/dri/renderD128 etnaviv absent - - none"
    document = judged(captured("healthy", **{**HIDDEN, "container": rows, "render_nodes": absent}))
    assert document["first_broken"] == "container", document["checks"]
    assert command in document["next"]


def test_a_container_that_has_all_of_it_hides_the_device_tree_and_that_breaks_nothing() -> None:
    document = judged(captured("healthy", **HIDDEN))
    assert document["first_broken"] is None, document["checks"]
    assert check(document, "compatible")["status"] == "unknown"
    assert "docker: device, group and library" in check(document, "container")["found"]


def test_a_payload_in_a_container_brings_its_own_library() -> None:
    own = "/run/npu-bsp/current/userspace"
    given = {**HIDDEN, "libraries": f"{own}/lib/libteflon.so", "payload": own}
    assert check(judged(captured("healthy", **given)), "container")["status"] == "ok"


def test_no_device_at_all_in_a_container_does_not_blame_the_container() -> None:
    document = judged(captured("healthy", **HIDDEN, render_nodes=""))
    assert check(document, "container")["status"] == "unknown"
    assert document["first_broken"] == "device-node"


# --- regulators ------------------------------------------------------------------------------

# Linux drivers/regulator/core.c: rdev_info(rdev, "disabling\n").
CUT = "[   31.824117] vdd_npu_s0: disabling\n[   31.830001] vcc_3v3_pcie: disabling"


def a_rocket(*, driver: str, cut: str, node: bool, built_in: bool = False) -> Subject:
    def cell(number: int) -> bytes:
        return number.to_bytes(4, "big")

    npu = load_soc("rk3588").npu
    assert npu
    controller = "/syscon@fd8d8000/power-controller"
    nodes = {
        "/": {},
        npu.node: {"power-domains": cell(1) + cell(9)},
        "/syscon@fd8d8000": {},
        controller: {"phandle": cell(1)},
        f"{controller}/power-domain@8": {"reg": cell(8), "domain-supply": cell(2)},
        f"{controller}/power-domain@8/power-domain@9": {"reg": cell(9)},
        "/regulator": {"phandle": cell(2), "regulator-name": b"vdd_npu_s0\0"},
    }
    subject = on_rk3588(captured("healthy", regulators=cut))
    file = f"kernel/drivers/accel/rocket/rocket.ko{'' if built_in else '.xz'}"
    facts = replace(
        subject.facts,
        tree=Tree(nodes),
        devices=(Device("fdab0000.npu", npu.node, driver, False, "suspended"),),
        module_files=(file,),
        render_nodes=subject.facts.render_nodes if node else (),
    )
    return replace(subject, facts=facts)


def test_rocket_as_a_module_after_its_regulator_was_cut() -> None:
    status, found, _, command = device_tree.supplies(a_rocket(driver="", cut=CUT, node=False))
    assert status == "broken"
    assert (
        "vdd_npu_s0 was cut as unused after 31.8 s, before rocket came up (rocket is a module)"
        in found
    )
    assert "/etc/initramfs-tools/modules" in command


def test_regulators_that_were_cut_and_are_none_of_the_npu_s_or_came_back() -> None:
    others = "[   31.830001] vcc_3v3_pcie: disabling"
    assert device_tree.supplies(a_rocket(driver="", cut=others, node=False))[0] == "ok"
    back = device_tree.supplies(a_rocket(driver="rocket", cut=CUT, node=True))
    assert back[:2] == (
        "ok", "vdd_npu_s0 was cut as unused after 31.8 s; rocket came up all the same",
    )  # fmt: skip


def test_the_domain_s_regulator_is_found_by_the_tree_and_not_by_its_name() -> None:
    subject = a_rocket(driver="", cut=CUT.replace("vdd_npu_s0", "dcdc-reg2"), node=False)
    assert subject.facts.tree
    nodes = {**subject.facts.tree.nodes}
    nodes["/regulator"] = {**nodes["/regulator"], "regulator-name": b"dcdc-reg2\0"}
    renamed = replace(subject, facts=replace(subject.facts, tree=Tree(nodes)))
    assert device_tree.supplies(renamed)[0] == "broken"
    assert device_tree.supplies(subject)[0] == "ok"


# --- boot scripts ----------------------------------------------------------------------------

TWO = "/dev/mmcblk0p1 /boot/firmware vfat rw 0 0\n/dev/mmcblk0p2 / ext4 rw 0 0"
OLD_ON_FIRST = "/boot/firmware/boot.scr 1600000000 foreign"


# As captured on a virtual board on which a boot script was laid behind the first partition's.
LAID_BEHIND = {
    "cmdline": "console=ttyAMA0",
    "boot_files": "/boot/boot.scr 1795871571 foreign\n/boot/firmware/boot.scr 1791654998 ours",
    "mounts": "/dev/vda2 / ext4 rw,relatime 0 0\n/dev/vda1 /boot/firmware vfat rw,relatime,fmask=0077 0 0",
}


def test_a_boot_script_that_was_really_laid_behind_another() -> None:
    document = judged(captured("healthy", **LAID_BEHIND))
    assert document["first_broken"] == "boot-script"
    found = check(document, "boot-script")["found"]
    assert found.startswith("/boot/firmware/boot.scr (partition 1) is older than /boot/boot.scr")


def booted(files: str, *, cmdline: str = OWN, extlinux: str = "", mounts: str = TWO) -> Outcome:
    text = captured("healthy", cmdline=cmdline, boot_files=files, extlinux=extlinux, mounts=mounts)
    return surroundings.boot_script(Subject(parse_facts(text), None, None, host="desk"))


def test_boot_files_that_a_container_does_not_see_are_not_right() -> None:
    text = captured("healthy", container="docker\n", boot_files="")
    assert surroundings.boot_script(Subject(parse_facts(text), None, None))[0] == "unknown"


def test_a_boot_script_on_the_first_partition_that_is_older_than_the_one_behind_it() -> None:
    status, found, _, command = booted(f"{OLD_ON_FIRST}\n/boot/boot.scr 1700000000 foreign")
    assert status == "broken"
    assert "/boot/firmware/boot.scr (partition 1) is older than /boot/boot.scr" in found
    assert command == "ssh desk 'ls -l /boot/firmware/boot.scr /boot/boot.scr'"
    behind = booted(f"{OLD_ON_FIRST}\n/boot/extlinux/extlinux.conf 1700000000 foreign")
    assert behind[0] == "broken"


@pytest.mark.parametrize("by", ["", " npu_bsp.generation=ca438874337b"])
def test_what_u_boot_lacks_for_a_trial_is_said(by: str) -> None:
    status, found, *_ = booted(OLD_ON_FIRST, cmdline=f"{OWN}{by} npu_bsp.lacks=cmp")
    assert status == "ok"
    assert "; deployments cannot be tried there: its U-Boot lacks the command cmp (" in found
    assert "tried" not in booted(OLD_ON_FIRST, cmdline=f"{OWN}{by}")[1]


def test_a_boot_script_beside_the_extlinux_conf_that_booted() -> None:
    files = f"{OLD_ON_FIRST}\n/boot/firmware/extlinux/extlinux.conf 1500000000 foreign"
    status, found, _, command = booted(files, extlinux=f"\tappend {OWN}", cmdline=f"{OWN} more=1")
    assert status == "broken"
    assert "/boot/firmware/extlinux/extlinux.conf has booted it" in found
    assert "mv /boot/firmware/boot.scr" in command
    ours = files.replace("1600000000 foreign", "1600000000 ours")
    assert "--adopt" in booted(ours, extlinux=f"append {OWN}")[3]


@pytest.mark.parametrize(
    ("files", "cmdline", "extlinux"),
    [
        ("", OWN, ""),
        (OLD_ON_FIRST, OWN, ""),
        ("/boot/firmware/boot.scr 1700000000 foreign\n/boot/boot.scr 1600000000 foreign", OWN, ""),
        (f"{OLD_ON_FIRST}\n/boot/boot.scr 1700000000 foreign", f"{OWN} npu_bsp.generation=ca438874337b",
         ""),
        ("/boot/extlinux/extlinux.conf 1600000000 foreign", OWN, f"append {OWN}"),
        (f"{OLD_ON_FIRST}\n/boot/firmware/extlinux/extlinux.conf 1500000000 foreign", OWN,
         "append root=/dev/sda1"),
    ],
)  # fmt: skip
def test_boot_files_that_are_in_order(files: str, cmdline: str, extlinux: str) -> None:
    assert booted(files, cmdline=cmdline, extlinux=extlinux)[0] == "ok"


# --- modules that are kept out -----------------------------------------------------------------


def test_only_what_modprobe_reads_keeps_a_module_out(tmp_path: Path) -> None:
    """Not notes, copies of a package manager, or a driver's name in the path of another's line."""
    given = {
        "rocket.conf": "blacklist ethosu\n# blacklist etnaviv\nblacklist etnaviv_more\n",
        "old.conf.dpkg-old": "blacklist etnaviv\n",
        "notes.conf": "options etnaviv x=1\n",
    }
    for name, content in given.items():
        (tmp_path / name).write_text(content)
    text = script(str(tmp_path)).replace(b"/etc/modprobe.d", str(tmp_path).encode())

    def rows() -> tuple[str, ...]:
        done = subprocess.run(
            ["sh", "-s"], input=text, capture_output=True, timeout=60, check=False
        )
        return parse_facts(done.stdout.decode()).blacklist

    assert rows() == (f"{tmp_path}/rocket.conf:blacklist ethosu",)
    gone = {
        "modules": "",
        "render_nodes": "",
        "blacklist": "/etc/modprobe.d/rocket.conf:blacklist ethosu",
    }
    healthy = check(
        judged(captured("healthy", **{**gone, "module_files": "x/rocket.ko"})), "module"
    )
    assert "blacklisted" not in healthy["found"]
    barred = tmp_path / "distribution.conf"
    barred.write_text("blacklist pcspkr\n  install etnaviv /usr/bin/false\nblacklist floppy\n")
    (row,) = (each for each in rows() if "distribution" in each)
    document = judged(captured("healthy", **{**gone, "blacklist": row}))
    assert document["first_broken"] == "module"
    command = shlex.split(document["next"])[2]
    subprocess.run(["sh", "-c", command.partition(" && ")[0]], check=True)
    assert (
        barred.read_text()
        == "blacklist pcspkr\n#   install etnaviv /usr/bin/false\nblacklist floppy\n"
    )


def test_several_words_of_the_command_line_keep_modules_out() -> None:
    words = f"{OWN} modprobe.blacklist=etnaviv modprobe.blacklist=floppy"
    document = judged(captured("healthy", modules="", render_nodes="", cmdline=words))
    assert "on the kernel's command line" in check(document, "module")["found"]


# --- the script itself -----------------------------------------------------------------------


def asked(payload: Path, **environment: str) -> Facts:
    done = subprocess.run(
        ["sh", "-s"],
        input=script(str(payload)),
        capture_output=True,
        env={**os.environ, **environment},
        timeout=60,
        check=False,
    )
    return parse_facts(done.stdout.decode())


def test_what_the_script_says_here(tmp_path: Path) -> None:
    """Names of drivers count where they are strings of their own; the rest of the library does not."""
    (tmp_path / "lib").mkdir()
    words = (
        b"\x7fELF",
        b"etnaviv_screen_create",
        b"25.3.1-2",
        b"rocket",
        b"etnaviv",
        b"not ethosu",
        b"",
    )
    (tmp_path / "lib/libteflon.so").write_bytes(b"\0".join(words))
    facts = asked(tmp_path, container="podman")
    assert facts.system.delegate_drivers == ("rocket", "etnaviv")
    assert facts.mesa == "25.3.1-2"
    assert facts.system.container
    assert any("libc.so.6" in file for file in facts.system.libc)


def test_sections_that_make_no_sense_are_nothing() -> None:
    rows = {
        name: ["?", "a b c d e f"]
        for name in ("cards", "by_path", "boot_files", "regulators", "mounts")
    }
    system = parse_system(lambda name: rows.get(name, []))
    assert (system.cards, system.by_path, system.boot_files, system.cut) == ((), {}, (), {})


# --- NPUs of other drivers ------------------------------------------------------------------------

RK3588_CORES = (
    "fdab0000.npu /npu@fdab0000 rocket- 0 suspended\n"
    "fdac0000.npu /npu@fdac0000 rocket- 0 suspended\n"
    "fdad0000.npu /npu@fdad0000 {}- 0 suspended"
)


def rk3588(**sections: str) -> Subject:
    """An RK3588 as its kernel would say it: the node's device is "rknn", which no driver is bound to."""
    given = {
        "render_nodes": "/dev/accel/accel0 rknn 660 root render rw",
        "modules": "rocket",
        "devices": RK3588_CORES.format("rocket"),
        "log": "[   7.1] rocket fdab0000.npu: Rockchip NPU core 0 version: 1179210309",
    }
    facts = parse_facts(captured("healthy", **{**given, **sections}))
    return Subject(facts, None, load_soc("rk3588").npu, host="desk")


def test_rockets_device_node_is_known_by_its_facade() -> None:
    """Linux drivers/accel/rocket/rocket_drv.c: one platform device "rknn" for all cores."""
    subject = rk3588()
    assert software.device_node(subject)[:2] == ("ok", "/dev/accel/accel0")
    assert checks.stack(subject.facts) == "rocket"
    probe = dict(checks.CHECKS)["probe"](subject)
    assert probe[0] == "ok", probe
    none = rk3588(render_nodes="")
    assert software.device_node(none)[0] == "broken"
    assert "/dev/accel/accel*" in software.device_node(none)[2]


def test_a_core_that_did_not_come_up_is_named() -> None:
    status, found, *_ = dict(checks.CHECKS)["probe"](rk3588(devices=RK3588_CORES.format("")))
    assert status == "broken"
    assert "fdad0000.npu" in found


def test_a_vendors_driver_holds_the_rk3588s_npu() -> None:
    vendor = rk3588(modules="rknpu", devices="fdab0000.npu /npu@fdab0000 RKNPU- 0 active")
    assert checks.stack(vendor.facts) == "rknpu"


def test_ethosus_device_node() -> None:
    """Linux drivers/accel/ethosu/ethosu_drv.c: the node's device is the NPU itself."""
    nodes = "/dev/accel/accel0 ethosu 660 root render rw"
    facts = parse_facts(captured("healthy", render_nodes=nodes, modules="ethosu"))
    subject = Subject(facts, None, load_soc("imx93").npu, host="desk")
    assert software.device_node(subject)[:2] == ("ok", "/dev/accel/accel0")
    assert checks.stack(facts) == "ethosu"
    assert software.delegate_driver(subject)[0] == "broken"
    assert dict(checks.CHECKS)["memory"](subject)[0] == "ok"
