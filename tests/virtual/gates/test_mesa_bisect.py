# SPDX-License-Identifier: MIT
"""Which commit of Mesa made a model come out wrong: the search, on histories made here."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from bsp.base.errors import UserError
from userspace.npu.mesa.source import mesa_tree
from virtual.gates import mesa_bisect, noted_jobs
from virtual.gates.mesa_bisect import BisectRequest, _Bench
from virtual.gates.records import OutcomeRecord
from virtual.gates.sweep import Outcome


def git(folder: Path, *words: str) -> str:
    command = [
        "git",
        "-C",
        str(folder),
        "-c",
        "user.name=A. Developer",
        "-c",
        "user.email=a@b",
        *words,
    ]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def commit(folder: Path, subject: str, file: str = "notes", text: str = "") -> str:
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / file).write_text(text or subject)
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", subject)
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[str]]:
    monkeypatch.setenv("NPU_BSP_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "mesa"
    folder.mkdir()
    git(folder, "init", "-q")
    commit(folder, "made", "src/gallium/meson.build", "\n")
    commit(folder, "made", "src/gallium/frontends/teflon/x.c", "\n")
    commit(folder, "made", "VERSION", "25.0.7\n")
    return folder, [commit(folder, f"etnaviv: change {number}") for number in range(20)]


def outcome(status: str) -> list[OutcomeRecord]:
    return [Outcome("a311d", "case", "k", status).document()]


def bench(
    folder: Path, tmp_path: Path, commits: list[str], first_bad: int, unbuilt: set[int]
) -> _Bench:
    """What would be measured is known; commits that are not in it have no Mesa to build."""
    clone = tmp_path / "clone"
    mesa_bisect._copy_repository(folder, clone, commits)
    made = _Bench(BisectRequest("", ""), clone, ["a311d"], [])
    for number, each in enumerate(commits):
        if number not in unbuilt:
            made.outcomes[each] = outcome("good" if number < first_bad else "wrong")
    return made


@pytest.mark.parametrize("first_bad", [1, 13])
def test_the_first_bad_commit_is_found(
    history: tuple[Path, list[str]], tmp_path: Path, first_bad: int
) -> None:
    folder, commits = history
    made = bench(folder, tmp_path, commits, first_bad, set())
    assert mesa_bisect._search(made, commits[0], commits[-1]) == commits[first_bad]


def test_what_does_not_build_is_skipped(history: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, commits = history
    git(folder, "rm", "-q", "VERSION")
    git(folder, "commit", "-q", "-m", "no version")
    broken = git(folder, "rev-parse", "HEAD")
    commits.append(broken)
    commits.append(commit(folder, "mended", "VERSION", "25.0.7\n"))
    made = bench(folder, tmp_path, commits, 21, {20})
    assert made.test(broken) is None
    assert made.skipped == [broken]
    # 20 cannot be tested: the fault came with it or with the one after.
    assert mesa_bisect._search(made, commits[0], commits[-1]) == ""
    made = bench(folder, tmp_path, commits, 12, {20})
    assert mesa_bisect._search(made, commits[0], commits[-1]) == commits[12]


def test_the_repository_that_is_given_is_left_as_it_is(
    history: tuple[Path, list[str]], tmp_path: Path
) -> None:
    folder, commits = history
    (folder / "notes").write_text("being edited")
    made = bench(folder, tmp_path, commits, 3, set())
    mesa_bisect._search(made, commits[0], commits[-1])
    assert git(folder, "rev-parse", "HEAD") == commits[-1]
    assert (folder / "notes").read_text() == "being edited"
    assert mesa_tree(f"path:{made.clone}").version == "25.0.7"


def test_wrong_ends_are_named(history: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, commits = history
    for text, said in (
        ("main", r"expected GOOD\.\.BAD"),
        (f"{commits[0]}..nothing", "has no commit 'nothing'"),
        (f"{commits[3]}..{commits[1]}", "does not come before"),
        (f"{commits[3]}..{commits[3]}", "does not come before"),
    ):
        with pytest.raises(UserError, match=said):
            mesa_bisect._ends(folder, text)
    assert mesa_bisect._ends(folder, f"{commits[0][:10]}..HEAD") == (commits[0], commits[-1])


def test_other_arguments_are_looked_at_before_anything_is_built(
    history: tuple[Path, list[str]], tmp_path: Path
) -> None:
    folder, commits = history
    ends = f"{commits[0]}..{commits[-1]}"
    plain = tmp_path / "plain"
    (plain / "src/gallium/frontends/teflon").mkdir(parents=True)
    (plain / "src/gallium/meson.build").write_text("")
    (plain / "VERSION").write_text("25.0.7\n")
    for request, said in (
        (BisectRequest(ends, "distribution:trixie"), "needs --source path:DIR"),
        (BisectRequest(ends, f"path:{plain}"), "is not a git repository"),
        (BisectRequest(ends, f"path:{folder}", case="no such thing"), "there is no case"),
        (BisectRequest(ends, f"path:{folder}", case="conv_"), "have that in their names"),
        (BisectRequest(ends, f"path:{folder}", model="none.tflite"), "there is no file"),
        (BisectRequest(ends, f"path:{folder}", case="a", model="b"), "exclude each other"),
        (BisectRequest(ends, f"path:{folder}", npu="virtual:none"), "none"),
    ):
        with pytest.raises(UserError, match=said):
            mesa_bisect.bisect(request)


def test_the_first_job_that_changed_is_said_in_words() -> None:
    first = {"job": "TP, move", "size": (1, 2, 3)}
    second = {"job": "NN, 3x3", "pad_y": 1, "border": 128}
    assert noted_jobs.first_change([first, second], [first, second]) == ""
    said = noted_jobs.first_change([first, second], [first, {**second, "border": 0}])
    assert said == "job 1 (NN, 3x3): border 128 -> 0"
    assert noted_jobs.first_change([first, second], [second]) == "job 0: TP, move -> NN, 3x3"
    assert noted_jobs.first_change([first, second], [first]) == "job 1 is missing: NN, 3x3"
    assert noted_jobs.first_change([first], [first, second]) == "job 1 is new: NN, 3x3"


@pytest.mark.full
def test_a_fault_planted_in_one_of_twenty_commits_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The source package, real builds and the virtual NPU: one whole build, then some of few files."""
    tree = mesa_tree("distribution:trixie").path
    folder = tmp_path / "mesa"
    subprocess.run(["cp", "--archive", tree, folder], check=True)
    git(folder, "init", "-q")
    commit(folder, "Mesa 25.0.7", "notes", "0")
    source = "src/gallium/drivers/etnaviv/etnaviv_ml_nn.c"
    commits = [git(folder, "rev-parse", "HEAD")]
    for number in range(1, 21):
        text = (folder / source).read_text() + f"/* {number} */\n"
        if number == 13:
            text = text.replace(
                "map->in_image_border_const = operation->input_zero_point",
                "map->in_image_border_const = 0",
            )
        broken = number in (6, 11)
        commits.append(
            commit(
                folder,
                f"etnaviv: change {number}",
                source,
                text + ("#error no\n" if broken else ""),
            )
        )
        if broken:
            (folder / source).write_text(text)
    found = mesa_bisect.bisect(
        BisectRequest(
            f"{commits[0]}..{commits[-1]}", f"path:{folder}",
            case="conv_15x19x16-16_k3s1_same_120.128.110_uint8_noise", npu="virtual:a311d",
        )
    ).contents  # fmt: skip
    assert (found["commit"], found["subject"]) == (commits[13], "etnaviv: change 13")
    assert "border" in found["first_job_that_changed"]
    assert found["tested"] < 12
