# SPDX-License-Identifier: MIT
"""A kernel tree of a dozen small files, with the real layout: builds in it take milliseconds."""

from __future__ import annotations

from pathlib import Path

MAKEFILE = """\
# SPDX-License-Identifier: MIT
VERSION = {version}
PATCHLEVEL = {patchlevel}
SUBLEVEL = 0
"""

# The base of a composite is compiled with -@, other boards are not.
DTS_MAKEFILE = """\
dtb-$(CONFIG_ARCH_MESON) += meson-g12b-a311d-khadas-vim3.dtb
dtb-$(CONFIG_ARCH_MESON) += other-board.dtb
khadas-vim3-panel-dtbs := meson-g12b-a311d-khadas-vim3.dtb \\
\tpanel.dtbo
dtb-$(CONFIG_ARCH_MESON) += khadas-vim3-panel.dtb
"""

SOC = """\
#include <dt-bindings/clock/g12a-clkc.h>
/ {{
	#address-cells = <1>;
	#size-cells = <1>;
	interrupt-parent = <&gic>;
	gic: interrupt-controller {{
		interrupt-controller;
		#interrupt-cells = <3>;
	}};
	clkc: clock-controller {{
		compatible = "test,clocks";
		#clock-cells = <1>;
	}};
	pwrc: power-controller {{
		#power-domain-cells = <1>;
	}};
{npu}
}};
"""

NPU = """\
	npu: npu@ff100000 {{
		compatible = "vivante,gc";
		reg = <0xff100000 0x20000>;
		interrupts = <0 147 4>;
		clocks = <&clkc CLKID_NNA_CORE_CLK>, <&clkc CLKID_NNA_AXI_CLK>;
		clock-names = "core", "bus";
{assigned}
		power-domains = <&pwrc 2>;
		{status}
	}};
"""

ASSIGNED = "\t\tassigned-clocks = <&clkc CLKID_NNA_CORE_CLK>, <&clkc CLKID_NNA_AXI_CLK>;\n"
RATES = "\t\tassigned-clock-rates = <800000000>, <800000000>;\n"

BOARD = """\
/dts-v1/;
#include "soc.dtsi"
/ {{
	compatible = {compatible};
	model = "a small test";
}};
"""

MATCHES = '{ .compatible = "vivante,gc" },\n'
HWDB = """\
static const struct etnaviv_chip_identity etnaviv_chip_identities[] = {
	{
		.model = 0x8000,
		.revision = 0x7120,
		.product_id = 0x45080009,
		.customer_id = 0x88,
		.eco_id = 0,
		.nn_core_count = 8,
	},
};
"""


def make_kernel(
    folder: Path,
    *,
    release: str = "6.12",
    npu: bool = True,
    status: str = "disabled",
    assigned: bool = True,
    rates: bool = True,
    symbols: bool = True,
    driver: bool = True,
) -> Path:
    """Write a kernel tree into ``folder`` and return it; the flags leave things out."""
    version, patchlevel = release.split(".")
    dts = "arch/arm64/boot/dts/amlogic"
    clocks = (ASSIGNED if assigned else "") + (RATES if rates else "")
    node = NPU.format(assigned=clocks, status=f'status = "{status}";' if status else "")
    files = {
        "Makefile": MAKEFILE.format(version=version, patchlevel=patchlevel),
        f"{dts}/Makefile": DTS_MAKEFILE if symbols else "",
        f"{dts}/soc.dtsi": SOC.format(npu=node if npu else ""),
        f"{dts}/meson-g12b-a311d-khadas-vim3.dts": BOARD.format(
            compatible='"khadas,vim3", "amlogic,a311d", "amlogic,g12b"'
        ),
        f"{dts}/other-board.dts": BOARD.format(compatible='"test,other"'),
        "include/dt-bindings/clock/g12a-clkc.h": (
            "#define CLKID_NNA_AXI_CLK 264\n#define CLKID_NNA_CORE_CLK 267\n"
        ),
        "include/dt-bindings/power/meson-g12a-power.h": (
            "#define PWRC_G12A_NNA_ID 2\n" if driver else ""
        ),
        "include/dt-bindings/reset/amlogic,meson-g12a-reset.h": (
            "#define RESET_NNA 76\n" if driver else ""
        ),
        "drivers/gpu/drm/etnaviv/etnaviv_gpu.c": MATCHES,
        "drivers/gpu/drm/etnaviv/etnaviv_hwdb.c": HWDB if driver else "",
    }
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    prefixes = folder / "scripts/dtc/include-prefixes"
    prefixes.mkdir(parents=True)
    (prefixes / "dt-bindings").symlink_to("../../../include/dt-bindings")
    (prefixes / "arm64").symlink_to("../../../arch/arm64/boot/dts")
    return folder
