# SPDX-License-Identifier: MIT
"""check-dts: real dtschema on a small kernel tree with one small binding."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from bsp.base.errors import UserError
from bsp.catalog import load_board
from bsp.dts.bindings import schema
from bsp.dts.bindings.schema import Problem, check_dts
from tests.support.kernel_tree import make_kernel

BINDING = """\
# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
%YAML 1.2
---
$id: http://devicetree.org/schemas/gpu/vivante,gc.yaml#
$schema: http://devicetree.org/meta-schemas/core.yaml#
title: NPU
maintainers:
  - Nobody <nobody@example.com>
properties:
  compatible:
    const: vivante,gc
  reg:
    maxItems: 1
  interrupts:
    maxItems: 1
  clocks: true
  clock-names: true
  power-domains:
    maxItems: 1
required:
  - compatible
  - resets
additionalProperties: false
"""

# As `dt-validate --json-output` wrote them for a VIM3 with status = "enabled" and a property `foo`.
DIAGNOSTICS: list[dict[str, Any]] = [
    {
        "type": "validation",
        "node": "/npu@ff100000",
        "property_path": [],
        "schema_path": ["additionalProperties"],
        "schema": "http://devicetree.org/schemas/gpu/vivante,gc.yaml",
        "message": "'foo', 'bar' do not match any of the regexes: '^pinctrl-[0-9]+$'",
    },
    {
        "type": "validation",
        "node": "/npu@ff100000",
        "property_path": ["status"],
        "schema_path": ["then", "properties", "status", "oneOf"],
        "schema": "http://devicetree.org/schemas/dt-core.yaml",
        "message": "['enabled'] is not valid under any of the given schemas",
        "context": [
            {"message": "['enabled'] is not of type 'object'", "schema_path": ["type"]},
            {"message": "'enabled' is not one of ['okay', 'disabled']", "schema_path": ["enum"]},
        ],
    },
    {"type": "decode", "message": "a phandle leads nowhere"},
]


def test_each_property_is_a_problem_of_its_own() -> None:
    found = schema._read(DIAGNOSTICS)
    node, core = "/npu@ff100000", "dt-core.yaml: oneOf"
    unknown = DIAGNOSTICS[0]["message"]
    assert found == [
        Problem(node, "foo", "gpu/vivante,gc.yaml: additionalProperties", unknown),
        Problem(node, "bar", "gpu/vivante,gc.yaml: additionalProperties", unknown),
        Problem(node, "status", core, "'enabled' is not one of ['okay', 'disabled']"),
        Problem("/", "", "decode", "a phandle leads nowhere"),
    ]


def test_a_dtb_of_another_board_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.dtb"
    source = '/dts-v1/; / { compatible = "somebody,else"; };'
    command = ["dtc", "-q", "-I", "dts", "-O", "dtb", "-o", str(other)]
    subprocess.run(command, input=source.encode(), check=True)
    name = f"path:{make_kernel(tmp_path / 'linux')}"
    with pytest.raises(UserError, match="is of another board"):
        check_dts(load_board("vim3"), kernel=name, dtb=other)
    other.write_bytes(b"no device tree")
    with pytest.raises(UserError, match="not a device tree blob"):
        check_dts(load_board("vim3"), kernel=name, dtb=other)
    with pytest.raises(UserError, match="cannot read"):
        check_dts(load_board("vim3"), kernel=name, dtb=tmp_path / "nothing.dtb")


def test_a_kernel_without_bindings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no bindings"):
        check_dts(load_board("vim3"), kernel=f"path:{make_kernel(tmp_path / 'linux')}")


def test_what_was_switched_off_is_checked_where_that_is_asked_for(tmp_path: Path) -> None:
    linux = make_kernel(tmp_path / "linux")
    soc = linux / "arch/arm64/boot/dts/amlogic/soc.dtsi"
    soc.write_text(soc.read_text() + '&pwrc { status = "disabled"; };\n')
    vim3, kernel = load_board("vim3"), f"path:{linux}"
    with pytest.raises(UserError, match="has the NPU switched off") as caught:
        check_dts(vim3, kernel=kernel)
    assert "--force-enable" in (caught.value.hint or "")
    with pytest.raises(UserError, match="has no bindings"):  # built, and about to be checked
        check_dts(vim3, kernel=kernel, force_enable=True)
    with pytest.raises(UserError, match="taken as it is"):
        check_dts(vim3, kernel=kernel, dtb=tmp_path / "some.dtb", force_enable=True)


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.timeout(300)
def test_only_what_the_unpatched_tree_does_not_have(tmp_path: Path) -> None:
    linux = make_kernel(tmp_path / "linux")
    folder = linux / "Documentation/devicetree/bindings/gpu"
    folder.mkdir(parents=True)
    (folder / "vivante,gc.yaml").write_text(BINDING)
    soc = linux / "arch/arm64/boot/dts/amlogic/soc.dtsi"  # gets a fault of its own
    soc.write_text(f'{soc.read_text()}\n/ {{ other-device {{ status = "on"; }}; }};\n')
    board, kernel = load_board("vim3"), f"path:{linux}"
    clean = check_dts(board, kernel=kernel)
    # An enabled node lacks what a disabled one may lack; the tree's own fault is not reported.
    assert {(each.node, each.property) for each in clean.problems} == {("/npu@ff100000", "resets")}
    assert clean.ignored == 1

    from bsp.dts.build import build_dts

    built = build_dts(board, kernel=kernel, base_dtb=None, target_dir=tmp_path / "built").dtb
    for words in (["status", "enabled"], ["foo", "x"]):
        subprocess.run(["fdtput", "-t", "s", str(built), "/npu@ff100000", *words], check=True)
    found = check_dts(board, kernel=kernel, dtb=built)
    rules = {(each.property, each.rule.split(":")[0]) for each in found.problems}
    assert ("status", "dt-core.yaml") in rules
    assert ("foo", "gpu/vivante,gc.yaml") in rules
    document = json.loads(json.dumps(found.document()))
    assert {"board", "kernel", "problems", "ignored"} <= set(document)
    assert set(document["problems"][0]) == {"node", "property", "rule", "message"}
    assert "status" in found.text()
