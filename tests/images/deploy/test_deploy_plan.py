# SPDX-License-Identifier: MIT
"""Plans, boot state and device-tree comparison: pure, so tried with anything."""

from __future__ import annotations

import base64
import struct
import time
import zlib
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bsp.base.errors import UserError
from bsp.base.process import run
from images.bundle import manifest as bundles
from images.bundle.manifest import Entry, Manifest
from images.deploy import trial
from images.deploy.boot import slots, state
from images.deploy.boot.command_line import command_line_for
from images.deploy.checks import running_tree
from images.deploy.onboard import frames
from images.deploy.onboard.boot_files import EMPTY_RAM_DISK
from images.deploy.onboard.script_image import script_image, script_text
from images.deploy.plan import (
    Confirm,
    Discard,
    Facts,
    Plan,
    Send,
    Space,
    Try,
    check_layout,
    plan_deploy,
    plan_rollback,
)
from images.deploy.transfer.agent import line_difference
from tests.support.fake_boot import compile_dtb, tree_source

GENERATIONS = st.text("0123456789abcdef", min_size=12, max_size=12)

# --- boot state --------------------------------------------------------------------------------------


FORMS = st.sampled_from(state.Form)


@given(GENERATIONS, st.none() | GENERATIONS, FORMS)
def test_good_reads_back(good: str, previous: str | None, form: state.Form) -> None:
    sector = state.render_good(state.Good(good, previous), form)
    assert len(sector) == 512
    assert state.parse_good(sector) == state.Good(good, previous)


@given(GENERATIONS, GENERATIONS, FORMS)
@settings(max_examples=15, deadline=None)
def test_a_torn_trial_is_the_new_one_the_old_one_or_none(
    new: str, old: str, form: state.Form
) -> None:
    whole = state.render_trial(new, form)
    for before in (state.SPENT, state.render_trial(old, form), b"\xff" * 512, b""):
        for at in range(513):
            torn = whole[:at] + before[at:]
            found = state.parse_trial(torn)
            assert found in (None, new, old)
            if before == state.SPENT and found:
                assert torn.rstrip(b"\0\n") == whole.rstrip(b"\0\n")


@given(GENERATIONS, GENERATIONS, GENERATIONS, FORMS)
@settings(max_examples=10, deadline=None)
def test_a_torn_good_means_its_copy(new: str, old: str, older: str, form: state.Form) -> None:
    """The copy is written first: while one of the two is torn, the other is whole."""
    before, after = (
        state.render_good(state.Good(old, older), form),
        state.render_good(state.Good(new, old), form),
    )
    for at in range(513):
        torn = after[:at] + before[at:]
        during_copy = state.choose_good(before, torn)
        during_good = state.choose_good(torn, after)
        assert during_copy == state.Good(old, older)
        assert during_good in (state.Good(old, older), state.Good(new, old))


def test_what_is_no_state_is_none() -> None:
    for sector in (b"", state.SPENT, b"\xff" * 512, b"npu_good=zz\nnpu_good_end=zz.none\n"):
        assert state.parse_good(sector) is None
        assert state.parse_trial(sector) is None
    with pytest.raises(ValueError, match="12 hexadecimal digits"):
        state.render_trial("../../etc")


@pytest.mark.parametrize("form", state.Form)
def test_args_are_one_line(form: state.Form) -> None:
    line = 'console=ttyAMA0 quiet dyndbg="file a.c +p; x" $y'
    data = state.render_args(line, kernel="/k", initrd="/i", dtb="/d", form=form)
    assert state.parse_args(data) == {
        "npu_kernel": "/k", "npu_initrd": "/i", "npu_dtb": "/d", "npu_args": line,
    }  # fmt: skip
    assert all(state.parse_args(data[:at]) is None for at in range(len(data) - 1))
    for wrong in ("a\nnpu_kernel=/evil", "a='b'", "\xe4", "a\0b"):
        with pytest.raises(ValueError, match="one line of ASCII"):
            state.render_args(wrong, kernel="", initrd="", dtb="", form=form)


def test_arguments_without_a_ram_disk() -> None:
    data = state.render_args("quiet", kernel="/k", initrd="", dtb="/d")
    assert state.parse_args(data) == {"npu_kernel": "/k", "npu_dtb": "/d", "npu_args": "quiet"}


def test_script_images_are_those_of_mkimage(tmp_path: Path) -> None:
    text = "setenv npu_trial 0123456789ab\n"
    (tmp_path / "text").write_text(text)
    run(
        ["mkimage", "-A", "arm64", "-O", "linux", "-T", "script", "-C", "none", "-n", "npu-bsp",
         "-d", tmp_path / "text", tmp_path / "image"],
        env={"SOURCE_DATE_EPOCH": "946684800"},
    )  # fmt: skip
    assert script_image(text) == (tmp_path / "image").read_bytes()
    assert script_text((tmp_path / "image").read_bytes()) == text


# --- plans ---------------------------------------------------------------------------------------------


def manifest_of(content: dict[str, int], *, boot: int = 0) -> Manifest:
    """A manifest whose files have a content that is named by a number."""
    numbers = {f"boot/{name}": boot for name in ("kernel", "initrd", "board.dtb")} | {
        f"modules/1/{name}": number for name, number in content.items()
    }
    files = tuple(
        Entry(
            path,
            f"{number:064x}" if not path.startswith("boot/") else f"b{number:063x}",
            number + 1,
        )
        for path, number in sorted(numbers.items())
    )
    manifest = Manifest(
        format=1, generation="", board="virtual", compatible=("a,b",), kernel_release="1", cmdline="c",
        files=files, inputs={},
    )  # fmt: skip
    return msgspec.structs.replace(manifest, generation=bundles.generation_of(manifest))


MANIFESTS = st.builds(
    manifest_of,
    st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 5)),
    boot=st.integers(0, 2),
)


def facts_of(
    there: list[Manifest],
    good: state.Good,
    running: str | None,
    damaged: dict[str, tuple[str, ...]],
) -> Facts:
    sector = base64.b64encode(state.render_good(good)).decode()
    room = Space(bytes=1 << 40, files=1 << 30)
    return Facts(
        compatible=("a,b",), model="", serial="", boot_id="1", release="1", cmdline="", running=running,
        slot="good", sectors={"good": sector, "good-copy": sector, "trial": ""}, boot_script=True,
        fat_mounted=True, writable={"fat": True, "root": True}, space={"fat": room, "root": room},
        fat_files={
            slots.fat_path(entry.sha256).rpartition("/")[2]: entry.size_bytes
            for manifest in there
            for entry in slots.boot_entries(manifest)
        },
        generations={manifest.generation: damaged.get(manifest.generation, ()) for manifest in there},
        resumable=(), leftovers=(), codecs=("G",), onboard={}, fdt=None, dtb=None,
    )  # fmt: skip


def carried_out(plan: Plan, manifest: Manifest, facts: Facts, there: list[Manifest]) -> Facts:
    """What the board would say after the plan."""
    good = facts.good
    assert good
    running = facts.running
    for step in plan.steps:
        if isinstance(step, Discard):
            there = [each for each in there if each.generation in step.keep]
        elif isinstance(step, Send):
            there = [*[each for each in there if each.generation != manifest.generation], manifest]
        elif isinstance(step, Try):
            running = step.generation
        elif isinstance(step, Confirm):
            good = state.Good(step.generation, step.previous)
            kept = {good.good, good.previous}
            there = [each for each in there if each.generation in kept]
    return facts_of(there, good, running, {})


@given(
    st.lists(MANIFESTS, min_size=1, max_size=4, unique_by=lambda each: each.generation),
    MANIFESTS,
    st.data(),
)
@settings(max_examples=200, deadline=None)
def test_planning_again_gives_nothing_to_do(
    there: list[Manifest], wanted: Manifest, data: st.DataObject
) -> None:
    names = [each.generation for each in there]
    good = state.Good(
        data.draw(st.sampled_from(names)), data.draw(st.none() | st.sampled_from(names))
    )
    running = data.draw(
        st.none() | st.sampled_from([good.good, *([good.previous] if good.previous else [])])
    )
    broken = data.draw(st.booleans())
    damaged: dict[str, tuple[str, ...]] = {names[0]: ("modules/1/a",)} if broken else {}
    facts = facts_of(there, good, running, damaged)
    known = {each.generation: each for each in there}
    plan = plan_deploy(wanted, facts, good, known, host="h")
    # Whatever is not sent lies on the board, whole, under the same content and mode.
    if plan.send:
        sent = {wanted.files[index].sha256 for index in plan.send.indexes}
        here = {
            entry.sha256
            for each in there
            for entry in each.files
            if entry.path not in damaged.get(each.generation, ())
        }
        removed = {name for step in plan.steps if isinstance(step, Discard) for name in step.names}
        assert not removed & {*plan.send.bases, plan.send.base}
        assert {entry.sha256 for entry in wanted.files} <= sent | here
        assert len(plan.send.indexes) == len(sent), "the same content was sent twice"
    # Nothing that runs, or would boot, is ever removed.
    for step in plan.steps:
        if isinstance(step, Discard):
            assert {good.good, good.previous, running} & set(names) <= set(step.keep)
    after = carried_out(plan, wanted, facts, there)
    assert after.good
    again = plan_deploy(wanted, after, after.good, {wanted.generation: wanted}, host="h")
    assert again.steps == ()


def test_no_room_is_said_beforehand() -> None:
    old, new = manifest_of({"a": 1}), manifest_of({"a": 2})
    facts = facts_of([old], state.Good(old.generation), old.generation, {})
    for place, name in (("fat", "boot partition"), ("root", "root file system")):
        full = {**facts.space, place: Space(bytes=1000, files=1 << 30)}
        with pytest.raises(UserError, match=f"the {name} of h is full"):
            plan_deploy(new, msgspec.structs.replace(facts, space=full), state.Good(old.generation),
                        {old.generation: old}, host="h")  # fmt: skip


def test_rollback_needs_a_whole_generation_to_go_back_to() -> None:
    old, new = manifest_of({"a": 1}), manifest_of({"a": 2})
    good = state.Good(new.generation, old.generation)
    plan = plan_rollback(facts_of([old, new], good, new.generation, {}), good, host="h")
    assert plan.steps == (Try(old.generation), Confirm(old.generation, new.generation))
    damaged: dict[str, tuple[str, ...]] = {old.generation: ("modules/1/a",)}
    with pytest.raises(UserError, match="is damaged"):
        plan_rollback(facts_of([old, new], good, new.generation, damaged), good, host="h")
    with pytest.raises(UserError, match="is not there"):
        plan_rollback(facts_of([new], good, new.generation, {}), good, host="h")


def test_boards_that_cannot_be_deployed_to() -> None:
    facts = facts_of([], state.Good("0" * 12), None, {})
    for changes, match in (
        ({"fat_mounted": False}, "no boot partition mounted"),
        ({"boot_script": False}, r"lacks the boot script"),
        ({"sectors": {}}, r"lacks a readable good\.env"),
        ({"writable": {"fat": False, "root": True}}, "read-only"),
    ):
        with pytest.raises(UserError, match=match):
            check_layout(
                msgspec.structs.replace(facts, **changes), host="h", fat_mount="/boot/firmware"
            )


# --- the stream ----------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from("abcdefgh")), st.lists(st.sampled_from("abcdefghij")))
def test_a_difference_of_lines_gives_the_lines_back(base: list[str], wanted: list[str]) -> None:
    old, new = "\n".join(base).encode(), "\n".join(wanted).encode()
    runs, fresh = line_difference(old, new)
    lines, rest = old.split(b"\n"), iter(fresh.split(b"\n"))
    found: list[bytes] = []
    for first, count in runs:
        found.extend(
            lines[first : first + count] if first >= 0 else (next(rest) for _ in range(count))
        )
    assert b"\n".join(found) == new


@given(st.sets(st.integers(0, 50)))
def test_ranges(numbers: set[int]) -> None:
    assert frames.from_ranges(frames.ranges(sorted(numbers))) == sorted(numbers)


@given(st.binary(max_size=5000))
def test_codecs_give_back_what_they_took(data: bytes) -> None:
    for kind in (b"Z", b"G"):
        codec = frames.codec(kind)
        assert codec
        assert codec.decompress(codec.compress(data)) == data
        with pytest.raises(frames.RefusedError):
            codec.decompress(b"what is this")


# --- device trees -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dtb(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return compile_dtb(tree_source(), tmp_path_factory.mktemp("dtb") / "a.dtb").read_bytes()


def changed(dtb: bytes, folder: Path, *words: str) -> bytes:
    import subprocess

    path = folder / "changed.dtb"
    path.write_bytes(dtb)
    option = [words[0]] if words[0].startswith("-") else []
    rest = words[1:] if option else words
    subprocess.run(["fdtput", *option, str(path), *rest], check=True)
    return path.read_bytes()


def test_what_boot_loaders_change_is_left_out(dtb: bytes, tmp_path: Path) -> None:
    for words in (
        ("-ts", "/chosen", "bootargs", "other"), ("-tx", "/memory@40000000", "reg", "0", "1", "2", "3"),
        ("-ts", "/", "serial-number", "0001"), ("-tx", "/npu@1000", "local-mac-address", "1"),
    ):  # fmt: skip
        (tmp_path / "a").write_bytes(dtb)
        option, path, name, *values = words
        import subprocess

        subprocess.run(["fdtput", option, str(tmp_path / "a"), path, name, *values], check=True)
        assert running_tree.compare(dtb, (tmp_path / "a").read_bytes()) == []


def test_differences_are_named(dtb: bytes, tmp_path: Path) -> None:
    import subprocess

    target = tmp_path / "a"
    target.write_bytes(dtb)
    subprocess.run(["fdtput", "-ts", str(target), "/npu@1000", "status", "disabled"], check=True)
    subprocess.run(["fdtput", "-c", str(target), "/extra"], check=True)
    found = [str(difference) for difference in running_tree.compare(dtb, target.read_bytes())]
    assert found == [
        "/extra: node was not sent",
        '/npu@1000 status: expected nothing, found "disabled" '
        "(the boot loader, or an overlay that it applies, switched it off)",
    ]
    assert str(running_tree.compare(target.read_bytes(), dtb)[0]) == "/extra: node is missing"


def test_nop_tokens_of_a_running_tree_are_read(dtb: bytes) -> None:
    """The kernel wipes seeds with FDT_NOP (fdt_nop_property in drivers/of/fdt.c)."""
    at = struct.unpack_from(">I", dtb, 8)[0]
    nop = struct.pack(">I", 4)
    # Put one behind the root's FDT_BEGIN_NODE and empty name; the strings move along.
    size, strings = struct.unpack_from(">I", dtb, 4)[0], struct.unpack_from(">I", dtb, 12)[0]
    longer = bytearray(dtb[: at + 8] + nop + dtb[at + 8 :])
    struct.pack_into(">I", longer, 4, size + 4)
    struct.pack_into(">I", longer, 12, strings + (4 if strings > at else 0))
    struct.pack_into(">I", longer, 36, struct.unpack_from(">I", dtb, 36)[0] + 4)  # size_dt_struct
    assert running_tree.compare(dtb, bytes(longer)) == []


def test_what_is_no_device_tree(dtb: bytes) -> None:
    for blob in (b"", b"hello, this is not a DTB", dtb[:100], dtb[: len(dtb) // 2]):
        with pytest.raises(UserError):
            running_tree.compare(dtb, blob)


def packed(blob: bytes) -> str:
    return base64.b64encode(zlib.compress(blob)).decode()


def test_a_running_tree_that_is_damaged_or_hostile_is_a_problem_and_no_crash(dtb: bytes) -> None:
    """A board says what it runs; whatever it says, the trial ends in bounded time."""
    assert trial.tree_problems(packed(dtb), packed(dtb)) == []
    begin, end = struct.pack(">I", 1), struct.pack(">I", 2)
    body = begin + bytes(4) + (begin + b"aaa\0") * 50_000 + end * 50_001 + struct.pack(">I", 9)
    size = 56 + len(body)
    deep = struct.pack(">10I", 0xD00DFEED, size, 56, size, 40, 17, 16, 0, 0, len(body)) + bytes(16)
    bomb = bytes(200 << 20)
    for running, what in (
        (packed(deep + body), "nested too deep"),
        (packed(dtb[:-60]), "truncated"),
        (packed(bomb), "not a device tree blob"),
        ("not base64!", "cannot be read"),
        (base64.b64encode(b"not zlib").decode(), "cannot be read"),
    ):
        started = time.process_time()
        (problem,) = trial.tree_problems(packed(dtb), running)
        assert what in problem
        assert time.process_time() - started < 1


# --- manifests ------------------------------------------------------------------------------


def test_a_manifest_reads_back_and_names_itself() -> None:
    manifest = manifest_of({"a": 1, "b": 2})
    data = bundles.encode(manifest)
    assert bundles.decode(data, "x") == manifest
    with pytest.raises(UserError, match="its content says"):
        bundles.decode(data.replace(b'"size_bytes":2', b'"size_bytes":3'), "x")
    with pytest.raises(UserError, match="not a manifest"):
        bundles.decode(data[:-20], "x")
    with pytest.raises(UserError, match="unknown field"):
        bundles.decode(data.replace(b'"board"', b'"bored"'), "x")
    for path in ("../../etc/passwd", "/etc/passwd", "a//b"):
        with pytest.raises(UserError, match="not a path below the bundle"):
            bundles.decode(data.replace(b"modules/1/a", path.encode()), "x")


def test_the_same_inputs_give_the_same_bundle(tmp_path: Path) -> None:
    from tests.support.fake_board import make_bundle

    one, other = make_bundle(tmp_path / "one"), make_bundle(tmp_path / "other")
    assert one.generation == other.generation
    manifests = [(bundle.path / "manifest.json").read_bytes() for bundle in (one, other)]
    assert manifests[0] == manifests[1]
    assert (
        one.manifest.cmdline
        == "console=ttyAMA0 root=LABEL=npu-root panic=10 systemd.watchdog_sec=60"
    )
    assert make_bundle(tmp_path / "third", kernel=b"other").generation != one.generation


# --- command lines -------------------------------------------------------------------------------------

RUNNING = "BOOT_IMAGE=/x root=PARTUUID=ab-01 quiet npu_bsp.slot=good panic=5"


def command_line(*, adopted: bool, cmdline: str | None, initrd_bytes: int) -> str:
    manifest = msgspec.structs.replace(
        manifest_of({}),
        cmdline=cmdline,
        files=(Entry("boot/initrd", "0" * 64, initrd_bytes),),
    )
    facts = facts_of([], state.Good("a" * 12), None, {})
    facts = msgspec.structs.replace(facts, cmdline=RUNNING, adopted=adopted, root_uuid="1234-ab")
    return command_line_for(manifest, facts)


def test_an_adopted_board_keeps_its_own_root() -> None:
    """A profile's root= is that of an image of ours; our RAM disk knows file systems, not partitions."""
    ours = command_line(adopted=False, cmdline="root=LABEL=npu-root", initrd_bytes=1 << 20)
    assert ours == "root=LABEL=npu-root"
    kept = command_line(adopted=True, cmdline="root=LABEL=npu-root", initrd_bytes=1 << 20)
    assert kept.startswith("root=UUID=1234-ab quiet panic=5")
    without = command_line(adopted=True, cmdline=None, initrd_bytes=len(EMPTY_RAM_DISK))
    assert without.startswith("root=PARTUUID=ab-01 quiet panic=5")
