# SPDX-License-Identifier: MIT
"""A job for those who run LAVA: their lab boots the board, our deployment and smoke test do the rest.

LAVA reserves a board, switches it on and waits for its login prompt (boot method ``minimal``: the board
boots what is on its storage). Its test runs in a container on LAVA's dispatcher, with this project in
it, and goes to the board over SSH as from anybody's desk: deployed on trial, confirmed, validated. LAVA's
own way (kernel and RAM disk over TFTP) would leave out what is to be tested: the way onto it and back.

As a program (``python -m bsp.remote.lab.lava RESULT.json``) it prints the rows of a smoke test as calls of
``lava-test-case``, for a shell in that container.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bsp.base.cache import write_atomically
from bsp.base.errors import UserError
from bsp.profile import Board

_IMAGE = re.compile(
    r"[a-z0-9]+[a-z0-9._/:-]*[a-z0-9]+(:[a-zA-Z0-9_]+[a-zA-Z0-9._-]*)?"
)  # LAVA's own
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_BOOT_MINUTES = 10
_TEST_MINUTES = 40
_ARCHIVE = "bundle.tar"


@dataclass(frozen=True)
class JobRequest:
    """What the job is to be.

    Attributes:
        container: image with this project in ``folder``, and with a key and known hosts for the boards.
        device_type: LAVA's name of the kind of board; empty: that of the kernel's device tree, as LAVA's
            own device types are named.
        bundle: address of a tar of a bundle; empty has one made in the container.
        tags: LAVA's tags that the device has to have.
    """

    board: Board
    container: str
    folder: str = "/npu-bsp"
    device_type: str = ""
    bundle: str = ""
    bundle_sha256: str = ""
    tags: tuple[str, ...] = ()


def job(request: JobRequest) -> dict[str, Any]:
    """Return the job.

    Raises:
        UserError: a value is none that LAVA takes.
    """
    device_type = _checked(request)
    test = {
        "timeout": {"minutes": _TEST_MINUTES},
        "docker": {"image": request.container},
        "definitions": [_definition(request)],
    }
    document: dict[str, Any] = {
        "job_name": f"npu-bsp {request.board.name}",
        "device_type": device_type,
        "visibility": "public",
        "priority": "medium",
        "timeouts": {
            "job": {"minutes": 2 * _BOOT_MINUTES + _TEST_MINUTES + 10},
            "connection": {"minutes": 2},
        },
        "actions": [*_boot_actions(request), {"test": test}],
    }
    if request.tags:
        document["tags"] = list(request.tags)
    return document


def _checked(request: JobRequest) -> str:
    """Return the device type, or raise the UserErrors of ``job``."""
    board = request.board
    if not _IMAGE.fullmatch(request.container):
        raise UserError(
            f"{request.container!r} is not a name of a container image",
            hint="--container registry.example/npu-bsp:1; docs/lab.md says what has to be in it",
        )
    device_type = request.device_type or (Path(board.dts).name if board.dts else "")
    if not device_type:
        raise UserError(
            f"{board.name} has no device tree in the kernel that LAVA could name its device type after",
            hint="--device-type NAME, as LAVA's page of device types has it",
        )
    if request.bundle and not re.match(r"https?://\S+$", request.bundle):
        raise UserError(
            f"--bundle is {request.bundle!r}, expected an address that the dispatcher can fetch",
            hint=f"tar -cf {_ARCHIVE} -C BUNDLE . and put it on a web server of the lab",
        )
    if bool(request.bundle) != bool(re.fullmatch(r"[0-9a-f]{64}", request.bundle_sha256)):
        raise UserError(
            "--bundle and --bundle-sha256 belong together: nothing is fetched without a hash",
            hint=f"sha256sum {_ARCHIVE}",
        )
    return device_type


def _boot_actions(request: JobRequest) -> list[dict[str, Any]]:
    actions: list[dict[str, Any]] = []
    if request.bundle:
        fetched = {"url": request.bundle, "sha256sum": request.bundle_sha256}
        actions.append({
            "deploy": {
                "timeout": {"minutes": _BOOT_MINUTES}, "to": "downloads", "images": {"bundle": fetched},
            }
        })  # fmt: skip
    actions.append(
        {
            "boot": {
                "timeout": {"minutes": _BOOT_MINUTES},
                "method": "minimal",
                "prompts": ["login:"],
            }
        }
    )
    return actions


def _definition(request: JobRequest) -> dict[str, Any]:
    """The test that the job runs: one step after the other."""
    return {
        "from": "inline",
        "name": "npu-bsp",
        "path": "inline/npu-bsp.yaml",
        "repository": {
            "metadata": {
                "format": "Lava-Test Test Definition 1.0",
                "name": "npu-bsp",
                "description": f"deploy to {request.board.name} on trial, and validate its NPU",
            },
            "run": {"steps": _steps(request)},
        },
    }


def _steps(request: JobRequest) -> list[str]:
    """What runs in the container; each step's end is a result of the job."""
    deploy = f'./inv deploy --host "$board" --board {request.board.name}'
    steps = [f"cd {shlex.quote(request.folder)}", 'board="root@$(lava-target-ip)"']
    if request.bundle:
        name = shlex.quote(request.bundle.rsplit("/", 1)[1])
        steps += ["mkdir -p /tmp/bundle", f"tar -xf /lava-downloads/{name} -C /tmp/bundle"]
        deploy = './inv deploy --host "$board" --bundle /tmp/bundle'
    return [
        *steps,
        f"lava-test-case deploy --shell {deploy}",
        'lava-test-case doctor --shell ./inv doctor --host "$board"',
        'if ./inv smoke-test label_image --host "$board" --json > /tmp/result.json; '
        "then verdict=pass; else verdict=fail; fi",
        'lava-test-case smoke-test --result "$verdict"',
        ".venv/bin/python -m bsp.remote.lab.lava /tmp/result.json > /tmp/rows.sh",
        ". /tmp/rows.sh",
        'lava-test-case status --shell ./inv status --host "$board"',
    ]


def rows(document: dict[str, Any]) -> list[str]:
    """The rows of a smoke test's document as calls of ``lava-test-case``, with the median in ms."""
    calls = []
    for row in document.get("results", []):
        words = ["lava-test-case", f"npu-{row['delegate']}", "--result", row["status"]]
        latency = row.get("latency_ms") or {}
        if latency.get("median") is not None:
            words += ["--measurement", f"{latency['median']:g}", "--units", "ms"]
        calls.append(shlex.join(words))
    return calls


def yaml_of(value: Any, indent: int = 0) -> str:
    """Return plain data as YAML: keys as they are, all strings in quotes (JSON's are YAML's)."""
    pad = "  " * indent
    if isinstance(value, dict) and value:
        lines = []
        for key, item in value.items():
            if not _PLAIN.fullmatch(key):
                raise RuntimeError(f"not a plain YAML key: {key!r}")
            nested = isinstance(item, dict | list) and item
            below = yaml_of(item, indent + 1)
            lines.append(f"{pad}{key}:\n{below}" if nested else f"{pad}{key}: {below}")
        return "\n".join(lines)
    if isinstance(value, list) and value:
        return "\n".join(
            f"{pad}-{yaml_of(item, indent + 1)[len(pad) + 1 :]}"
            if isinstance(item, dict)
            else f"{pad}- {yaml_of(item)}"
            for item in value
        )
    return json.dumps(value)


def write(request: JobRequest, output: Path | None, *, dry_run: bool = False) -> dict[str, Any]:
    """Make the job file; return a document with it.

    Raises:
        UserError: as ``job``.
    """
    document = job(request)
    text = f"# A job for LAVA: lavacli jobs submit FILE\n{yaml_of(document)}\n"
    if output is not None and not dry_run:
        write_atomically(output, text.encode())
    return {
        "board": request.board.name,
        "device_type": document["device_type"],
        "file": str(output) if output else None,
        "dry_run": dry_run,
        "job": document,
        "text": text,
    }


def main() -> None:
    """Print the rows of a result."""
    try:
        document = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    except (OSError, ValueError, IndexError) as error:
        sys.exit(f"error: no result of a smoke test: {error}")
    sys.stdout.write("".join(f"{line}\n" for line in rows(document)))


if __name__ == "__main__":
    main()
