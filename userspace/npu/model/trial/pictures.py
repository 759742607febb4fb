# SPDX-License-Identifier: MIT
"""Opens a picture: BMP by this project's own reader; PNG, JPEG and others by Pillow, an extra.

Pillow is in an environment of its own (``requirements/pictures.txt``), made when it is first needed. It
runs in a process of its own and writes a BMP: a hostile picture ends that process, and nothing else.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from bsp.base.errors import InfrastructureError, UserError
from bsp.base.packages.optional_env import extra_python
from bsp.base.process import run

from ...validate.onboard import bmp
from ...validate.onboard.bmp import Picture

_CONVERT = Path(__file__).with_name("convert_picture.py")
_TIMEOUT_S = 120
_MAGIC = b"BM"


def open_picture(path: Path) -> Picture:
    """Return a picture's pixels, three colours each; alpha does not count.

    A BMP's are exact. Others are turned as their EXIF data say, and converted to RGB by Pillow.

    Raises:
        UserError: it cannot be read, or is not a picture.
        InfrastructureError: Pillow is needed, and cannot be installed.
    """
    try:
        with path.open("rb") as file:
            is_bmp = file.read(len(_MAGIC)) == _MAGIC
        return bmp.open_bmp(path) if is_bmp else _converted(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except bmp.ImageError as error:
        raise UserError(f"{path}: {error}") from error


def _converted(path: Path) -> Picture:
    try:
        python = extra_python("pictures", module="PIL")
    except InfrastructureError as error:
        raise InfrastructureError(
            f"{path} is not a BMP, and Pillow, which reads other pictures, cannot be installed: "
            f"{error.message}",
            hint=f"make a BMP of it: {bmp.CONVERT}",
        ) from error
    with tempfile.TemporaryDirectory(prefix="npu-bsp-picture-") as folder:
        target = Path(folder) / "picture.bmp"
        done = run([python, _CONVERT, path.absolute(), target], timeout_s=_TIMEOUT_S, check=False)
        if done.exit_code or not target.exists():
            words = done.stdout.decode(errors="replace").strip() or "it ends Pillow's process"
            raise UserError(
                f"{path} is not a picture that Pillow reads: {words[:300]}",
                hint="give a BMP, PNG or JPEG file",
            )
        return bmp.picture_of(bmp.open_bmp(target).pixels())
