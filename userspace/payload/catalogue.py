# SPDX-License-Identifier: MIT
"""Distributions and TFLite runtimes that a payload can be made for: ``distributions.toml``."""

from __future__ import annotations

import functools
import tomllib
from pathlib import Path

import msgspec

ARCHITECTURE = "arm64"
MACHINE = "aarch64"
DISTRIBUTIONS = Path(__file__).with_name("distributions.toml")
REQUIREMENTS = Path(__file__).with_name("requirements")


class Distribution(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A Debian release: where its packages are, its Python and its C library."""

    suite: str
    python: str
    glibc: str


class Runtime(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A TFLite runtime, and the Pythons that it has wheels for."""

    name: str
    python: tuple[str, ...]
    requirements: str


class Delegate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The package with Mesa's delegate."""

    package: str
    library: str
    library_packages: tuple[str, ...]
    base_packages: tuple[str, ...]


class LeaveOut(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Files of the wheels that are not needed, as shell patterns of their whole path."""

    patterns: tuple[str, ...]


class Catalogue(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``distributions.toml``."""

    format: int
    distributions: dict[str, Distribution]
    runtimes: tuple[Runtime, ...]
    delegate: Delegate
    leave_out: LeaveOut


@functools.cache
def catalogue() -> Catalogue:
    """Return what is known of distributions and runtimes."""
    return msgspec.convert(tomllib.loads(DISTRIBUTIONS.read_text(encoding="utf-8")), Catalogue)
