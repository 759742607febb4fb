# SPDX-License-Identifier: MIT
"""The kernel command line of a generation."""

from __future__ import annotations

from bsp.base.errors import UserError
from bsp.boot_survey.owners import slot_words
from images.bundle.manifest import Manifest, with_required_options

from ..onboard.boot_files import EMPTY_RAM_DISK
from ..plan import Facts


def command_line_for(manifest: Manifest, facts: Facts) -> str:
    """Return the command line: the manifest's, or the running one without the words that are added at boot.

    A board that was adopted keeps its own: the manifest's root is that of an image of ours.
    """
    if manifest.cmdline is not None and not facts.adopted:
        return manifest.cmdline
    refuse_slot_words(facts.cmdline)
    added_words = ("npu_bsp.", "BOOT_IMAGE=", "initrd=", "oops=panic")
    words = [word for word in facts.cmdline.split() if not word.startswith(added_words)]
    if facts.root_uuid and manifest.entry("boot/initrd").size_bytes > len(EMPTY_RAM_DISK):
        # Partitions have identifiers for the kernel; our RAM disk finds file systems by theirs.
        root = f"root=UUID={facts.root_uuid}"
        words = [root if word.startswith("root=PARTUUID=") else word for word in words]
    return with_required_options(" ".join(words))


def refuse_slot_words(cmdline: str) -> None:
    """Refuse to copy a command line that is right for one copy of an A/B system only.

    Raises:
        UserError: it has words that name one.
    """
    if words := slot_words(cmdline):
        raise UserError(
            f"the running command line names one copy of an A/B system ({' '.join(words)}): a generation "
            "would stay with that copy",
            hint="give the bundle a command line of its own; or leave the board to its own updates",
        )
