# SPDX-License-Identifier: MIT
"""``deploy`` as it is typed: names and files become records, and the bundle is made when none is given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bsp.base.errors import UserError
from bsp.base.flags import refuse_flags
from bsp.base.progress import step
from bsp.base.terminal.ask import can_ask, confirm
from bsp.catalog import load_board
from bsp.profile import Board
from bsp.remote.inventory import Host, resolve
from images.bundle import manifest as bundles
from images.bundle import sign
from images.bundle.command import BundleFlags
from images.bundle.manifest import Bundle
from userspace.npu.mesa.manifest import named_mesa

from . import plan as planning
from .claim import Claim
from .deploy import deploy
from .deployment import Deployment, GivenBack
from .session import Target
from .transfer.agent import Agent
from .transfer.shared import Shared


@dataclass(frozen=True)
class Settings:
    """How deployments are made; see ``Target``.

    Raises:
        UserError: a number is not one that makes sense.
    """

    timeout_s: float = 180
    accept_new_key: bool = False
    check_health: bool = True
    keep: int | None = None
    verify: bool = False
    verify_every: int | None = None
    claim: Claim | None = None
    force_enable: bool = False

    def __post_init__(self) -> None:
        if self.timeout_s <= 0:
            raise UserError(f"--timeout is {self.timeout_s:g}, expected seconds above 0")
        if self.keep is not None and self.keep < planning.KEEP:
            raise UserError(
                f"--keep is {self.keep}, expected {planning.KEEP} or more: the good generation and the "
                "one before"
            )
        if self.verify_every is not None and self.verify_every < 0:
            raise UserError(f"--verify-every is {self.verify_every}, expected 0 (never) or more")

    def target(self, host: Host, *, shared: Shared | None = None) -> Target:
        """Return the target that a host is with these."""
        return Target(
            host,
            timeout_s=self.timeout_s,
            accept_new_key=self.accept_new_key,
            check_health=self.check_health,
            keep=self.keep,
            verify=self.verify,
            verify_every=self.verify_every,
            claim=self.claim or Claim(),
            force_enable=self.force_enable,
            shared=shared,
        )


DEFAULTS = Settings()


@dataclass(frozen=True)
class Content:
    """What is to be deployed, as ``--bundle``, ``--board``... say; empty: the flag was not given."""

    bundle: str = ""
    board: str = ""
    kernel: str = ""
    dtb: str = ""
    mesa: str = ""

    def named_bundle(self) -> Bundle | None:
        """The bundle that ``--bundle`` names, checked in full; None where the flag was not given.

        Raises:
            UserError: flags contradict each other, what they name is not there, or the bundle is broken.
        """
        if self.bundle:
            ruled_out = {"kernel": self.kernel, "dtb": self.dtb, "mesa": self.mesa}
            refuse_flags(ruled_out, "--bundle brings its own kernel, DTB and userspace")
        if self.dtb and not Path(self.dtb).is_file():
            raise UserError(
                f"there is no file {self.dtb}", hint="--dtb wants a compiled device tree"
            )
        named_mesa(self.mesa)
        if not self.bundle:
            return None
        bundle = bundles.load(Path(self.bundle))
        sign.check_signature(bundle)
        bundles.check(bundle)
        with step("Reading the bundle"):
            sign.check_content(bundle)
        return bundle

    def beside_device_tree(self) -> dict[str, str]:
        """What was given but board and device tree, by the flags' names."""
        return {"bundle": self.bundle, "kernel": self.kernel, "mesa": self.mesa}

    def profile(self) -> Board | None:
        """The profile that ``--board`` names."""
        return load_board(self.board) if self.board else None

    def made_for(self, board: Board, *, force_enable: bool) -> Bundle:
        """Make the bundle of a board, with the kernel, DTB and Mesa that were given."""
        flags = BundleFlags(self.kernel, self.dtb, self.mesa, force_enable=force_enable)
        return flags.make(board)


NOTHING_GIVEN = Content()


def deploy_to(
    host: str,
    content: Content = NOTHING_GIVEN,
    *,
    dtb_only: bool = False,
    adopt: bool = False,
    by_kexec: bool = False,
    persist: bool = False,
    settings: Settings = DEFAULTS,
    dry_run: bool = False,
    allow_downgrade: bool = False,
) -> Deployment:
    """Deploy to the host of that name.

    Raises:
        UserError: the flags contradict each other, or what they name is not there.
    """
    bundle = content.named_bundle()
    target = settings.target(resolve(host))
    if adopt:
        return take_over(target, content, dtb_only=dtb_only, by_kexec=by_kexec, dry_run=dry_run)
    dtb = Path(content.dtb) if content.dtb else None
    if by_kexec:
        refuse_flags(
            content.beside_device_tree(),
            "--try starts the kernel that runs, with another device tree",
        )
        from .kexec_trial import try_dtb

        return try_dtb(target, board=content.profile(), dtb=dtb, dry_run=dry_run, persist=persist)
    if persist:
        raise UserError(
            "--persist keeps what --try has tried",
            hint=f"./inv deploy --host {host} --try --persist",
        )
    if dtb_only:
        refuse_flags(
            content.beside_device_tree(),
            "--dtb-only keeps the kernel and the userspace that the board runs",
        )
        from .in_place import deploy_dtb

        return deploy_dtb(target, board=content.profile(), dtb=dtb, dry_run=dry_run)
    return deploy(
        target,
        bundle=bundle,
        board=content.profile(),
        make_bundle=lambda board: content.made_for(board, force_enable=settings.force_enable),
        dry_run=dry_run,
        on_downgrade=None if allow_downgrade else ask_downgrade,
    )


def take_over(
    target: Target, content: Content, *, dtb_only: bool, by_kexec: bool, dry_run: bool
) -> Deployment:
    """Take a board over, with ``dtb_only`` and another device tree in the same boot.

    Raises:
        UserError: other flags were given that ask for more.
    """
    from .adopt import adopt

    given = Content(board=content.board, dtb=content.dtb if dtb_only else "")
    if by_kexec or content != given:
        raise UserError(
            "--adopt makes what the board runs its first generation, with --dtb-only another device tree, "
            "and nothing else",
            hint="deploy afterwards: the same command without --adopt",
        )
    board = content.profile()
    if not dtb_only:
        return adopt(target, board=board, dry_run=dry_run)
    from .in_place import deploy_dtb, new_tree

    dtb = Path(content.dtb) if content.dtb else None

    def tree(agent: Agent, board: Board, folder: Path, fat_mount: str) -> bytes | None:
        return new_tree(target, agent, board, dtb, folder, fat_mount)

    adopted = adopt(target, board=board, tree=tree, dry_run=dry_run)
    if adopted.outcome != "unchanged":
        return adopted
    return deploy_dtb(target, board=board, dtb=dtb, dry_run=dry_run)


def ask_downgrade(what: str) -> None:
    """Ask on a terminal whether to deploy an older kernel; refuse where nobody can answer.

    Raises:
        UserError: nobody said yes.
    """
    refusal = UserError(
        f"{what}; nothing was changed",
        hint="--allow-downgrade if you mean it; rollback needs no flag",
    )
    if not can_ask() or not confirm(f"{what}. Go on?"):
        raise refusal


def give_back(host: str, *, accept_new_key: bool = False, dry_run: bool = False) -> GivenBack:
    """Undo ``--adopt`` or ``--persist``.

    Raises:
        UserError: the board was not taken over.
    """
    target = Target(resolve(host), accept_new_key=accept_new_key)
    returned = undo_all(target, dry_run=dry_run)
    outcome = "planned" if dry_run else "given-back"
    return {"host": target.host.name, "outcome": outcome, "returned": returned}


def undo_all(target: Target, *, dry_run: bool = False) -> list[str]:
    """Undo an adoption, then what the distribution keeps; return the files that are as they were.

    In this order: what booted the board before the adoption may name the tree that is kept.

    Raises:
        UserError: there is neither.
    """
    from .adopt import refuse_not_adopted, undo
    from .kept_tree import take_back

    returned = undo(target, dry_run=dry_run)
    kept = take_back(target, dry_run=dry_run)
    if returned is None and kept is None:
        refuse_not_adopted(target.host.name)
    return [*(returned or ()), *(kept or ())]
