# SPDX-License-Identifier: MIT
"""What a running board says of its device tree and kernel: each fact a command and a pure parser."""

from __future__ import annotations

import gzip
import lzma
import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..base.errors import UserError
from ..base.process import run
from ..dts.npu.support import cannot_tell, series_supports
from ..profile import Npu
from .ssh import Connection

_ANY = 0xFFFF_FFFF
_TIMEOUT_S = 120  # an emulated board takes a while to unpack its kernel's configuration


@dataclass(frozen=True)
class KernelFacts:
    """What the running kernel has for an NPU.

    Attributes:
        release: as ``uname -r``.
        config: values of the symbols that the NPU's profile names; None: the configuration is not there.
        driver: ``module``, ``builtin``, ``absent``, or ``unknown`` where nothing on the board tells.
        knows_npu: whether the driver's list of NPUs has this one; None where that cannot be seen.
    """

    release: str
    config: Mapping[str, str] | None
    driver: str
    knows_npu: bool | None

    @property
    def series(self) -> str:
        """``6.12`` for ``6.12.107+deb13-arm64``."""
        return ".".join(re.findall(r"\d+", self.release)[:2])

    def document(self) -> dict[str, Any]:
        """Return the facts as a document."""
        return {
            "release": self.release,
            "config": dict(self.config) if self.config is not None else None,
            "driver": self.driver,
            "knows_npu": self.knows_npu,
        }

    def verdict(self, npu: Npu, *, host: str) -> tuple[bool, str]:
        """Return whether the NPU will work with this kernel, and why, in words."""
        kernel = f"the kernel {self.release} of {host}"
        if self.driver == "absent":
            unset = [name for name, value in (self.config or {}).items() if value == "n"]
            why = f"; not set: {', '.join(f'CONFIG_{name}' for name in unset)}" if unset else ""
            return False, f"{kernel} has no driver {npu.driver} for {npu.compatible}{why}"
        if self.knows_npu is not None:
            knows = "knows this NPU" if self.knows_npu else "does not know this NPU"
            return (
                self.knows_npu,
                f"{npu.driver} of {kernel} {knows}: its list of NPUs was looked at",
            )
        if unknown := cannot_tell(npu):
            return False, f"{kernel}: {unknown}"
        since = npu.kernel_since
        if since is None:
            return False, (
                f"{kernel} lacks {npu.kernel_lacks}, as far as is known of released kernels: its own list "
                "of NPUs cannot be seen"
            )
        if not self.series or not series_supports(self.series, npu):
            return False, f"{kernel} lacks {npu.kernel_lacks}"
        return True, f"{kernel} is new enough ({since} or later); its list of NPUs cannot be seen"


def read_fdt(connection: Connection, *, root: str = "") -> bytes:
    """Return the device tree that the kernel was given.

    Raises:
        UserError: it cannot be read.
    """
    path = f"{root}/sys/firmware/fdt"
    done = connection.run(["cat", path], timeout_s=_TIMEOUT_S, check=False)
    if done.exit_code or not done.stdout:
        raise UserError(
            f"cannot read {path} on {connection.host.name}: "
            f"{done.stderr.decode(errors='replace').strip() or 'it is empty'}",
            hint="only root may read it: log in as root (user@ in --host, or the inventory)",
        )
    return done.stdout


def read_kernel(connection: Connection, npu: Npu, *, root: str = "") -> KernelFacts:
    """Return what the running kernel has for an NPU."""

    def read(*argv: str) -> bytes | None:
        done = connection.run(argv, timeout_s=_TIMEOUT_S, check=False)
        return done.stdout if done.exit_code == 0 else None

    release = (read("cat", f"{root}/proc/sys/kernel/osrelease") or b"").decode().strip()
    modules = f"{root}/lib/modules/{release}"
    packed = read("cat", f"{root}/proc/config.gz")
    text = gzip.decompress(packed) if packed else read("cat", f"{root}/boot/config-{release}")
    config = parse_config(text.decode(errors="replace"), npu.kernel_symbols) if text else None
    # grep's code is 2 where one of the files is missing, whatever it found in the other.
    indexes = [f"{modules}/modules.alias", f"{modules}/modules.builtin.modinfo"]
    grep = ["grep", "-a", "-s", "-F", "-e", npu.compatible, *indexes]
    matches = connection.run(grep, timeout_s=_TIMEOUT_S, check=False).stdout
    index_there = read("test", "-e", f"{modules}/modules.alias") is not None
    driver = driver_state(matches, npu, index_there=index_there, config=config)
    knows = None
    if driver == "module" and npu.identity is not None:
        path = read("find", f"{modules}/", "-name", f"{npu.driver}.ko*", "-type", "f") or b""
        first = path.decode(errors="replace").split("\n")[0]
        module = read("cat", first) if first else None
        knows = None if module is None else has_identity(unpack_module(module), npu)
    return KernelFacts(release, config, driver, knows)


def parse_config(text: str, symbols: tuple[str, ...]) -> dict[str, str]:
    """Return the values of symbols in a kernel's configuration; ``n`` for those that it does not set."""
    values = dict(re.findall(r"^CONFIG_(\w+)=(.*)$", text, re.M))
    return {name: values.get(name, "n") for name in symbols}


def driver_state(
    aliases: bytes, npu: Npu, *, index_there: bool, config: Mapping[str, str] | None
) -> str:
    """Return where the NPU's driver is, from the lines of the modules' indexes that name its node.

    Args:
        aliases: lines of ``modules.alias`` and ``modules.builtin.modinfo``.
        index_there: whether the board has these files.
    """
    lines = aliases.decode(errors="replace")
    if re.search(rf"^(\S*:)?alias of:N\*T\*C{re.escape(npu.compatible)}(C\*)? \S+$", lines, re.M):
        return "module"
    if f"alias=of:N*T*C{npu.compatible}" in lines:
        return "builtin"
    symbol = (config or {}).get(npu.kernel_symbols[0]) if npu.kernel_symbols else None
    if symbol == "y":
        return "builtin"
    return "absent" if index_there or symbol == "n" else "unknown"


def unpack_module(data: bytes) -> bytes:
    """Return a kernel module as it was before it was compressed; as it is, where that fails."""
    try:
        if data.startswith(b"\xfd7zXZ"):
            return lzma.decompress(data)
        if data.startswith(b"\x1f\x8b"):
            return gzip.decompress(data)
        if data.startswith(b"\x28\xb5\x2f\xfd"):
            return run(["zstd", "-dcq"], stdin=data).stdout
    except (lzma.LZMAError, OSError, zlib.error, EOFError):
        pass
    return data


def has_identity(module: bytes, npu: Npu) -> bool:
    """Whether the driver's list of NPUs has this one.

    The list is an array of ``struct etnaviv_chip_identity`` (Linux 6.12
    drivers/gpu/drm/etnaviv/etnaviv_gpu.h), which begins with these five numbers, little-endian on arm64;
    the last three may be ~0U, which matches any.
    """
    if npu.identity is None:
        return False
    identity = npu.identity
    any_number = re.escape(struct.pack("<I", _ANY))
    choices = b"".join(
        b"(?:%s|%s)" % (re.escape(struct.pack("<I", number)), any_number)
        for number in (identity.product_id, identity.customer_id, identity.eco_id)
    )
    pattern = re.escape(struct.pack("<2I", identity.model, identity.revision)) + choices
    return re.search(pattern, module, re.S) is not None
