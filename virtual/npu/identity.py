# SPDX-License-Identifier: MIT
"""Which NPU is emulated: one file an NPU in ``identities/``, read strictly."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from bsp.base.errors import UserError, nearest

IDENTITIES_DIR = Path(__file__).parent / "identities"

Word = Annotated[int, Meta(ge=0, le=0xFFFFFFFF)]
Count = Annotated[int, Meta(ge=1, le=16)]


class Identity(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="driver",
    tag="etnaviv",
):
    """A Vivante NPU as the driver and Mesa tell it from others, and what its units are.

    Attributes:
        chip_date: register 0x28; any date will do, the driver only prints it.
        nn_generation: 7 decodes zero-run-length coefficients, 8 Huffman coefficients.
        max_zrl_bits: widest run field that the coefficient decoder takes.
        silicon_lists: prefix of the lists of results from boards in Mesa's src/etnaviv/ci; "" for none.
    """

    format: Literal[1]
    name: str
    title: str
    model: Word
    revision: Word
    product_id: Word
    customer_id: Word
    eco_id: Word
    chip_date: Word
    nn_generation: Literal[7, 8]
    nn_cores: Count
    tp_cores: Count
    max_zrl_bits: Annotated[int, Meta(ge=0, le=8)]
    silicon_lists: str = ""

    @property
    def numbers(self) -> tuple[int, int, int, int, int]:
        """What the driver tells userspace of it."""
        return self.model, self.revision, self.product_id, self.customer_id, self.eco_id


class RocketIdentity(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="driver",
    tag="rocket",
):
    """A Rockchip NPU; its driver tells userspace nothing more of it.

    Attributes:
        cores: that work on different jobs at once.
        silicon_lists: prefix of the lists of results from boards in Mesa's src/gallium/drivers/rocket/ci.
    """

    format: Literal[1]
    name: str
    title: str
    cores: Count
    silicon_lists: str = ""

    @property
    def numbers(self) -> tuple[int, int, int, int, int]:
        """What the driver tells userspace of it: nothing."""
        return 0, 0, 0, 0, 0


AnyIdentity = Identity | RocketIdentity


def identity_names() -> list[str]:
    """Names of the NPUs that can be emulated, sorted."""
    return sorted(path.stem for path in IDENTITIES_DIR.glob("*.toml"))


def vivante_names() -> list[str]:
    """Names of the Vivante ones among them, sorted."""
    return [name for name in identity_names() if isinstance(load_npu(name), Identity)]


def driver_of(name: str) -> str:
    """Return the kernel driver of an NPU: ``etnaviv`` or ``rocket``.

    Raises:
        UserError: there is no such NPU, or its file is broken.
    """
    return "etnaviv" if isinstance(load_npu(name), Identity) else "rocket"


def load_identity(name: str) -> Identity:
    """Return a Vivante NPU by its name.

    Raises:
        UserError: there is no such NPU, it is another maker's, or its file is broken.
    """
    npu = load_npu(name)
    if not isinstance(npu, Identity):
        raise UserError(
            f"this is for Vivante NPUs, and {name} is another maker's ({npu.title})",
            hint=f"there are: {', '.join(vivante_names())}",
        )
    return npu


def load_npu(name: str) -> AnyIdentity:
    """Return an NPU by its name, whoever made it.

    Raises:
        UserError: there is no such NPU, or its file is broken.
    """
    names = identity_names()
    if name not in names:
        raise UserError(
            f"no virtual NPU {name!r}{nearest(name, names)}",
            hint=f"there are: {', '.join(names)}",
        )
    return read_identity(IDENTITIES_DIR / f"{name}.toml")


@functools.cache
def read_identity(path: Path) -> AnyIdentity:
    """Return the NPU in a file.

    Raises:
        UserError: the file cannot be read, or is not what it should be.
    """
    try:
        identity: AnyIdentity = msgspec.toml.decode(
            path.read_bytes(), type=AnyIdentity, strict=True
        )
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (msgspec.MsgspecError, ValueError) as error:
        raise UserError(f"{path}: {error}") from error
    if identity.name != path.stem:
        raise UserError(f"{path}: name is {identity.name!r}, but the file is {path.name!r}")
    return identity
