# SPDX-License-Identifier: MIT
"""Models and images by hash: from a folder, from a server, made here; and what is refused."""

from __future__ import annotations

import hashlib
import io
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import msgspec
import pytest

from bsp.base.errors import InfrastructureError, UserError
from userspace.npu.model import tiny_model
from userspace.npu.validate import models
from userspace.npu.validate.models import Catalogue, Listed


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


MODEL = b"\x00\x00\x00\x00TFL3 a model"
IMAGE = b"BM an image"


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the address under which it is served on loopback."""
    folder = tmp_path / "served"
    folder.mkdir()
    server = HTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def known(tmp_path: Path, served: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> Catalogue:
    """A catalogue of one model, one image and a model in an archive; own cache; no assets."""
    folder, address = served
    with zipfile.ZipFile(folder / "m.zip", "w") as archive:
        archive.writestr("inside.tflite", MODEL)
    with tarfile.open(folder / "m.tgz", "w:gz") as tarred:
        member = tarfile.TarInfo("./inside.tflite")
        member.size = len(MODEL)
        tarred.addfile(member, io.BytesIO(MODEL))
    (folder / "image.bmp").write_bytes(IMAGE)
    files = [
        Listed(name="image.bmp", kind="image", title="i", sha256=sha256(IMAGE),
               url=f"{address}/image.bmp"),
        *(
            Listed(name=f"from-{kind}", kind="model", title="m", sha256=sha256(MODEL),
                   url=f"{address}/m.{kind}", member="inside.tflite",
                   archive_sha256=sha256((folder / f"m.{kind}").read_bytes()))
            for kind in ("zip", "tgz")
        ),
        Listed(name="nowhere", kind="model", title="m", sha256="0" * 64),
        Listed(name="dead-link", kind="model", title="m", sha256="0" * 64,
               url="http://127.0.0.1:9/gone.tflite"),
    ]  # fmt: skip
    listed = Catalogue(
        format=1,
        default_model="dead-link",
        default_image="image.bmp",
        default_detector="dead-link",
        files=tuple(files),
    )
    monkeypatch.setattr(models, "catalogue", lambda: listed)
    monkeypatch.setenv("NPU_BSP_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("NPU_BSP_ASSETS", raising=False)
    return listed


@pytest.mark.parametrize("name", ["from-zip", "from-tgz"])
@pytest.mark.usefixtures("known")
def test_a_member_of_an_archive_is_downloaded_once(name: str, served: tuple[Path, str]) -> None:
    first = models.find(name, "model")
    assert first.path.read_bytes() == MODEL
    for file in served[0].iterdir():
        file.unlink()
    assert models.find(name, "model") == first


@pytest.mark.usefixtures("known")
def test_a_download_with_another_content_is_refused(served: tuple[Path, str]) -> None:
    (served[0] / "image.bmp").write_bytes(IMAGE + b"!")
    with pytest.raises(InfrastructureError, match="another content"):
        models.find("image.bmp", "image")


@pytest.mark.usefixtures("known")
def test_an_asset_counts_by_its_hash_whatever_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "some name").write_bytes(MODEL)
    monkeypatch.setenv("NPU_BSP_ASSETS", str(tmp_path / "assets"))
    found = models.find("from-zip", "model")
    assert found.path.name == "some name"
    assert "NPU_BSP_ASSETS" in found.origin


@pytest.mark.usefixtures("known")
def test_a_truncated_asset_is_not_silently_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "from-zip.tflite").write_bytes(MODEL[:-3])
    monkeypatch.setenv("NPU_BSP_ASSETS", str(tmp_path))
    with pytest.raises(UserError, match="content was changed or cut short") as caught:
        models.find("from-zip", "model")
    assert sha256(MODEL) in caught.value.message
    assert sha256(MODEL[:-3]) in caught.value.message


def test_the_assets_variable_has_to_name_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NPU_BSP_ASSETS", str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="that is not a folder"):
        models.find(models.catalogue().default_model, "model")


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("name", ["nowhere", "dead-link"])
def test_what_was_asked_for_by_name_is_never_replaced(name: str) -> None:
    with pytest.raises(InfrastructureError, match=f"{name} is not on this machine"):
        models.choose(name, None)


@pytest.mark.usefixtures("known")
def test_without_the_default_model_the_small_one_is_made(tmp_path: Path) -> None:
    cached = tmp_path / "cache" / "models"
    cached.mkdir(parents=True)
    # As if made before: training it is another test's matter.
    (cached / f"{tiny_model.NAME}-{models._TINY_VERSION}.tflite").write_bytes(MODEL)
    chosen = models.choose(None, None)
    assert chosen.model.name == tiny_model.NAME
    assert "dead-link cannot be had here" in chosen.note
    assert chosen.labels == tiny_model.LABELS
    assert chosen.image.path.read_bytes()[:2] == b"BM"


def test_without_the_default_image_the_own_one_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(name: str, kind: str) -> models.File:
        if kind == "image":
            raise InfrastructureError(f"{name} is not on this machine")
        return found(name, kind)

    found = models.find
    monkeypatch.setattr(models, "find", nothing)
    (tmp_path / "own.tflite").write_bytes(MODEL)
    chosen = models.choose(str(tmp_path / "own.tflite"), None)
    assert chosen.image.path.read_bytes() == tiny_model.sample_bmp()
    assert "grace_hopper.bmp cannot be had here" in chosen.note
    with pytest.raises(InfrastructureError):
        models.choose(str(tmp_path / "own.tflite"), "grace_hopper.bmp")


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("mobilenet_v1_1.0_224_qant", "model", "did you mean 'mobilenet_v1_1.0_224_quant'"),
        ("./no/such.tflite", "model", "there is no model file ./no/such.tflite"),
        ("grace_hoper.bmp", "image", "did you mean 'grace_hopper.bmp'"),
        ("/no/such.bmp", "image", "there is no image file"),
    ],
)
def test_unknown_names(name: str, kind: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        models.find(name, kind)
    assert said in caught.value.message
    assert "known: " in caught.value.hint


@pytest.mark.parametrize("name", ["npu-bsp-digits", "npu-bsp-squares"])
def test_the_projects_own_models_have_names(name: str) -> None:
    with pytest.raises(UserError) as caught:
        models.model_named(f"{name}s")
    assert name in caught.value.hint  # which can be followed
    assert models.model_named(name).name == name


def test_every_listed_file_can_be_known() -> None:
    catalogue = models.catalogue()
    assert catalogue.default_model in catalogue.names("model")
    assert catalogue.default_image in catalogue.names("image")
    for entry in catalogue.files:
        assert entry.kind in ("model", "image", "labels")
        assert entry.sha256 or entry.archive_sha256, entry.name
        assert not entry.archive_sha256 or (entry.url and entry.member), entry.name
        assert not entry.labels or entry.labels in catalogue.names("labels"), entry.name
        for digest in (entry.sha256, entry.archive_sha256):
            assert digest is None or len(digest) == 64


def test_every_answer_on_file_is_well_formed() -> None:
    for (model, image), answer in models.answers().items():
        assert len(model) == len(image) == 64
        shares = [score for _, score in answer.top]
        assert shares == sorted(shares, reverse=True)
        assert 0 < answer.tolerance < 0.5


def test_an_unknown_key_in_the_catalogue_is_an_error(tmp_path: Path) -> None:
    text = models.CATALOGUE.read_text().replace("title", "titel", 1)
    (tmp_path / "models.toml").write_text(text)
    with pytest.raises(msgspec.ValidationError, match="titel"):
        models.catalogue.__wrapped__(tmp_path / "models.toml")
