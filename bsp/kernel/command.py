# SPDX-License-Identifier: MIT
"""``build-kernel`` as it is typed: what it found and made, as one document and as text."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from ..base.cache import write_atomically
from ..base.errors import InfrastructureError, UserError
from ..base.output import table
from ..base.packages.host_packages import has_header, install_packages
from ..base.words import counted
from ..profile import Board
from . import compile as build
from .config import fragments
from .config.compare import differences, read_config
from .config.configure import configure
from .config.judge import is_nobodys
from .config.report import describe_files, refuse, say_left_out, say_not_had
from .config.vendor_symbols import vendor_lines
from .packaged import prebuilt_kernel
from .source import check_source_name


@dataclass(frozen=True)
class Options:
    """Flags of the task; empty strings were not given.

    Attributes:
        fragment: files of the user's; one string may name several, separated by commas.
        experiment: names of patch series, separated by commas.
    """

    kernel: str = ""
    fragment: Sequence[str] = ()
    experiment: str = ""
    prebuilt: bool = False
    llvm: bool = False
    config_only: bool = False
    dry_run: bool = False
    jobs: int = 0
    output: str = ""

    def files(self) -> tuple[Path, ...]:
        """The user's fragments."""
        names: list[str] = []
        for word in [self.fragment] if isinstance(self.fragment, str) else self.fragment:
            names += [word] if Path(word).is_file() else [name for name in word.split(",") if name]
        return tuple(Path(name).expanduser() for name in names)


class KernelDocument(TypedDict, total=False):
    """What ``build-kernel --json`` prints; what there is depends on ``outcome``, or ``dry_run``.

    Attributes:
        outcome: ``built``, ``config-only`` or ``prebuilt``.
        would: of a dry run: what would be done, in words.
        differences, not_had, gave_way: see ``Difference.document`` and ``GaveWay.document``.
        left_out: symbols that nobody can ask for.
    """

    board: str
    kernel: str
    outcome: str
    dry_run: bool
    would: list[str]
    version: str
    origin: str
    package: str
    compiler: str
    patches: list[str]
    fragments: list[dict[str, str]]
    symbols_asked: int
    differences: list[dict[str, Any]]
    not_had: list[dict[str, Any]]
    gave_way: list[dict[str, Any]]
    left_out: list[str]
    check_seconds: float
    build_id: str
    release: str
    folder: str
    image: str
    system_map: str
    config: str
    modules: str
    dtbs: list[str]
    size_bytes: int


class SavedFragment(TypedDict):
    """A fragment that was written: where, and its lines."""

    board: str
    kernel: str
    fragment: str
    lines: list[str]


def build_kernel_for(board: Board, options: Options) -> KernelDocument:
    """Build, check or only describe the kernel of a board; return the JSON document.

    Raises:
        UserError: a symbol is not as asked for, a patch does not apply, the source does not compile...
        InfrastructureError: a package cannot be fetched, the disk is full.
    """
    kernel = options.kernel or board.kernel
    if options.prebuilt:
        return _prebuilt(board, kernel, options)
    request = build.KernelRequest(
        board,
        kernel,
        options.files(),
        tuple(name for name in options.experiment.split(",") if name),
        options.llvm,
        options.jobs,
    )
    if options.dry_run:
        check_source_name(kernel)
        return _plan(request)
    prepared = build.prepare(request)
    document: KernelDocument = {
        "board": board.name,
        "kernel": kernel,
        "version": prepared.source.release,
        "origin": prepared.source.origin,
        "patches": [patch.name for patch in prepared.patches],
        "compiler": prepared.work.toolchain.banner,
        "fragments": list(prepared.fragments),
        "symbols_asked": len(prepared.configured.asked),
        "differences": [each.document() for each in prepared.configured.differences],
        "not_had": [each.document() for each in prepared.configured.not_had],
        "gave_way": [each.document() for each in prepared.configured.gave_way],
        "left_out": [each.symbol for each in prepared.configured.left_out],
        "check_seconds": round(prepared.configured.check_s, 4),
        "config": str(prepared.work.config),
    }
    if options.config_only:
        prepared.refuse_differences()
        return {**document, "outcome": "config-only"}
    folder = build.build_kernel(prepared, output=Path(options.output) if options.output else None)
    return {**document, **products(folder), "outcome": "built"}


def products(folder: Path) -> KernelDocument:
    """Describe a folder that build-kernel made."""
    record = json.loads((folder / build.RECORD).read_bytes())
    release = record["release"]
    return {
        "build_id": record["build_id"],
        "release": release,
        "folder": str(folder),
        "image": str(folder / "boot/Image"),
        "system_map": str(folder / "boot/System.map"),
        "config": str(folder / "boot/config"),
        "modules": str(folder / "lib/modules" / release),
        "dtbs": sorted(str(path) for path in (folder / "dtbs").rglob("*.dtb")),
        "size_bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
    }


def _plan(request: build.KernelRequest) -> KernelDocument:
    """What would be done, from what is at hand; nothing is fetched."""
    asked = fragments.merge(fragments.fragment_files(request.board, request.fragments))
    described = describe_files(request.fragments)
    names = [path.name for path in fragments.fragment_files(request.board, request.fragments)]
    return {
        "board": request.board.name,
        "kernel": request.kernel,
        "dry_run": True,
        "fragments": described,
        "symbols_asked": len(asked),
        "would": [
            f"fetch the source {request.kernel}, if it is not cached",
            "apply the patch series that its version needs, if any, to a copy",
            f"merge {' + '.join(names)}: {counted(len(asked), 'symbol')}",
            f"make {fragments.base_target(asked)} + olddefconfig, and stop where a symbol is not as asked",
            f"make Image modules dtbs with {'clang' if request.llvm else 'gcc'} in the cache",
        ],
    }


def _prebuilt(board: Board, kernel: str, options: Options) -> KernelDocument:
    """The distribution's package, and the same symbols looked up in its configuration."""
    asked = fragments.merge(fragments.fragment_files(board, options.files()))
    if options.dry_run:
        return {
            "board": board.name,
            "kernel": kernel,
            "dry_run": True,
            "symbols_asked": len(asked),
            "would": [
                f"fetch the distribution's kernel package of {kernel}, if it is not cached",
                f"look for {counted(len(asked), 'symbol')} in its configuration",
            ],
        }
    packaged = prebuilt_kernel(kernel)
    described = describe_files(options.files())
    missing = differences(
        asked,
        read_config(packaged.config),
        module_will_do=True,
        shipped_files=len(fragments.fragment_files(board)),
    )
    left_out = [each.asked for each in missing if is_nobodys(each.asked)]
    say_left_out(left_out)
    explained = [
        dataclasses.replace(each, reasons=() if each.got else vendor_lines(each.asked.symbol))
        for each in missing
        if not is_nobodys(each.asked)
    ]
    not_had = [each for each in explained if each.asked.may_be_missing]
    what, name = f"{packaged.package} {packaged.version}", f"{board.name}-{packaged.release}"
    say_not_had(not_had, what, name=name)
    refuse(
        [each for each in explained if not each.asked.may_be_missing],
        what,
        name=name,
        hint="a package is configured already: leave --prebuilt out to build one, or take them out",
    )
    return {
        "board": board.name,
        "kernel": kernel,
        "outcome": "prebuilt",
        "version": packaged.version,
        "package": packaged.package,
        "release": packaged.release,
        "image": str(packaged.image),
        "modules": str(packaged.modules),
        "config": str(packaged.config),
        "dtbs": [str(packaged.dtbs)],
        "fragments": described,
        "symbols_asked": len(asked),
        "differences": [],
        "not_had": [each.document() for each in not_had],
        "left_out": [each.symbol for each in left_out],
    }


def explain(board: Board, options: Options) -> list[dict[str, str]]:
    """What each symbol of a board's fragments is for."""
    return fragments.explanation(fragments.merge(fragments.fragment_files(board, options.files())))


def explanation_text(rows: Sequence[dict[str, str]]) -> str:
    """The same as a table: symbols with one purpose under one heading."""
    lines: list[str] = []
    purpose = None
    for row in rows:
        if row["purpose"] != purpose:
            purpose = row["purpose"]
            lines += ["", purpose or "(no purpose given)"]
        lines.append(f"    {row['symbol']}={row['value']}")
    return "\n".join([*lines[1:], "", counted(len(rows), "symbol")])


def text_of(document: KernelDocument) -> str:
    """The document as people read it."""
    if document.get("dry_run"):
        return "\n".join(f"would {line}" for line in document["would"])
    rows = [["board", document["board"]]]
    if document["outcome"] == "prebuilt":
        rows.append(["package", f"{document['package']} {document['version']}"])
    else:
        rows.append(["source", f"{document['origin']} ({document['version']})"])
        rows.append(["compiler", document["compiler"]])
        rows.append(["patches", ", ".join(document["patches"]) or "none"])
    rows += [["fragment", f"{each['file']}: a {each['kind']}"] for each in document["fragments"]]
    not_had, gave_way = len(document.get("not_had", ())), len(document.get("gave_way", ()))
    left_out = len(document.get("left_out", ()))
    details = [
        *([f"{not_had} not available in this kernel"] if not_had else []),
        *([f"{gave_way} gave way to later fragments"] if gave_way else []),
        *([f"{left_out} left out, as nobody can ask for them"] if left_out else []),
    ]
    # A symbol that a later line sets to something else is as that line asks.
    elsewhere = sum(each["symbol"] != each["to"] for each in document.get("gave_way", ()))
    as_asked = (
        f"{document['symbols_asked'] - not_had - elsewhere - left_out} as asked"
        if details
        else "all as asked"
    )
    rows.append(
        ["symbols", ", ".join([f"{document['symbols_asked']} asked for", as_asked, *details])]
    )
    if document["outcome"] == "built":
        rows.append(["build id", document["build_id"]])
        rows.append(["release", document["release"]])
        rows.append(["folder", document["folder"]])
        rows.append(["size", f"{document['size_bytes'] / 1e6:.1f} MB"])
        rows.append(["deploy", f"./inv deploy --host H --kernel build:{document['build_id']}"])
    return table(["what", "is"], rows)


# --- back into a fragment ------------------------------------------------------------------------


def save_fragment(board: Board, options: Options, name: str, *, menu: bool) -> SavedFragment:
    """Write what the build folder's configuration has beyond the fragments as a fragment.

    Args:
        menu: have the user change it in the kernel's own menus first.

    Raises:
        UserError: the file exists, or there is no terminal for the menus.
    """
    import subprocess
    import sys

    if not name:
        raise UserError("--menuconfig needs --save-fragment FILE, or the changes would be lost")
    target = Path(name)
    if target.exists():
        raise UserError(f"{target} exists already", hint="give another name, or remove it")
    if menu and not sys.stdin.isatty():
        raise UserError("--menuconfig needs a terminal", hint="write a fragment: lines CONFIG_X=y")
    kernel = options.kernel or board.kernel
    prepared = build.prepare(build.KernelRequest(board, kernel, options.files(), llvm=options.llvm))
    work = prepared.work
    before = read_config(work.config) if not prepared.configured.fresh else _untouched(prepared)
    if menu:
        install_packages([] if has_header("ncurses.h") else ["libncurses-dev"])
        # With the terminal: run() would take it away.
        if subprocess.run(work.make("-s", "menuconfig"), check=False).returncode:
            raise InfrastructureError("the kernel's menus ended with an error, see above")
    changed = fragments.changes(before, read_config(work.config))
    heading = f"# Changed with menuconfig, on top of the fragments of {board.name}\n"
    write_atomically(target, (heading + "".join(f"{line}\n" for line in changed)).encode())
    # The next build starts from fragments.
    (work.folder / "npu-bsp.config-key").unlink(missing_ok=True)
    return {"board": board.name, "kernel": kernel, "fragment": str(target), "lines": changed}


def _untouched(prepared: build.Prepared) -> dict[str, str]:
    """What the fragments alone give: somebody may have changed the build folder's configuration."""
    with tempfile.TemporaryDirectory(prefix="npu-bsp-config-") as name:
        work = dataclasses.replace(prepared.work, folder=Path(name))
        configure(work, dict(prepared.configured.asked))
        return read_config(work.config)
