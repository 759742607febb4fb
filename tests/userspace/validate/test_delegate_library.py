# SPDX-License-Identifier: MIT
"""Libraries that are not delegates, or that cannot be loaded: compiled here, and really loaded."""

from __future__ import annotations

import os
import struct
import sys
from pathlib import Path

import pytest

from bsp.base.process import run
from userspace.npu.model import tiny_model
from userspace.npu.validate.judge.not_run import why_it_did_not
from userspace.npu.validate.label_image import SmokeTestRequest
from userspace.npu.validate.onboard import delegate_library
from userspace.npu.validate.onboard.delegate_library import LibraryError, load
from userspace.npu.validate.smoke import smoke_test

CREATE = """
#include <stddef.h>
void *tflite_plugin_create_delegate(char **k, char **v, size_t n, void (*report)(const char *))
{ BODY return 0; }
"""
DESTROY = "void tflite_plugin_destroy_delegate(void *delegate) {}\n"


def compiled(folder: Path, name: str, source: str, *flags: str | Path) -> Path:
    """Compile a shared library for this machine."""
    (folder / f"{name}.c").write_text(source)
    library = folder / f"{name}.so"
    run(["gcc", "-shared", "-fPIC", "-o", library, folder / f"{name}.c", *flags])
    return library


def plugin(body: str = "") -> str:
    return CREATE.replace("BODY", body) + DESTROY


def changed(library: Path, name: str, **header: int) -> Path:
    """Return a copy with other fields in its ELF header."""
    content = bytearray(library.read_bytes())
    if "kind" in header:
        content[4] = header["kind"]
    if "machine" in header:
        struct.pack_into("<H", content, 18, header["machine"])
    copy = library.with_name(f"{name}.so")
    copy.write_bytes(content)
    return copy


def test_a_delegate_that_loads(tmp_path: Path) -> None:
    load(str(compiled(tmp_path, "good", plugin())))


def test_files_that_are_no_library(tmp_path: Path) -> None:
    good = compiled(tmp_path, "good", plugin())
    files = {
        "text": b"a text\n",
        "long": b"a text\n" * 1000,
        "empty": b"",
        "cut": good.read_bytes()[:3000],
        "header": good.read_bytes()[:20],
    }
    for name, content in files.items():
        (tmp_path / f"{name}.so").write_bytes(content)
    (tmp_path / "folder.so").mkdir()
    os.mkfifo(tmp_path / "pipe.so")
    changed(good, "bits32", kind=1)
    changed(good, "riscv", machine=243)
    changed(good, "odd", machine=4711)
    expected = {
        "text": "not a shared library (invalid ELF header",
        "long": "not a shared library (invalid ELF header",
        "empty": "an empty file",
        "cut": "cut short (file too short): 3000 bytes",
        "header": "cut short",
        "folder": "is a folder",
        "pipe": "not a regular file",
        "bits32": "(wrong ELF class)",
        "riscv": "is for RISC-V, and this Python is for",
        "odd": "ELF number 4711",
    }
    for name, said in expected.items():
        with pytest.raises(LibraryError) as caught:
            load(str(tmp_path / f"{name}.so"))
        assert said in str(caught.value), (name, str(caught.value))


def test_what_the_dynamic_linker_says_is_kept_and_explained(tmp_path: Path) -> None:
    needs = compiled(
        tmp_path, "needs", plugin() + "extern int vendor_missing(void);\n"
        "int use(void) { return vendor_missing(); }\n"
    )  # fmt: skip
    with pytest.raises(LibraryError, match=r"undefined symbol: vendor_missing: .*LD_LIBRARY_PATH"):
        load(str(needs))

    other = compiled(tmp_path, "libother", "int other(void) { return 1; }\n")
    depends = compiled(
        tmp_path, "depends", plugin(), "-Wl,--no-as-needed", "-L", tmp_path, "-lother"
    )
    other.unlink()
    with pytest.raises(
        LibraryError, match=r"libother\.so: cannot open shared object file"
    ) as caught:
        load(str(depends))
    assert f"{depends} needs libother.so; install the package" in str(caught.value)


def test_a_library_that_was_built_for_a_newer_system(tmp_path: Path) -> None:
    """What it needs has a version that the library of this machine lacks, as an older libc does."""
    (tmp_path / "versions").write_text("GLIBC_9.99 { global: newer; };\n")
    source = "int newer(void) { return 1; }\n"
    script = f"-Wl,--version-script={tmp_path}/versions"
    soname = "-Wl,-soname,libnewer.so"
    compiled(tmp_path, "libnewer", source, script, soname)
    user = plugin() + "extern int newer(void);\nint use(void) { return newer(); }\n"
    library = compiled(tmp_path, "user", user, "-L", tmp_path, "-lnewer", f"-Wl,-rpath,{tmp_path}")
    (tmp_path / "versions").write_text("GLIBC_2.0 { global: newer; };\n")
    compiled(tmp_path, "libnewer", source, script, soname)
    with pytest.raises(LibraryError, match=r"GLIBC_9\.99' not found .*built for a newer system"):
        load(str(library))


def test_a_library_that_is_no_delegate_lacks_its_symbols(tmp_path: Path) -> None:
    none = compiled(tmp_path, "none", "int hello(void) { return 1; }\n")
    with pytest.raises(LibraryError, match="create_delegate and tflite_plugin_destroy_delegate"):
        load(str(none))
    half = compiled(tmp_path, "half", CREATE.replace("BODY", ""))
    with pytest.raises(LibraryError, match="undefined symbol: tflite_plugin_destroy_delegate;"):
        load(str(half))


def test_a_library_that_a_delegate_opens_by_its_name(tmp_path: Path) -> None:
    """TFLite opens libOpenCL.so; one that is there and no good is not the same as none."""
    name = "libnpu-bsp-test-opened.so"
    folder = Path(delegate_library.__file__).parent
    code = "import sys, delegate_library; print(delegate_library.of_opened(sys.argv[1]))"

    def said() -> str:
        environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": str(folder)}
        return run([sys.executable, "-c", code, name], env=environment).stdout.decode().strip()

    assert said() == ""
    (tmp_path / name).write_text("text, and long enough to be looked at by the dynamic linker" * 9)
    assert said().startswith(f"{name} does not load: ")
    assert "invalid ELF header" in said()
    compiled(
        tmp_path, name.removesuffix(".so"), "extern int gone(void); int f(void) { return gone(); }"
    )
    assert "undefined symbol: gone" in said()
    other = compiled(tmp_path, "libother", "int other(void) { return 1; }\n")
    compiled(
        tmp_path, name.removesuffix(".so"), "", "-Wl,--no-as-needed", "-L", tmp_path, "-lother"
    )
    other.unlink()
    assert "libother.so: cannot open shared object file" in said()


NOISE = """Exception ignored in: <function Delegate.__del__ at 0x7f0c271f9b20>
Traceback (most recent call last):
AttributeError: 'Delegate' object has no attribute '_library'
"""


@pytest.mark.parametrize(
    ("message", "log", "said"),
    [
        ("Failed to load delegate from /x.so\nno device for me", NOISE, "no device for me"),
        ("Failed to load delegate from /x.so\n", f"I will not\n{NOISE}", "I will not"),
        ("Failed to load delegate from /x.so\n", NOISE, "it refused, and did not say why"),
        ("/x.so: undefined symbol: y", f"hello\n{NOISE}", "/x.so: undefined symbol: y"),
    ],
)
def test_the_reason_is_what_the_library_said(message: str, log: str, said: str) -> None:
    assert why_it_did_not(message, log) == said


@pytest.mark.usefixtures("own_state")
def test_the_row_says_it(tmp_path: Path) -> None:
    refuses = compiled(tmp_path, "refuses", plugin('report("no device for me");'))
    needs = compiled(tmp_path, "needs", plugin("extern int gone(void); gone();"))
    (tmp_path / "text.so").write_text("text")
    (tmp_path / "link.so").symlink_to("gone.so.1")
    delegates = [refuses, needs, *(tmp_path / name for name in ("text.so", "link.so", "none.so"))]
    document = smoke_test(
        "label_image",
        SmokeTestRequest(
            model=tiny_model.NAME,
            runs=1,
            views=0,
            delegate=",".join(str(each) for each in delegates),
        ),
    )
    reasons = {Path(row["delegate"]).stem: row["reason"] for row in document["results"]}
    assert reasons["refuses"] == "the delegate does not load: no device for me"
    assert "undefined symbol: gone" in reasons["needs"]
    assert "invalid ELF header" in reasons["text"]
    assert "is a link to gone.so.1, which is not there" in reasons["link"]
    assert "none.so is not there: give the delegate's path" in reasons["none"]
    assert document["verdict"] == "fail"
