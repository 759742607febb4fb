# SPDX-License-Identifier: MIT
"""What a board says about its NPU: the commands (``facts.sh``, ``probe.py``) and their pure parser.

One script goes out and one text comes back, so that a slow link costs one round trip.
"""

from __future__ import annotations

import ast
import base64
import functools
import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bsp.base.errors import InfrastructureError, UserError
from bsp.catalog import SOCS_DIR, load_soc
from bsp.dts.tree import Tree, read_tree

from ..model.tflite_file import NO_ACTIVATION, Tensor, conv, write_model
from ..validate.machine import DEPLOYED_USERSPACE, RUNNER
from .system import System, parse_system

_HERE = Path(__file__).parent
_RUNNER_MODULES = ("stage_error.py", "child.py", "devices.py", "environment.py")
"""Where what the probe calls is defined."""
_FACADES = {"rknn": "rocket"}
"""Devices without a driver that stand for several cores (Linux drivers/accel/rocket/rocket_drv.c)."""


@dataclass(frozen=True)
class Device:
    """A platform device that may be an NPU: its node's path, its driver, what it waits for."""

    name: str
    node: str
    driver: str
    waits: bool
    power: str


@dataclass(frozen=True)
class RenderNode:
    """A device node of a render or accelerator driver; ``access`` is what this user may do: r, w, rw."""

    path: str
    driver: str
    mode: str
    owner: str
    group: str
    access: str


@dataclass(frozen=True)
class Facts:
    """What was found. Empty or None is "could not be seen", not "is not so", unless said otherwise.

    Attributes:
        kernel: ``uname -r``.
        tree: the running device tree; of a user who may not read it, only the NPU's nodes.
        domains: device to (power domain, its status).
        config: kernel option to its value (``y``, ``m``, ``n``...); empty: no file was found.
        modules: NPU drivers that are loaded or built in.
        module_files: the kernel's modules of free NPU drivers, those built in too.
        blacklist: lines of modprobe's configuration that keep such a driver out.
        mesa: version that the delegate carries.
        cma_kib: total and free contiguous memory, in KiB.
        log_begins_late: the kernel has overwritten what it said first.
        log: the kernel's lines about NPU and contiguous memory.
        system: what surrounds the NPU: container, C library, displays, boot files.
        python: what ``probe.py`` found; None where it did not run to its end.
        python_said: what it printed instead.
    """

    machine: str
    kernel: str
    user_id: int
    groups: tuple[str, ...]
    has_render_group: bool
    cmdline: str
    model: str
    compatible: tuple[str, ...]
    tree: Tree | None
    devices: tuple[Device, ...]
    deferred: tuple[str, ...]
    domains: dict[str, tuple[str, str]]
    clk_summary: str
    config: dict[str, str]
    modules: tuple[str, ...]
    module_files: tuple[str, ...]
    blacklist: tuple[str, ...]
    cma_kib: tuple[int | None, int | None]
    log_readable: bool
    log_begins_late: bool
    log: tuple[str, ...]
    render_nodes: tuple[RenderNode, ...]
    payload: bool
    payload_python: str | None
    payload_mesa: str | None
    mesa: str
    libraries: tuple[str, ...]
    generation: str | None
    system: System
    python: dict[str, Any] | None
    python_said: str

    def device_at(self, node: str) -> Device | None:
        """Return the platform device of a device-tree node."""
        return next((device for device in self.devices if device.node == node), None)


def script(userspace: str = DEPLOYED_USERSPACE) -> bytes:
    """Return the shell script that asks for everything; it is fed to ``sh -s``."""
    npus = [npu for file in sorted(SOCS_DIR.glob("*.toml")) if (npu := load_soc(file.stem).npu)]
    symbols = sorted({symbol for npu in npus for symbol in npu.kernel_symbols})
    vendors = {word for npu in npus for vendor in npu.vendor for word in vendor.compatible}
    compatibles = sorted({npu.compatible for npu in npus} | vendors)
    probe = (_HERE / "probe.py").read_text(encoding="utf-8")
    constants = {
        "RUNNER": without_unused(_runner_source(), _names_of(probe, "runner")),
        "MODEL": base64.b64encode(one_convolution()).decode(),
        "PAYLOAD": userspace,
    }
    values = "\n".join(f"{name} = {value!r}" for name, value in constants.items())
    future = "from __future__ import annotations"  # has to come first
    return "\n".join(
        [
            f"symbols={shlex.quote('|'.join(symbols))}",
            f"compatibles={shlex.quote(chr(92).join(('', '|')).join(compatibles))}",
            f"payload={shlex.quote(userspace)}",
            "run_python() {",
            f"{{ echo '{future}'; echo \"OPEN_NODE = '$1' == 'yes'\"; cat; }} "
            "<<'NPU_BSP_PROBE' | python3 -S -",
            values,
            probe.replace(future, ""),
            "NPU_BSP_PROBE",
            "}",
            (_HERE / "facts.sh").read_text(encoding="utf-8"),
        ]
    ).encode()


def _sections(text: str) -> dict[str, list[str]]:
    sections: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.replace("\r", "").split("\n"):
        if line.startswith("@@section "):
            lines = sections.setdefault(line[10:].strip(), [])
        else:
            lines.append(line)
    if "end" not in sections:
        last = " | ".join(text.strip().splitlines()[-3:])[-300:]
        raise InfrastructureError(
            f"the board's answer is cut short: {last or 'nothing'}", hint="run it again"
        )
    return sections


def _runner_source() -> str:
    """Return the runner's modules that the probe calls, as one."""
    folder = RUNNER.parent
    return "\n".join((folder / name).read_text(encoding="utf-8") for name in _RUNNER_MODULES)


def _names_of(source: str, module: str) -> set[str]:
    """Return which attributes of ``module`` a program uses."""
    return {
        node.attr
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == module
    }


def without_unused(source: str, names: set[str]) -> str:
    """Return a module with only the functions, classes, constants and imports that ``names`` needs.

    A board takes tenths of a second to compile all of the runner's.
    """
    defines: dict[str, ast.stmt] = {}
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            defines[statement.name] = statement
        elif isinstance(statement, ast.Assign):
            defines |= {
                node.id: statement
                for node in ast.walk(statement)
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
            }
        elif isinstance(statement, ast.Import):
            for alias in statement.names:
                name = (alias.asname or alias.name).partition(".")[0]
                defines[name] = ast.Import([alias])
        elif isinstance(statement, ast.ImportFrom):
            for alias in statement.names:
                name = alias.asname or alias.name
                defines[name] = ast.ImportFrom(statement.module, [alias], statement.level)
    waiting, kept_names = sorted(names), set()
    while waiting:
        name = waiting.pop()
        if name in kept_names or name not in defines:
            continue
        kept_names.add(name)
        used = ast.walk(defines[name])
        waiting += [node.id for node in used if isinstance(node, ast.Name)]
    kept = dict.fromkeys(defines[name] for name in defines if name in kept_names)
    return "\n".join(ast.unparse(statement) for statement in kept)


@functools.cache
def one_convolution() -> bytes:
    """Return a .tflite model of one 3 x 3 convolution, uint8, 1 x 16 x 16 x 8 to the same shape."""
    import numpy as np

    side, channels = 16, 8
    rng = np.random.default_rng(5)
    weights = rng.integers(96, 160, (channels, 3, 3, channels))
    bias = rng.integers(-200, 200, channels)
    scale_in, scale_weights, scale_out = 1 / 64, 1 / 128, 1 / 8
    shape = (1, side, side, channels)
    tensors = [
        Tensor("input", shape, "uint8", scale_in, 128),
        Tensor("weights", weights.shape, "uint8", scale_weights, 128, weights),
        Tensor("bias", bias.shape, "int32", scale_in * scale_weights, 0, bias),
        Tensor("output", shape, "uint8", scale_out, 128),
    ]
    operators = [conv((0, 1, 2), 3, stride=1, activation=NO_ACTIVATION)]
    return write_model(
        tensors, operators, inputs=[0], outputs=[3], description="npu-bsp one convolution"
    )


def parse_facts(text: str) -> Facts:
    """Read what the script has printed.

    Raises:
        InfrastructureError: it was cut off.
    """
    sections = _sections(text)

    def rows(name: str) -> list[str]:
        return [line for line in sections.get(name, []) if line.strip()]

    def first(name: str) -> str:
        return (rows(name) or [""])[0].strip()

    user = rows("user")
    manifest = "\n".join(rows("manifest"))
    python, error_output = _python("\n".join(rows("python")))
    return Facts(
        machine=first("machine"),
        kernel=first("kernel"),
        user_id=int(user[0]) if user and user[0].isdigit() else 0,
        groups=tuple(user[1].split()) if len(user) > 1 else (),
        has_render_group="has group render" in user,
        cmdline=first("cmdline"),
        model=first("model"),
        compatible=tuple(rows("compatible")),
        tree=_tree("".join(rows("fdt")), rows("nodes")),
        devices=tuple(filter(None, map(_device, rows("devices")))),
        deferred=tuple(row.replace("\t", " ") for row in rows("deferred")),
        domains=parse_genpd(rows("genpd")),
        clk_summary="\n".join(rows("clk_summary")),
        config=parse_config(rows("config")),
        modules=tuple(dict.fromkeys(rows("modules"))),
        module_files=tuple(rows("module_files")),
        blacklist=tuple(rows("blacklist")),
        cma_kib=_cma(rows("memory")),
        log_readable=first("log_readable") == "yes",
        log_begins_late="begins late" in rows("log_readable"),
        log=tuple(re.sub(r"^\[ *[\d.]+\] ", "", row) for row in rows("log")),
        render_nodes=tuple(filter(None, map(_render_node, rows("render_nodes")))),
        payload=bool(first("payload")),
        payload_python=_field(manifest, "python"),
        payload_mesa=_field(manifest, "version"),
        mesa=first("mesa"),
        libraries=tuple(rows("libraries")),
        generation=_generation(first("cmdline"), first("generation")),
        system=parse_system(rows),
        python=python,
        python_said=error_output,
    )


def parse_config(rows: list[str]) -> dict[str, str]:
    """Read lines of a kernel configuration; ``n`` is "is not set"."""
    symbols = {}
    for row in rows:
        if match := re.match(r"CONFIG_(\w+)=(.*)", row):
            symbols[match[1]] = match[2]
        elif match := re.match(r"# CONFIG_(\w+) is not set", row):
            symbols[match[1]] = "n"
    return symbols


def parse_genpd(rows: list[str]) -> dict[str, tuple[str, str]]:
    """Read ``/sys/kernel/debug/pm_genpd/pm_genpd_summary``: device to (domain, the domain's status).

    Source: Linux 6.12 drivers/pmdomain/core.c, ``genpd_summary_one``: a device's line is indented.
    """
    domains, domain, status = {}, "", ""
    for row in rows[3:]:  # two lines of heading and a rule
        words = row.split()
        if not row.startswith(" "):
            domain, status = words[0], words[1] if len(words) > 1 else ""
        elif len(words) >= 2:
            domains[words[0].rpartition("/")[2] or words[0]] = (domain, status)
    return domains


def _python(text: str) -> tuple[dict[str, Any] | None, str]:
    for line in text.splitlines():
        if line.startswith("@@json "):
            try:
                answer: dict[str, Any] = json.loads(line[7:])
            except ValueError:
                break
            return answer, ""
    return None, text.strip()


def _tree(blob_base64: str, rows: list[str]) -> Tree | None:
    if blob_base64:
        try:
            return read_tree(base64.b64decode(blob_base64), "/sys/firmware/fdt")
        except (ValueError, UserError):
            return None
    nodes: dict[str, dict[str, bytes]] = {}
    for row in rows:
        path, _, value = row.partition(" ")
        node, _, name = path.rpartition("/")
        try:
            nodes.setdefault(node or "/", {})[name] = bytes.fromhex(value)
        except ValueError:
            continue
    return Tree(nodes) if nodes else None


def _device(row: str) -> Device | None:
    words = row.split()
    if len(words) != 5:
        return None
    name, node, driver, waits, power = words
    return Device(name, node, driver.rstrip("-"), waits == "1", power)


def _render_node(row: str) -> RenderNode | None:
    words = row.split()
    if len(words) != 6:
        return None
    path, driver, *rest = words
    return RenderNode(path, _FACADES.get(driver, driver), *rest)


def _cma(rows: list[str]) -> tuple[int | None, int | None]:
    sizes = {row.partition(":")[0]: int(row.split()[1]) for row in rows if row.split()[1].isdigit()}
    return sizes.get("CmaTotal"), sizes.get("CmaFree")


def _field(manifest: str, name: str) -> str | None:
    match = re.search(rf'"{name}": "([^"]*)"', manifest)
    return match[1] if match else None


def _generation(cmdline: str, folder: str) -> str | None:
    match = re.search(r"\bnpu_bsp\.generation=([0-9a-f]{12})\b", f"{cmdline} ")
    name = folder.rpartition("/")[2]
    if match:
        return match[1]
    return name if re.fullmatch(r"[0-9a-f]{12}", name) else None
