# SPDX-License-Identifier: MIT
"""Models, images and labels: known by hash, from a folder of the user's or downloaded.

``models.toml`` lists them. A file in ``$NPU_BSP_ASSETS`` counts if its SHA-256 is the listed one, whatever
its name; what is not there is downloaded once and verified. Where neither can be had, the project's own
small model is made (``tiny_model.py``), and the result says so.
"""

from __future__ import annotations

import functools
import os
import tarfile
import tomllib
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from bsp.base.cache import cache_dir, make_once, write_atomically
from bsp.base.download import download, sha256_of
from bsp.base.errors import InfrastructureError, UserError, nearest
from bsp.base.progress import say, step

from ..model import foreign, tiny_detector, tiny_model

CATALOGUE = Path(__file__).parent / "models.toml"
EXPECTED = Path(__file__).parent / "expected.toml"
_ASSETS_VARIABLE = "NPU_BSP_ASSETS"
_DOWNLOAD_TIMEOUT_S = 20
# Raised when what tiny_model.py builds changes: the old file in the cache is another model.
_TINY_VERSION = 2


class Listed(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One entry of ``models.toml``; entries of the same name are the same thing from several places.

    Attributes:
        sha256: of the file itself; None where only its archive's is known.
        labels: for a model: the name of its labels.
    """

    name: str
    kind: str
    title: str
    sha256: str | None = None
    labels: str | None = None
    url: str | None = None
    archive_sha256: str | None = None
    member: str | None = None


class Catalogue(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``models.toml``."""

    format: int
    default_model: str
    default_image: str
    default_detector: str
    files: tuple[Listed, ...]

    def names(self, kind: str) -> list[str]:
        """Names of one kind (model, image, labels), in the order of the file."""
        return list(dict.fromkeys(entry.name for entry in self.files if entry.kind == kind))


class Answer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One entry of ``expected.toml``: what label_image answers for a model and an image."""

    model_sha256: str
    image_sha256: str
    top: tuple[tuple[int, float], ...]
    tolerance: float
    source: str


class Answers(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``expected.toml``."""

    format: int
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class File:
    """A file that is here and whose content is known.

    Attributes:
        name: as in the catalogue, or the file's own.
        origin: where it came from, in words.
    """

    name: str
    path: Path
    sha256: str
    origin: str


@dataclass(frozen=True)
class Inputs:
    """What a smoke test runs.

    Attributes:
        labels: name of each class, by index; empty where there are none.
        note: what the reader must know (that this is not the model that was wanted); or empty.
        original: where ``model`` is a copy with another input size: what it was made of.
    """

    model: File
    image: File
    labels: tuple[str, ...]
    note: str = ""
    original: File | None = None


@functools.cache
def catalogue(path: Path = CATALOGUE) -> Catalogue:
    """Return the catalogue of models and images."""
    return msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), Catalogue)


@functools.cache
def answers(path: Path = EXPECTED) -> dict[tuple[str, str], Answer]:
    """Return the answers on file by (SHA-256 of the model, SHA-256 of the image)."""
    listed = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), Answers)
    return {(answer.model_sha256, answer.image_sha256): answer for answer in listed.answers}


def choose(model: str | None, image: str | None, *, detector: bool = False) -> Inputs:
    """Return the model, image and labels to run.

    Args:
        model: name in the catalogue, the name of a model of the project's own, or a .tflite file; None:
            the default, or the project's own where that cannot be had.
        image: name in the catalogue or a BMP file; None: the one that goes with the model. A classifier
            gets the project's own where that cannot be had.
        detector: the default is a model that finds objects.

    Raises:
        UserError: there is no such model, image or file, or a file has the wrong content.
        InfrastructureError: what was asked for by name can be neither found nor downloaded.
    """
    own = _OWN_DETECTOR if detector else _OWN_CLASSIFIER
    default = catalogue().default_detector if detector else catalogue().default_model
    chosen, note = _default_model(default, own) if model is None else (_named(model, own), "")
    if image is not None:
        picture = find(image, "image")
    elif chosen.name in own.accepted:
        picture = own.image()
    elif detector:
        picture = find(catalogue().default_image, "image")
    else:
        picture, lacking = _default_image()
        note = "; ".join(filter(None, [note, lacking]))
    labels = own.labels if chosen.name == own.name else _labels_of(chosen)
    return Inputs(chosen, picture, labels, note)


def model_named(name: str) -> File:
    """Return a model by its name in the catalogue, the name of one of the project's own, or its path.

    Raises:
        UserError, InfrastructureError: as ``find``.
    """
    return _named(name, _OWN_DETECTOR)  # which accepts all of the project's own


def _named(model: str, own: _Own) -> File:
    return _made(model) if model in own.accepted else find(model, "model")


def _default_model(name: str, own: _Own) -> tuple[File, str]:
    """Return the default model, or the project's own where that cannot be had, and a note that says so."""
    try:
        return find(name, "model"), ""
    except InfrastructureError as error:
        say(f"{error.message}; using {own.name}")
        return _made(own.name), (
            f"{name} cannot be had here; this is the project's own {own.what} model "
            f"{own.name} instead (set {_ASSETS_VARIABLE}, or connect to the internet)"
        )


def _default_image() -> tuple[File, str]:
    """Return the default image, or the project's own where that cannot be had, and a note that says so."""
    default = catalogue().default_image
    try:
        return find(default, "image"), ""
    except InfrastructureError as error:
        own = tiny_image()
        say(f"{error.message}; using {own.name}")
        return own, f"{default} cannot be had here; the picture is the project's own instead"


def _made(name: str) -> File:
    """One of the project's own models."""
    return squares() if name == tiny_detector.NAME else tiny()


def squares() -> File:
    """Return the project's own detector-shaped model."""
    return _own(f"{tiny_detector.NAME}.tflite", tiny_detector.build(), tiny_detector.NAME)


def squares_image() -> File:
    """Return its own image: three squares."""
    name = f"{tiny_detector.NAME}.bmp"
    return _own(name, tiny_detector.sample_bmp(), name)


def _own(file: str, content: bytes, name: str) -> File:
    path = cache_dir() / "models" / file
    if not path.exists() or path.read_bytes() != content:
        write_atomically(path, content)
    return File(name, path, sha256_of(path), "made by userspace/npu/model/tiny_detector.py")


def find(name: str, kind: str) -> File:
    """Return a file by its name in the catalogue, or by its path.

    Raises:
        UserError: neither is there.
        InfrastructureError: it is listed, but in no folder here, and cannot be downloaded.
    """
    names = catalogue().names(kind)
    if name not in names:
        return _own_file(name, kind, names)
    entries = [entry for entry in catalogue().files if entry.name == name]
    hashes = {entry.sha256: entry for entry in entries if entry.sha256}
    for path in _assets():
        if (digest := _digest(path, path.stat().st_size, path.stat().st_mtime_ns)) in hashes:
            return File(name, path, digest, f"{_ASSETS_VARIABLE} ({hashes[digest].title})")
    same_name = [path for path in _assets() if path.name == name or path.stem == name]
    if same_name:
        sha256 = sha256_of(same_name[0])
        raise UserError(
            f"{same_name[0]} is not the {name} that is known: its content was changed or cut short\n"
            f"  expected sha256 {' or '.join(sorted(hashes))}\n  found    sha256 {sha256}",
            hint=f"put the original there, or give the file itself: --{kind} {same_name[0]}",
        )
    problem: InfrastructureError | None = None
    for entry in entries:
        if entry.url:
            try:
                return _fetched(entry)
            except InfrastructureError as error:
                problem = problem or error
    message = f"{name} is not in the folder {os.environ[_ASSETS_VARIABLE]}" if _assets() else (
        f"{name} is not on this machine"
    )  # fmt: skip
    raise InfrastructureError(
        f"{message}, and {problem.message if problem else 'has no address to download it from'}",
        hint=f"put it into a folder and set {_ASSETS_VARIABLE} to that folder",
    )


def tiny() -> File:
    """Return the project's own small model; made on first use."""
    folder = cache_dir() / "models"
    folder.mkdir(parents=True, exist_ok=True)

    def make(target: Path) -> None:
        with step(f"Training the small model {tiny_model.NAME}"):
            target.write_bytes(tiny_model.build())

    path = make_once(folder / f"{tiny_model.NAME}-{_TINY_VERSION}.tflite", make)
    return File(tiny_model.NAME, path, sha256_of(path), "made by userspace/npu/model/tiny_model.py")


def tiny_image() -> File:
    """Return the small model's own image: a drawn seven."""
    path = cache_dir() / "models" / f"{tiny_model.NAME}-{_TINY_VERSION}.bmp"
    content = tiny_model.sample_bmp()
    if not path.exists() or path.read_bytes() != content:
        write_atomically(path, content)
    return File(path.name, path, sha256_of(path), "drawn by userspace/npu/model/tiny_model.py")


@dataclass(frozen=True)
class _Own:
    """What the project itself makes for a test, where nothing else is given or can be had.

    Attributes:
        accepted: names of its models that ``--model`` takes for this test; they get ``image``.
        what: kind of model, for the words.
    """

    name: str
    accepted: tuple[str, ...]
    image: Callable[[], File]
    labels: tuple[str, ...]
    what: str


_OWN_CLASSIFIER = _Own(tiny_model.NAME, (tiny_model.NAME,), tiny_image, tiny_model.LABELS, "small")
_OWN_DETECTOR = _Own(
    tiny_detector.NAME,
    (tiny_detector.NAME, tiny_model.NAME),
    squares_image,
    tiny_detector.LABELS,
    "detector-shaped",
)


def _own_file(name: str, kind: str, names: list[str]) -> File:
    path = Path(name)
    if path.is_file():
        return File(path.name, path.absolute(), sha256_of(path), "given on the command line")
    if kind == "model":
        names = [*names, tiny_model.NAME, tiny_detector.NAME]
    return _no_such(name, kind, names)


def _no_such(name: str, kind: str, names: list[str]) -> File:
    if kind == "model" and Path(name).exists():
        foreign.read(Path(name))  # says what else it is
    looks_like_path = "/" in name or (kind == "model" and name.endswith(".tflite"))
    raise UserError(
        f"there is no {kind} file {name}"
        if looks_like_path
        else f"unknown {kind} {name!r}, and no file of that name{nearest(name, names)}",
        hint=f"known: {', '.join(names)}; or give the path of a file",
    )


def _assets() -> list[Path]:
    """Files in the user's folder of models.

    Raises:
        UserError: the variable names no folder.
    """
    folder = os.environ.get(_ASSETS_VARIABLE)
    if not folder:
        return []
    if not Path(folder).is_dir():
        raise UserError(
            f"{_ASSETS_VARIABLE} is {folder}, and that is not a folder",
            hint=f"set {_ASSETS_VARIABLE} to a folder with models, or unset it",
        )
    return sorted(path for path in Path(folder).iterdir() if path.is_file())


@functools.lru_cache(maxsize=256)
def _digest(path: Path, _size_bytes: int, _modified_ns: int) -> str:
    return sha256_of(path)


def _fetched(entry: Listed) -> File:
    if not entry.url:
        raise RuntimeError(f"{entry.name} has no address")
    outer = entry.archive_sha256 or entry.sha256
    if not outer:
        raise RuntimeError(f"{entry.name} has no hash")
    source = download(entry.url, outer, timeout_s=_DOWNLOAD_TIMEOUT_S)
    if entry.member is None:
        return File(entry.name, source, outer, "downloaded")
    target = source.with_name(f"{source.name}.{Path(entry.member).name}")

    def make(temporary: Path) -> None:
        temporary.write_bytes(_member(source, entry))

    make_once(target, make)
    digest = sha256_of(target)
    if entry.sha256 and digest != entry.sha256:
        raise InfrastructureError(
            f"{entry.member} in {entry.url} has another content than expected\n"
            f"  expected sha256 {entry.sha256}\n  found    sha256 {digest}",
            hint=f"remove {target} and run the same command again",
        )
    return File(entry.name, target, digest, "downloaded")


def _member(archive: Path, entry: Listed) -> bytes:
    if not entry.member:
        raise RuntimeError(f"{entry.name} names no member of its archive")
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as zipped:
                return zipped.read(entry.member)
        with tarfile.open(archive) as tarred:
            for member in tarred:
                if member.isfile() and Path(member.name).name == entry.member:
                    file = tarred.extractfile(member)
                    if file is None:
                        raise RuntimeError(f"{entry.member} is not a file of the archive")
                    return file.read()
    except (KeyError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise InfrastructureError(f"{archive} cannot be read: {error}") from error
    raise InfrastructureError(f"{archive} has no member {entry.member}")


def _labels_of(model: File) -> tuple[str, ...]:
    entry = next((entry for entry in catalogue().files if entry.name == model.name), None)
    if entry is None or entry.labels is None:
        return ()
    try:
        path = find(entry.labels, "labels").path
    except InfrastructureError as error:
        say(f"no names for the classes: {error.message}")
        return ()
    return tuple(path.read_text(encoding="utf-8").splitlines())
