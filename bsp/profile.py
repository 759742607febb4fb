# SPDX-License-Identifier: MIT
"""Profiles: what the files of boards and SoCs say, as frozen, typed records.

A board is ``bsp/boards/NAME.toml``, its SoC ``bsp/socs/NAME.toml``; code never names either. They are read
by ``bsp.catalog``.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

FORMAT = 1

PositiveInt = Annotated[int, Meta(gt=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
NodePath = Annotated[str, Meta(pattern=r"^/")]
Name = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]*$")]
Series = Annotated[str, Meta(pattern=r"^[0-9]+\.[0-9]+$")]

# What a kernel series does with a board's NPU, as a board's file states it and the scan finds it.
# The last two are worth a deployment; the others say what is missing.
Expectation = Literal[
    "no board",  # the kernel has no device tree for this board
    "no node",  # it has, but without an NPU
    "no driver",  # there is a node that no driver of this kernel takes
    "not recognised",  # the driver takes the node, and does not know the NPU behind it
    "cannot be told",  # whether it does: nobody has written down the numbers by which the NPU is known
    "two owners",  # the vendor's node for the NPU is switched on as well
    "supply missing",  # the node lacks what only the board's own device tree can add
    "enable",  # works once the node is switched on (and rates are set)
    "works",  # works as it is
]


class _Record(Struct, frozen=True, forbid_unknown_fields=True):
    """Frozen; a key that is not declared is an error."""


class Parent(_Record, frozen=True, kw_only=True):
    """A clock of fixed rate that a multiplexer can choose.

    Attributes:
        name: the kernel driver's name for it.
        rate_hz: what it runs at.
        cell: its number at the provider, as ``assigned-clock-parents`` names it.
    """

    name: str
    rate_hz: PositiveInt
    cell: int | None = None


class FirmwareRate(_Record, frozen=True, kw_only=True):
    """A rate that firmware can give a clock.

    Attributes:
        rate_hz: what the kernel asks for.
        least_microvolts: the voltage that the chip's maker gives the NPU for it; None: none is published.
    """

    rate_hz: PositiveInt
    least_microvolts: PositiveInt | None = None


class Clock(_Record, frozen=True, kw_only=True):
    """One clock of the NPU.

    Attributes:
        name: as in the node's ``clock-names``.
        rate_hz: the rate it is to run at; None leaves the tree's own.
        cell: its number at the provider, as ``assigned-clocks`` names it.
        symbol: what ``header`` calls that number.
        header: file below `include/dt-bindings` that has the symbol.
        parents: what its multiplexer can choose from.
        parent_cell: the parent that the tree is to choose, by its number; None leaves the tree's own.
        pinned: the kernel does not switch the multiplexer to reach a rate: only the parent that the
            tree's ``assigned-clock-parents`` choose counts.
        max_divider: the largest integer divider behind the multiplexer.
        least_hz: the lowest rate that upstream device trees give it; below, the doctor calls it wrong.
        firmware_rates: the rates that it can have, where firmware sets them and no kernel driver does.
        supply: property of the NPU's node that names the regulator whose voltage such a rate needs.
        source: kernel file that the facts come from.
    """

    name: str
    rate_hz: PositiveInt | None = None
    cell: Annotated[int, Meta(ge=0)]
    symbol: str
    header: str
    parents: tuple[Parent, ...] = ()
    parent_cell: int | None = None
    pinned: bool = False
    max_divider: PositiveInt = 1
    least_hz: PositiveInt | None = None
    firmware_rates: tuple[FirmwareRate, ...] = ()
    supply: str = ""
    source: str = ""

    def reachable_hz(self, parent_cell: int | None = None) -> list[int]:
        """Return the rates that its parents or firmware reach, highest first.

        Args:
            parent_cell: the parent that the tree chooses; counts where the clock is ``pinned``.
        """
        chosen = [parent for parent in self.parents if self.pinned and parent.cell == parent_cell]
        rates = {
            parent.rate_hz // divider
            for parent in chosen or self.parents
            for divider in range(1, self.max_divider + 1)
        }
        return sorted(rates | {each.rate_hz for each in self.firmware_rates}, reverse=True)


class Identity(_Record, frozen=True, kw_only=True):
    """What the NPU's identity registers read, as in the kernel's ``etnaviv_hwdb.c``.

    Attributes:
        model: model of the core (`gcmodel` in the driver's list).
        revision: revision of the core.
        product_id: tells products of one model apart.
        customer_id: whose chip it is.
        eco_id: number of the engineering change (ECO).
        nn_cores: cores for neural networks.
    """

    model: int
    revision: int
    product_id: int
    customer_id: int
    eco_id: int
    nn_cores: PositiveInt


class KernelNeed(_Record, frozen=True, kw_only=True):
    """Something that a kernel source must contain for the NPU to work.

    Attributes:
        what: in words, as an error names it.
        file: file in the kernel tree.
        text: regular expression that the file has to match.
    """

    what: str
    file: str
    text: str


class Vendor(_Record, frozen=True, kw_only=True):
    """How a vendor's kernel describes the NPU: recognised, never shipped.

    Attributes:
        driver: the vendor's kernel module.
        compatible: strings that its device tree nodes have.
        devices: device files that it makes.
        shared: chips without an NPU have such nodes, too, for their GPUs: only the chip's own name tells.
    """

    driver: str
    compatible: Annotated[tuple[str, ...], Meta(min_length=1)]
    devices: tuple[str, ...] = ()
    shared: bool = False


class SwitchedOff(_Record, frozen=True, kw_only=True):
    """Who may have switched the NPU off in a device tree that a kernel has it on in.

    Attributes:
        by: the program.
        why: the reason, as the end of a sentence.
        source: where that is written.
    """

    by: str
    why: str
    source: str


class Npu(_Record, frozen=True, kw_only=True):
    """The NPU of a SoC and what the free driver needs for it.

    Attributes:
        about: what it is, for people who never heard of it.
        driver: kernel module of the free driver.
        compatible: what its node has.
        node: its node, or that of its first core.
        more_nodes: nodes that have to be switched on along with it: further cores, IOMMUs.
        clocks: its clocks, in the order of the node.
        rates_node: node whose ``assigned-clocks`` set the rates, where that is not the NPU's own.
        rate_clocks: the clocks that ``--npu-rate`` sets.
        requires: properties without which the node is not usable.
        identity: None where the driver has no list of identities, or where it is not known.
        kernel_since: first kernel series whose driver knows this NPU (``6.8``); None: no kernel yet.
        kernel_lacks: what older kernels lack, in words: printed with a refusal.
        kernel_needs: the same as things to look for in a kernel tree.
        mesa_since: first Mesa series whose Teflon delegate knows this NPU; None: none yet.
        kernel_symbols: configuration symbols that its driver needs.
        dmesg: what the kernel log says when the driver has found it.
        vendor: how vendors' kernels describe it.
        sources: documents and files that these facts come from.
        on_by_default: the kernel's description of the chip has it switched on, so that a tree that has it
            off was changed by a board's source, an overlay or a bootloader.
        switched_off: which program is known to do so.
        enabled: whether it is to be switched on; boards may say otherwise.
    """

    about: str = ""
    driver: str
    compatible: str
    node: NodePath
    more_nodes: tuple[NodePath, ...] = ()
    clocks: tuple[Clock, ...]
    rates_node: NodePath | None = None
    rate_clocks: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    identity: Identity | None = None
    kernel_since: Series | None = None
    kernel_lacks: str
    kernel_needs: tuple[KernelNeed, ...] = ()
    mesa_since: str | None = None
    kernel_symbols: tuple[str, ...] = ()
    dmesg: tuple[str, ...] = ()
    vendor: tuple[Vendor, ...] = ()
    sources: tuple[str, ...] = ()
    on_by_default: bool = False
    switched_off: SwitchedOff | None = None
    enabled: bool = True


class Nodeless(_Record, frozen=True, kw_only=True):
    """An NPU that a driver knows by its identity, and that no kernel's device tree describes yet.

    Attributes:
        driver: kernel module of the free driver.
        compatible: what its node would have; any node of the chip that has it is the NPU.
        identity: what its registers read.
        source: kernel file that the identity comes from.
    """

    driver: str
    compatible: str
    identity: Identity
    source: str


class NpuSettings(_Record, frozen=True, kw_only=True):
    """How one board's NPU differs from its SoC's profile: ``[npu]`` in the board's file.

    Attributes:
        enabled: false switches the NPU off.
        rates_hz: clock name to the rate in hertz that it is to run at.
    """

    enabled: bool = True
    rates_hz: dict[str, PositiveInt] = {}


class BootloaderPiece(_Record, frozen=True, kw_only=True):
    """A stretch of the bootloader's file, and where on a disk it lies.

    Attributes:
        offset_bytes: where on the disk.
        skip_bytes: how much of the file is left out before it.
        length_bytes: how much of the file is taken; None for the rest.
    """

    offset_bytes: Annotated[int, Meta(ge=0)]
    skip_bytes: Annotated[int, Meta(ge=0)] = 0
    length_bytes: PositiveInt | None = None


class Bootloader(_Record, frozen=True, kw_only=True):
    """Where the SoC's boot ROM looks for the bootloader on a disk, and who provides it.

    Attributes:
        file: name that its build gives it.
        pieces: which part of the file goes where.
        table: partition table that leaves the bootloader's sectors alone.
        needs: what it is made of, where it cannot be shipped.
        source: document that the offsets come from.
    """

    file: str
    pieces: Annotated[tuple[BootloaderPiece, ...], Meta(min_length=1)]
    table: Literal["gpt", "dos"] = "gpt"
    needs: str
    source: str


class Addresses(_Record, frozen=True, kw_only=True):
    """Where the boot script loads a generation's files, in the SoC's memory.

    Attributes:
        kernel: the kernel's Image; it must end before the next of the two others.
        dtb: the device tree.
        initrd: the RAM disk.
        source: where the values come from.
    """

    kernel: PositiveInt
    dtb: PositiveInt
    initrd: PositiveInt
    source: str

    def room_bytes(self, what: str) -> int | None:
        """Return how much room ``kernel``, ``dtb`` or ``initrd`` has; None: nothing lies behind it."""
        start = int(getattr(self, what))
        behind = [each for each in (self.kernel, self.dtb, self.initrd) if each > start]
        return min(behind) - start if behind else None


class Published(_Record, frozen=True, kw_only=True):
    """A latency that was published for a SoC: something to compare one's own board with.

    Attributes:
        model: name of the model, as in ``userspace/npu/validate/models.toml``.
        delegate: row of the smoke test that ran it.
        median_ms: milliseconds an inference.
        source: who published it, and of which state of the software.
    """

    model: str
    delegate: str
    median_ms: Annotated[float, Meta(gt=0)]
    source: str


class Boot(_Record, frozen=True, kw_only=True):
    """How the board boots, as far as a deployment needs to know.

    Attributes:
        fat_mount: where the FAT boot partition is mounted on the running board.
        cmdline: kernel command line; None takes root and console from the running board.
        initrd_modules: modules that the initial RAM disk loads to reach the root file system; one that
            ends in ``?`` is left out where a kernel does not have it.
    """

    fat_mount: str
    cmdline: str | None = None
    initrd_modules: tuple[str, ...] = ()


class Soc(_Record, frozen=True, kw_only=True):
    """A system on chip: ``bsp/socs/NAME.toml``.

    Attributes:
        format: version of this file's format.
        name: as boards' files name it.
        title: what people call the chip.
        vendor: who makes it.
        compatible: strings that boards with it have in their root's ``compatible``.
        without_npu: strings of related chips whose device trees have the NPU's node as well, by
            inheritance, but which have no NPU.
        dts_directory: folder below ``arch/arm64/boot/dts``.
        console: serial console as the kernel's command line names it (``ttyAML0,115200n8``).
        bootloader: None where the machine brings it itself.
        addresses: None: the board's U-Boot says where things are loaded.
        boot: how its boards boot, where their own files do not say.
        published: latencies to compare a board with.
    """

    format: int
    name: Name
    title: str
    vendor: str
    compatible: tuple[str, ...] = ()
    without_npu: tuple[str, ...] = ()
    dts_directory: str | None = None
    console: str | None = None
    bootloader: Bootloader | None = None
    addresses: Addresses | None = None
    boot: Boot | None = None
    npu: Npu | None = None
    nodeless: Nodeless | None = None
    published: tuple[Published, ...] = ()


class Qemu(_Record, frozen=True, kw_only=True):
    """The QEMU machine that is this board, or has its SoC.

    Attributes:
        machine: as QEMU's `-machine` takes it.
        cpu: as `-cpu` takes it; none: the machine's own.
        cores: number of its CPU cores.
        memory_mib: its memory, in MiB.
        bootloader: whether the machine boots through U-Boot (else kernel and DTB are handed to QEMU).
        disk: where the disk sits: options of QEMU's ``-drive``.
        nic: QEMU's network device; ``{hostfwd}`` is replaced.
        serial_index: which UART is the console.
        uarts: the nodes of the machine's UARTs, in its order; then the machine can also be other
            boards with the same SoC, whose console may be another one.
        npu: identity of the virtual NPU beside the machine (``virtual/npu/identities``); None
            for a machine without one.
        cmdline: kernel command line.
        initrd_modules: as under `[boot]`.
    """

    machine: str
    cpu: str | None = None
    cores: PositiveInt = 2
    memory_mib: PositiveInt = 1024
    bootloader: bool = False
    disk: str = "if=virtio"
    nic: str
    serial_index: int = 0
    uarts: tuple[str, ...] = ()
    npu: Name | None = None
    cmdline: str
    initrd_modules: tuple[str, ...] = ()


class Health(_Record, frozen=True, kw_only=True):
    """What has to work on a trial boot before it is confirmed, apart from running what was sent.

    Attributes:
        services: systemd units that have to be active; an inventory may name more for a host.
        render_node: whether the NPU's driver has to have a device node; None: where the deployed device
            tree switches the NPU on and the kernel is one that knows it.
        smoke_test: whether ``smoke-test label_image --quick`` has to pass.
        deadline_s: how long all this may take to come up, without the smoke test.
    """

    services: tuple[str, ...] = ()
    render_node: bool | None = None
    smoke_test: bool = False
    deadline_s: PositiveInt = 60


class BoardIdentity(_Record, frozen=True, kw_only=True):
    """What tells a board apart where its first ``compatible`` string alone does not: ``[identity]``.

    Trees of boards that were derived from a reference board often keep its string.

    Attributes:
        models: what the root's ``model`` says on this board; a machine with another one is not this board.
        memory_mib: memory sizes that the board is sold with; empty: not known.
        runs_as: the first ``compatible`` string of the tree that its maker ships, where that is the name of
            a chip or of another board. Together with ``models`` it identifies the board until a tree
            with its own string runs there.
    """

    models: tuple[str, ...] = ()
    memory_mib: tuple[PositiveInt, ...] = ()
    runs_as: str | None = None


class Userspace(_Record, frozen=True, kw_only=True):
    """What the board's root file system is, as far as the profile knows.

    Attributes:
        distribution: Debian release: bookworm, trixie.
        min_delegated_share: part of a model's operations that a delegate has to take for a pass.
    """

    distribution: str = "trixie"
    min_delegated_share: Share = 0.5


class Board(_Record, frozen=True, kw_only=True):
    """A board: ``bsp/boards/NAME.toml``.

    Attributes:
        format: version of this file's format.
        name: as `--board` takes it: small letters, digits, hyphens.
        title: what people call the board.
        soc: name of the SoC's file.
        dts: file stem below the SoC's folder of device trees; None where no kernel source has the board.
        dtb: its device tree, where ``dts`` is None: a file beside the profile. None: it comes from QEMU.
        compatible: root ``compatible`` strings, most specific first; the first identifies the board.
        identity: what else identifies it, where its ``compatible`` string does not.
        kernel: default kernel: a series, or a source as ``--kernel`` takes it.
        expect: kernel series to what it does with the NPU, without and with this tool's changes.
    """

    format: int
    name: Name
    title: str
    soc: str
    dts: str | None = None
    dtb: str | None = None
    compatible: Annotated[tuple[str, ...], Meta(min_length=1)]
    identity: BoardIdentity = BoardIdentity()
    kernel: str
    expect: dict[Series, Expectation] = {}
    boot: Boot | None = None
    health: Health = Health()
    npu: NpuSettings = NpuSettings()
    qemu: Qemu | None = None
    userspace: Userspace = Userspace()
