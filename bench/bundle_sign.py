# SPDX-License-Identifier: MIT
"""Hashing and signing a bundle, against one ``sha256sum`` over the same bytes on the same cores."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from bench.measure import Arm, arguments, measure, report
from images.bundle import manifest as bundles
from images.bundle import sign
from images.bundle.manifest import Bundle

TARGET = 1.3
_FILES = 4000
_SMALL_BYTES = 40_000
_LARGE_BYTES = 10 << 20


def _bundle(folder: Path) -> Bundle:
    """About 180 MB: two large files, and as many small ones as a kernel has modules."""
    (folder / "boot").mkdir(parents=True)
    for name in ("kernel", "initrd"):
        (folder / "boot" / name).write_bytes(os.urandom(_LARGE_BYTES))
    (folder / "boot/board.dtb").write_bytes(os.urandom(60_000))
    modules = folder / "modules/6.12.0"
    modules.mkdir(parents=True)
    for number in range(_FILES):
        (modules / f"m{number}.ko").write_bytes(os.urandom(_SMALL_BYTES))
    described = bundles.describe(
        folder, board="virtual", compatible=("x",), kernel_release="6.12.0", cmdline="", inputs={}
    )
    (folder / "manifest.json").write_bytes(bundles.encode(described))
    return Bundle(folder, described)


def _describe_and_sign(folder: Path) -> None:
    (folder / sign.SIGNATURE).unlink(missing_ok=True)
    described = bundles.describe(
        folder, board="virtual", compatible=("x",), kernel_release="6.12.0", cmdline="", inputs={}
    )
    (folder / "manifest.json").write_bytes(bundles.encode(described))
    sign.sign(Bundle(folder, described))


def main() -> None:
    """Measure and print."""
    options = arguments(__doc__ or "", rounds=7)
    with tempfile.TemporaryDirectory(prefix="npu-bsp-bench-") as place:
        bundle = _bundle(Path(place) / "bundle")
        _describe_and_sign(bundle.path)
        names = "\0".join(str(bundle.file(entry)) for entry in bundle.manifest.files).encode()

        def sha256sum(*flags: str) -> None:
            words = ["xargs", "-0", *flags, "sha256sum"]
            subprocess.run(words, input=names, stdout=subprocess.DEVNULL, check=True)

        spread = ("-P", str(os.cpu_count() or 1), "-n", "500")
        arms = [
            Arm("sha256sum, one pass", lambda: sha256sum()),
            Arm("the same again (A/A)", lambda: sha256sum()),
            Arm("sha256sum, one on each core", lambda: sha256sum(*spread)),
            Arm("manifest and signature", lambda: _describe_and_sign(bundle.path), target=TARGET),
            Arm("bundle --verify, in the process", lambda: sign.verify(bundle.path), target=TARGET),
        ]
        timings = measure(arms, rounds=options.rounds, warm_up=1)
        title = f"hashing and signing {bundle.manifest.total_bytes / 1e6:.0f} MB"
        report({title: timings}, as_json=options.json)


if __name__ == "__main__":
    main()
