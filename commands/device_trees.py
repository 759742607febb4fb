# SPDX-License-Identifier: MIT
"""Device trees: built with what the NPU lacks, checked against the bindings, booted in QEMU."""

from __future__ import annotations

from invoke.context import Context

from bsp.base.result import Result

from .face.command import command
from .face.flags import BOARD, FORCE_ENABLE, HOST, KERNEL


@command(
    help={
        "board": f"{BOARD}; with --from-host: the one that the host says it is",
        "kernel": KERNEL,
        "from-host": f"start from the tree that this board runs: {HOST}",
        "accept-new-key": "on first contact, trust the host's key without asking",
        "base-dtb": "start from this DTB instead of the kernel's source",
        "npu-rate": "run the NPU's clocks at this rate, such as 500MHz",
        "apply": "apply this overlay (.dtbo) to the base tree first; may be repeated",
        "force-enable": FORCE_ENABLE,
        "overlay": "keep the changes beside the DTB as a .dtbo too",
        "output": "folder for the result (default: build/BOARD/KERNEL)",
        "dry-run": "show what would be built; write nothing",
    },
    iterable=["apply"],
)
def build_dts(
    _: Context,
    board: str = "",
    kernel: str = "",
    from_host: str = "",
    accept_new_key: bool = False,
    base_dtb: str = "",
    npu_rate: str = "",
    apply: list[str] | None = None,
    force_enable: bool = False,
    overlay: bool = False,
    output: str = "",
    dry_run: bool = False,
) -> Result:
    """Build a device tree, and add what its NPU lacks. Example: ./inv build-dts --board vim3."""
    from pathlib import Path

    from bsp.base.errors import UserError
    from bsp.base.flags import refuse_flags
    from bsp.catalog import load_board
    from bsp.dts import build
    from bsp.dts.npu.rate import parse_rate

    npu_rate_hz = parse_rate(npu_rate) if npu_rate else None
    overlays = [Path(file) for file in apply or ()]
    if from_host:
        from bsp.remote.in_place import build_from_host

        ruled_out = {"kernel": kernel, "base-dtb": base_dtb}
        refuse_flags(ruled_out, "--from-host brings its own kernel and tree")
        return build_from_host(
            from_host,
            board=board,
            output=output,
            npu_rate_hz=npu_rate_hz,
            keep_overlay=overlay,
            accept_new_key=accept_new_key,
            dry_run=dry_run,
            apply=overlays,
            force_enable=force_enable,
        )
    if not board:
        raise UserError(
            "--board is missing", hint="./inv boards lists the boards; or --from-host HOST"
        )

    profile = load_board(board)
    base = Path(base_dtb) if base_dtb else None
    if base is None and profile.dts is None:
        from bsp.qemu.base_dtb import base_dtb as dtb_of_qemu

        base = dtb_of_qemu(profile)
    return build.build_dts(
        profile,
        kernel=kernel or None,
        base_dtb=base,
        target_dir=Path(output) if output else build.default_target(profile, kernel or None, base),
        npu_rate_hz=npu_rate_hz,
        keep_overlay=overlay,
        dry_run=dry_run,
        apply=overlays,
        force_enable=force_enable,
    )


@command(
    help={
        "board": BOARD,
        "kernel": f"{KERNEL}, whose tree and bindings are used",
        "dtb": "check this DTB instead of the one that build-dts makes",
        "force-enable": FORCE_ENABLE,
    }
)
def check_dts(
    _: Context, board: str, kernel: str = "", dtb: str = "", force_enable: bool = False
) -> Result:
    """Check a device tree against the kernel's bindings. Example: ./inv check-dts --board vim3."""
    from pathlib import Path

    from bsp.catalog import load_board
    from bsp.dts.bindings import schema

    profile = load_board(board)
    base = None
    if profile.dts is None:
        from bsp.qemu.base_dtb import base_dtb as dtb_of_qemu

        base = dtb_of_qemu(profile)
    return schema.check_dts(
        profile,
        kernel=kernel or None,
        dtb=Path(dtb) if dtb else None,
        base_dtb=base,
        force_enable=force_enable,
    )


@command(
    help={
        "board": BOARD,
        "kernel": KERNEL,
        "dtb": "boot this DTB instead of building one",
        "npu-disabled": "build it with the NPU disabled; the driver must then not bind",
        "npu-rate": "build the device tree with the NPU at this rate, such as 500MHz",
        "force-enable": FORCE_ENABLE,
        "timeout": "seconds until the kernel must have answered",
    }
)
def boot_dts(
    _: Context,
    board: str,
    kernel: str = "",
    dtb: str = "",
    npu_disabled: bool = False,
    npu_rate: str = "",
    force_enable: bool = False,
    timeout: float = 180.0,
) -> Result:
    """Boot a device tree in QEMU: does the NPU bind? Example: ./inv boot-dts --board imx8mp-evk."""
    from pathlib import Path

    from bsp.catalog import load_board
    from bsp.dts.npu.rate import parse_rate
    from virtual.boards import boot_dts as booting

    return booting.boot_dts(
        load_board(board),
        kernel=kernel or None,
        dtb=Path(dtb) if dtb else None,
        npu_disabled=npu_disabled,
        npu_rate_hz=parse_rate(npu_rate) if npu_rate else None,
        force_enable=force_enable,
        timeout_s=timeout,
    )
