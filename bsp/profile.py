# SPDX-License-Identifier: MIT
"""Profiles: boards and SoCs as data, loaded once into frozen, typed records.

A board is ``bsp/boards/NAME.toml``, its SoC ``bsp/socs/NAME.toml``; code never names either.
``msgspec`` does the strict typing (unknown keys and wrong types are errors) and costs 10 ms to import.
"""

from __future__ import annotations

import functools
import os
import re
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from .base.errors import UserError, nearest
from .profile_errors import ProfileError, expectation_mistakes, explain

FORMAT = 1

BOARDS_DIR = Path(__file__).parent / "boards"
SOCS_DIR = Path(__file__).parent / "socs"

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
        firmware_rates: what it can have where firmware sets it, and not a driver of the kernel.
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
        model: of the core (`gcmodel` in the driver's list).
        revision: of the core.
        product_id: tells products of one model apart.
        customer_id: whose chip it is.
        eco_id: of engineering changes.
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
    """What one board wants otherwise than its SoC's profile: ``[npu]`` in the board's file.

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
        format: of this file.
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
        cores: of the machine.
        memory_mib: in MiB.
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
    """What has to work on a trial before it is confirmed, beside being what was sent.

    Attributes:
        services: systemd units that have to be active; an inventory may name more for a host.
        render_node: whether the NPU's driver has to have a device node; None: where the deployed device
            tree switches the NPU on and the kernel is one that knows it.
        smoke_test: whether ``smoke-test label_image --quick`` has to pass.
        deadline_s: how long all this may take to come up, the smoke test apart.
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
        memory_mib: how much memory the board is sold with; empty: not known.
        runs_as: the first ``compatible`` string of the tree that its maker ships, where that is the name of
            a chip or of another board. Together with ``models`` it identifies the board until a tree
            with its own string runs there.
    """

    models: tuple[str, ...] = ()
    memory_mib: tuple[PositiveInt, ...] = ()
    runs_as: str | None = None


class Userspace(_Record, frozen=True, kw_only=True):
    """What the board's root file system is, where that is known beforehand.

    Attributes:
        distribution: Debian release: bookworm, trixie.
        min_delegated_share: part of a model's operations that a delegate has to take for a pass.
    """

    distribution: str = "trixie"
    min_delegated_share: Share = 0.5


class Board(_Record, frozen=True, kw_only=True):
    """A board: ``bsp/boards/NAME.toml``.

    Attributes:
        format: of this file.
        name: as `--board` takes it: small letters, digits, hyphens.
        title: what people call the board.
        soc: name of the SoC's file.
        dts: file stem below the SoC's folder of device trees; None where no kernel source has the board.
        dtb: its device tree, where ``dts`` is None: a file beside the profile. None: it comes from QEMU.
        compatible: root ``compatible`` strings, most specific first; the first identifies the board.
        identity: what else tells it apart.
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


def soc_names() -> list[str]:
    """Names of all shipped SoCs, sorted."""
    return sorted(path.stem for path in SOCS_DIR.glob("*.toml"))


def user_boards_dir() -> Path:
    """The user's own profiles: ``boards`` in ``$NPU_BSP_CONFIG``, or in ``~/.config/npu-bsp``."""
    own = os.environ.get("NPU_BSP_CONFIG")
    xdg = os.environ.get("XDG_CONFIG_HOME")
    base = Path(own) if own else (Path(xdg) if xdg else Path.home() / ".config") / "npu-bsp"
    return base.absolute() / "boards"


def board_names() -> list[str]:
    """Names of all boards, shipped and the user's own, sorted."""
    folders = (BOARDS_DIR, user_boards_dir())
    return sorted({path.stem for folder in folders for path in folder.glob("*.toml")})


def board_file(name: str) -> Path:
    """Return the file of a board: a shipped one, else one of the user's own, else the file so named.

    Raises:
        UserError: there is no such board.
    """
    if name.endswith(".toml"):
        return Path(name).absolute()
    for folder in (BOARDS_DIR, user_boards_dir()):
        if re.fullmatch(r"[\w.-]+", name) and (folder / f"{name}.toml").is_file():
            return folder / f"{name}.toml"
    raise UserError(
        f"unknown board {name!r}{nearest(name, board_names())}",
        hint="./inv boards lists the boards",
    )


def load_board(name: str) -> Board:
    """Return the profile of a board: by its name, or by the name of its file (``./mine.toml``).

    Raises:
        UserError: there is no such board, or its file is broken.
    """
    return read_board(board_file(name))


@functools.cache
def read_board(path: Path) -> Board:
    """Return the board in a file; it need not be a shipped one."""
    board = _read(path, Board)
    if board.name != path.stem:
        raise UserError(f"{path}: name is {board.name!r}, but the file is {path.name!r}")
    if board.soc not in soc_names():
        raise ProfileError(path, "soc", unknown_soc(board.soc))
    load_soc(board.soc)
    return complete_board(board, path)


def complete_board(board: Board, path: Path) -> Board:
    """Return a board as its file has it, with what its SoC's file says of how it boots where it does not.

    The place of its own device tree is beside the file.
    """
    if board.dtb is not None:
        board = msgspec.structs.replace(board, dtb=str(path.parent / board.dtb))
    physical = board.dts is not None or board.dtb is not None
    if board.boot is None and physical and board.soc in soc_names():
        board = msgspec.structs.replace(board, boot=load_soc(board.soc).boot)
    return board


def is_own(board: Board) -> bool:
    """Whether a profile is the user's own: in the user's folder, or in a file that was named."""
    try:
        return load_board(board.name) != board or board_file(board.name).parent != BOARDS_DIR
    except UserError:
        return True  # of a file that is in no folder of profiles


@functools.cache
def general_strings() -> frozenset[str]:
    """Return the root ``compatible`` strings that are known to name no board.

    They are those of the SoCs, and those that shipped boards have behind their own string: of modules and
    families.
    """
    shipped = [read_board(file) for file in sorted(BOARDS_DIR.glob("*.toml"))]
    socs = map(load_soc, soc_names())
    of_socs = {string for soc in socs for string in (*soc.compatible, *soc.without_npu)}
    behind = {string for board in shipped for string in board.compatible[1:]}
    return frozenset(of_socs | behind) - {board.compatible[0] for board in shipped}


def names_no_board(string: str) -> bool:
    """Whether a root ``compatible`` string is that of a chip, a module or a family of boards.

    Vendors' trees write ``amlogic, g12b`` for ``amlogic,g12b``.
    """
    return string.replace(" ", "") in general_strings()


def runs_as(board: Board, compatible: Sequence[str], model: str) -> bool:
    """Whether a machine is a board that still runs its maker's tree, without a string of its own.

    Args:
        compatible: the machine's root strings.
        model: its root's ``model``.
    """

    def plain(text: str) -> str:
        return " ".join(text.lower().split())

    identity = board.identity
    return tuple(compatible[:1]) == (identity.runs_as,) and plain(model) in map(
        plain, identity.models
    )


def by_compatible(names: Iterable[str] | None = None) -> dict[str, Board]:
    """Return the boards by the string that identifies each: its first ``compatible``.

    A profile of the user's own wins over a shipped one, which may have come with a later version.

    Args:
        names: of the boards; all shipped ones by default.

    Raises:
        UserError: two boards claim the same string, or a file is broken.
    """
    found: dict[str, Board] = {}
    for board in map(load_board, board_names() if names is None else names):
        other = found.setdefault(board.compatible[0], board)
        if other is board:
            continue
        own = [each for each in (other, board) if board_file(each.name).parent != BOARDS_DIR]
        if len(own) != 1:
            raise UserError(
                f"boards {other.name} and {board.name} both claim {board.compatible[0]!r}: a board "
                "is recognised by the first of its compatible strings",
                hint=f"correct 'compatible' in {board_file(board.name)}, or remove that file",
            )
        found[board.compatible[0]] = own[0]
    return found


@functools.cache
def load_soc(name: str) -> Soc:
    """Return the profile of a shipped SoC.

    Raises:
        UserError: there is no such SoC, or its file is broken.
    """
    path = SOCS_DIR / f"{name}.toml"
    if not path.exists():
        raise UserError(
            f"unknown SoC {name!r}{nearest_soc(name)}", hint=f"there are {', '.join(soc_names())}"
        )
    return _read(path, Soc)


def unknown_soc(word: str) -> str:
    """Say that there is no such SoC, which one may be meant, and which there are."""
    return f"unknown SoC {word!r}{nearest_soc(word)} (known: {', '.join(soc_names())})"


def nearest_soc(word: str) -> str:
    """Return ``; did you mean X?`` for the SoC nearest to a name, a title or a compatible string."""

    def plain(text: str) -> str:
        return re.sub(r"[^a-z0-9]", "", text.lower())

    wanted, spellings = plain(word), dict[str, str]()
    for name in soc_names():
        soc = load_soc(name)
        titles = soc.title.removeprefix(soc.vendor).split("/")
        strings = [text.rpartition(",")[2] for text in soc.compatible]
        for text in (name, soc.title, *titles, *strings):
            spellings.setdefault(plain(text), name)
    inside = [
        name for text, name in spellings.items() if wanted and (wanted in text or text in wanted)
    ]
    exact = spellings.get(wanted) or (inside[0] if len(set(inside)) == 1 else None)
    if exact:
        return f"; did you mean {exact!r}?"
    import difflib

    near = difflib.get_close_matches(wanted, list(spellings), n=1, cutoff=0.5)
    return f"; did you mean {spellings[near[0]]!r}?" if near else ""


def npu_of(board: Board) -> Npu | None:
    """Return the NPU of a board, with the board's own settings applied; None where it has none.

    Raises:
        UserError: the settings name a clock that the NPU does not have.
    """
    npu = load_soc(board.soc).npu
    if npu is None:
        if board.npu != NpuSettings():
            raise UserError(f"board {board.name} has [npu] settings, but its SoC has no NPU")
        return None
    names = [clock.name for clock in npu.clocks]
    for name in board.npu.rates_hz:
        if name not in names:
            raise UserError(
                f"board {board.name}, [npu.rates_hz]: the NPU has no clock {name!r}"
                f"{nearest(name, names)}",
                hint=f"its clocks are {', '.join(names)}",
            )
    clocks = tuple(
        msgspec.structs.replace(clock, rate_hz=board.npu.rates_hz.get(clock.name, clock.rate_hz))
        for clock in npu.clocks
    )
    enabled = npu.enabled and board.npu.enabled
    return msgspec.structs.replace(npu, clocks=clocks, enabled=enabled)


_T = TypeVar("_T", Board, Soc)


def _read(path: Path, kind: type[_T]) -> _T:
    data, text = read_toml(path)
    for key, mistake in expectation_mistakes(data, kind) if kind is Board else ():
        raise ProfileError(path, key, mistake)
    try:
        return msgspec.convert(data, kind, strict=True)
    except msgspec.ValidationError as error:
        raise ProfileError(path, *explain(str(error), kind, text)) from error


def read_toml(path: Path) -> tuple[dict[str, Any], str]:
    """Return the content of a profile's file as TOML has it, and its text.

    Raises:
        UserError: it cannot be read, is no TOML, or has another format.
    """
    try:
        text = path.read_text(encoding="utf-8")
        data = tomllib.loads(text)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: not valid TOML: {error}", hint='text is quoted, versions too: kernel = "6.12"'
        ) from error
    if data.get("format") != FORMAT:
        raise UserError(
            f"{path}: format is {data.get('format')!r}, this version reads format {FORMAT}",
            hint=f"start the file with: format = {FORMAT}",
        )
    return data, text
