# SPDX-License-Identifier: MIT
"""The face: a module for each group of commands. A command parses its flags and returns a result.

Everything else is imported inside the commands: ``invoke --list`` must stay as fast as an empty file.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from invoke.collection import Collection
from invoke.tasks import Task

from . import (
    boards,
    bringup,
    bundles,
    completion,
    deployments,
    developers,
    device_trees,
    disk_images,
    gates,
    kernels,
    models,
    npu,
    userspace,
    validation,
    virtual_boards,
)

_GROUPS = (
    boards, bringup, bundles, completion, deployments, developers, device_trees, disk_images, gates,
    kernels, models, userspace, validation,
)  # fmt: skip


def collection() -> Collection:
    """Return all commands; those of ``npu`` and ``virtual`` have that name before them."""
    root = Collection(*(task for group in _GROUPS for task in _tasks(group)))
    root.add_collection(Collection("npu", *_tasks(npu)))
    root.add_collection(Collection("virtual", *_tasks(virtual_boards)))
    return root


def _tasks(group: ModuleType) -> list[Task[Any]]:
    return [value for value in vars(group).values() if isinstance(value, Task)]
