# SPDX-License-Identifier: MIT
"""What a running board says of its device tree and kernel: each fact a command and a pure parser."""

from __future__ import annotations

import gzip
import lzma
import re
import secrets
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..base.errors import InfrastructureError, UserError
from ..base.process import run
from ..dts.npu.support import cannot_tell, series_supports
from ..profile import Npu
from .ssh import Connection

_ANY = 0xFFFF_FFFF
_TIMEOUT_S = 120  # an emulated board takes a while to unpack its kernel's configuration

# One command, as each takes a slow board a quarter of a second to start. grep's code is 2 where one of the
# files is missing, whatever it found in the other.
_KERNEL_PARTS = """\
next() { printf %s "$boundary"; }
root=$1 boundary=$2 compatible=$3 driver=$4
release=$(cat "$root/proc/sys/kernel/osrelease")
modules=$root/lib/modules/$release
printf %s "$release"; next
cat "$root/proc/config.gz" 2>/dev/null || cat "$root/boot/config-$release" 2>/dev/null; next
grep -a -s -F -e "$compatible" "$modules/modules.alias" "$modules/modules.builtin.modinfo"; next
test ! -e "$modules/modules.alias" || echo there; next
module=$(test -z "$driver" || find "$modules/" -name "$driver.ko*" -type f 2>/dev/null)
test -z "$module" || cat "${module%%
*}"; next
"""


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
    """Return what the running kernel has for an NPU.

    Raises:
        InfrastructureError: the board has no shell that runs the question.
    """
    boundary = f"--{secrets.token_hex(16)}--"
    driver = npu.driver if npu.identity is not None else ""
    words = ["sh", "-c", _KERNEL_PARTS, "sh", root, boundary, npu.compatible, driver]
    done = connection.run(words, timeout_s=_TIMEOUT_S, check=False)
    try:
        release, packed, matches, index, module, _ = done.stdout.split(boundary.encode())
    except ValueError:
        last_line = done.stderr.decode(errors="replace").strip().rpartition("\n")[2][-300:]
        raise InfrastructureError(
            f"{connection.host.name} does not say which kernel it runs (exit code {done.exit_code}): "
            f"{last_line}",
            hint="this needs a shell, cat, grep and find there",
        ) from None
    text = gzip.decompress(packed) if packed.startswith(b"\x1f\x8b") else packed
    config = parse_config(text.decode(errors="replace"), npu.kernel_symbols) if text else None
    state = driver_state(matches, npu, index_there=bool(index), config=config)
    knows = has_identity(unpack_module(module), npu) if state == "module" and module else None
    return KernelFacts(release.decode().strip(), config, state, knows)


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
