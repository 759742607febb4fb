# SPDX-License-Identifier: MIT
"""Small device trees of an i.MX 8M Plus and an A311D, with what the checks of their NPUs look at."""

from __future__ import annotations

import subprocess
from pathlib import Path

IMX8MP = """/dts-v1/;
/ {
    compatible = "polyhex,imx8mp-debix-model-a", "fsl,imx8mp";
    model = "Polyhex Debix Model A i.MX8MPlus board";
    #address-cells = <2>; #size-cells = <2>; interrupt-parent = <&gic>;
    gic: interrupt-controller { #interrupt-cells = <3>; };
    soc: soc@0 {
        compatible = "simple-bus"; #address-cells = <1>; #size-cells = <1>; ranges = <0 0 0 0x3e000000>;
        bus: bus@30000000 {
            compatible = "simple-bus"; reg = <0x30000000 0x400000>;
            #address-cells = <1>; #size-cells = <1>; ranges;
            clk: clock-controller@30380000 { reg = <0x30380000 0x10000>; #clock-cells = <1>; };
            src: reset-controller@30390000 { reg = <0x30390000 0x10000>; #reset-cells = <1>; };
            gpc: gpc@303a0000 {
                reg = <0x303a0000 0x1000>;
                pgc: pgc {
                    #address-cells = <1>; #size-cells = <0>;
                    mlmix: power-domain@4 {
                        reg = <4>; #power-domain-cells = <0>; power-domains = <&above>;
                        assigned-clocks = <&clk 306>, <&clk 105>, <&clk 106>;
                        assigned-clock-parents = <&clk 56>, <&clk 56>, <&clk 56>;
                        assigned-clock-rates = <800000000>, <800000000>, <300000000>;
                    };
                    above: power-domain@5 { reg = <5>; #power-domain-cells = <0>; };
                    other: power-domain@6 { reg = <6>; #power-domain-cells = <0>; };
                };
            };
        };
        npu: npu@38500000 {
            compatible = "vivante,gc"; reg = <0x38500000 0x200000>; interrupts = <0 13 4>;
            clocks = <&clk 1>, <&clk 2>, <&clk 3>, <&clk 4>;
            clock-names = "core", "shader", "bus", "reg";
            resets = <&src 7>; power-domains = <&mlmix>;
        };
    };
    npu_gpio: regulator { };
};
"""
IMX8MP_NPU = "/soc@0/npu@38500000"
IMX8MP_PGC = "/soc@0/bus@30000000/gpc@303a0000/pgc"
IMX8MP_DOMAIN = f"{IMX8MP_PGC}/power-domain@4"

A311D = """/dts-v1/;
/ {
    compatible = "khadas,vim3", "amlogic,a311d", "amlogic,g12b";
    model = "Khadas VIM3"; #address-cells = <2>; #size-cells = <2>;
    interrupt-parent = <&gic>; gic: interrupt-controller { #interrupt-cells = <3>; };
    clkc: clock-controller { #clock-cells = <1>; };
    pwrc: power-controller { #power-domain-cells = <1>; };
    npu: npu@ff100000 {
        compatible = "vivante,gc"; reg = <0x0 0xff100000 0x0 0x20000>; interrupts = <0 147 4>;
        clocks = <&clkc 267>, <&clkc 264>; clock-names = "core", "bus"; power-domains = <&pwrc 2>;
        assigned-clocks = <&clkc 267>, <&clkc 264>;
        assigned-clock-rates = <800000000>, <800000000>;
        status = "disabled";
    };
};
"""
A311D_NPU = "/npu@ff100000"


def compiled(target: Path, source: str, more: str = "", *, symbols: bool = False) -> Path:
    """Compile source, with more of it behind, to a file; its labels are kept if asked."""
    subprocess.run(
        ["dtc", "-q", *(["-@"] if symbols else []), "-I", "dts", "-O", "dtb", "-o", target, "-"],
        input=f"{source}\n{more}".encode(), check=True,
    )  # fmt: skip
    return target


def switched_off(path: str, *, status: str = '"disabled"') -> str:
    """Return source that gives a node another status; an empty one if ``status`` is empty."""
    value = f"status = {status};" if status else "status;"
    return f"&{{{path}}} {{ {value} }};\n"
