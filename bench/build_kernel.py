# SPDX-License-Identifier: MIT
"""build-kernel against the bare ``make`` that it runs: a whole build (once), and one with nothing to do.

The whole build takes half an hour of two cores; ``--no-op`` leaves it out.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from bsp.base.output import print_text
from bsp.catalog import load_board
from bsp.kernel import compile as build
from bsp.kernel.config.compare import Difference
from bsp.kernel.config.configure import Workspace, configure, judged
from bsp.kernel.config.fragments import Asked

from .measure import Arm, measure, report, shown


def _make(work: Workspace, local_version: str) -> None:
    words = work.make(
        f"-j{os.cpu_count()}", f"LOCALVERSION={local_version}", "Image", "modules", "dtbs"
    )
    subprocess.run(
        words, check=True, stdout=subprocess.DEVNULL, env={**os.environ, **work.environment}
    )


def _whole(request: build.KernelRequest) -> None:
    """One build each, from nothing, in folders of their own."""
    prepared = build.prepare(request)
    config = prepared.work.config.read_bytes()
    with tempfile.TemporaryDirectory(prefix="npu-bsp-bench-") as name:
        bare = Workspace(
            prepared.work.tree, prepared.work.release, Path(name), prepared.work.toolchain,
            prepared.work.environment,
        )  # fmt: skip
        bare.config.write_bytes(config)
        started = time.monotonic()
        _make(bare, prepared.local_version)
        bare_s = time.monotonic() - started
    shutil.rmtree(prepared.work.folder)
    started = time.monotonic()
    build.build_kernel(build.prepare(request))
    ours_s = time.monotonic() - started
    print_text(
        f"whole build: make {bare_s:.0f} s, build-kernel {ours_s:.0f} s, "
        f"ratio {ours_s / bare_s:.3f} (at most 1.05)"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--board", default="virtual-a311d")
    parser.add_argument("--kernel", default="6.12")
    parser.add_argument("--no-op", action="store_true", help="leave the whole build out")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    request = build.KernelRequest(load_board(options.board), options.kernel)
    if not options.no_op:
        _whole(request)
    prepared = build.prepare(request)
    build.build_kernel(prepared)
    work, asked = prepared.work, dict(prepared.configured.asked)
    arms = [
        Arm("make, nothing to do", lambda: _make(work, prepared.local_version)),
        Arm("the same again (A/A)", lambda: _make(work, prepared.local_version)),
        Arm("build-kernel, nothing to do", lambda: build.build_kernel(build.prepare(request)),
            target=1.3),
    ]  # fmt: skip
    timings = measure(arms, rounds=options.rounds, warm_up=1)
    report({f"{options.board}, {work.release}": timings}, as_json=options.json)
    check = [
        Arm("took-effect check", lambda: configure(work, asked)),
        Arm("again", lambda: configure(work, asked)),
    ]
    print_text(shown("took-effect check, all as asked", measure(check, rounds=5)))
    # As if they had been dropped: one that does not exist, one limited to a module, one whose menu is off.
    dropped = [
        Difference(Asked(name, "y", "", "bench"), got)
        for name, got in (("DRM_NOSUCH", ""), ("DRM_PANFROST", "m"), ("SND_SOC", ""))
    ]

    def compared() -> None:
        configure(work, asked)
        assert all(each.reasons for each in judged(work, asked, dropped).wrong)

    both = [Arm("compared, with reasons for three", compared), Arm("again (A/A)", compared)]
    print_text(shown("took-effect check, target 3 s", measure(both, rounds=5)))


if __name__ == "__main__":
    main()
