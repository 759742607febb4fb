# SPDX-License-Identifier: MIT
"""Kernels: patched, configured, checked and cross-built."""

from __future__ import annotations

from invoke.context import Context

from bsp.base.result import Answer, Result

from .face.command import command
from .face.flags import BOARD, KERNEL


@command(
    help={
        "board": BOARD,
        "kernel": KERNEL,
        "prebuilt": "build nothing: take the distribution's kernel package, and check its configuration "
        "for the same symbols",
        "fragment": "your own configuration on top, may be repeated: a fragment, a defconfig or a .config",
        "experiment": "apply these patch series, too, which are marked as experiments; several: "
        "separated by commas",
        "config-only": "stop after checking that every requested symbol was kept",
        "llvm": "build with clang and its tools",
        "jobs": "number of compilers at once (default: one a core)",
        "output": "folder that gets a copy of the result",
        "explain": "explain each symbol; build nothing",
        "menuconfig": "change the configuration in the kernel's menus (with --save-fragment)",
        "save-fragment": "write the changes to this file, as a fragment",
        "dry-run": "say what would be done",
    },
    iterable=["fragment"],
)
def build_kernel(
    _: Context,
    board: str,
    kernel: str = "",
    prebuilt: bool = False,
    fragment: list[str] | None = None,
    experiment: str = "",
    config_only: bool = False,
    llvm: bool = False,
    jobs: int = 0,
    output: str = "",
    explain: bool = False,
    menuconfig: bool = False,
    save_fragment: str = "",
    dry_run: bool = False,
) -> Result:
    """Patch, configure, check and cross-build a kernel. Example: ./inv build-kernel --board vim3."""
    from bsp.catalog import load_board
    from bsp.kernel import command as kernel_command

    profile = load_board(board)
    options = kernel_command.Options(
        kernel=kernel,
        fragment=fragment or (),
        experiment=experiment,
        prebuilt=prebuilt,
        llvm=llvm,
        config_only=config_only,
        dry_run=dry_run,
        jobs=jobs,
        output=output,
    )
    if explain:
        rows = kernel_command.explain(profile, options)
        return Answer(rows, kernel_command.explanation_text(rows))
    if menuconfig or save_fragment:
        saved = kernel_command.save_fragment(profile, options, save_fragment, menu=menuconfig)
        return Answer(saved, "\n".join(saved["lines"]))
    document = kernel_command.build_kernel_for(profile, options)
    return Answer(document, kernel_command.text_of(document))
