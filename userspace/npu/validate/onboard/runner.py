#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Runs one image through one model with each delegate, and prints the bare facts as JSON.

This is what runs on a board. It needs only the standard library, numpy, a TFLite runtime, and
the modules that lie beside it in a payload; it judges nothing. By hand, on a board:

    python3 runner.py --model M.tflite --image I.bmp --delegate cpu --delegate teflon

Each delegate runs in a process of its own, forked after the slow imports: one that crashes or hangs
is a result, not the end. In a payload (``bin/runner.py``) the packages are in ``../site`` and the
libraries in ``../lib``; elsewhere Python's own path is used.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import ctypes
import fcntl
import hashlib
import json
import os
import platform
import re
import signal
import struct
import sys
import tempfile
import time
import traceback
import zlib
from pathlib import Path
from typing import Any

FORMAT = 1
STARTED_S = time.monotonic()
STARTED_BY = os.getppid()
HERE = Path(__file__).absolute().parent
ROOT = HERE.parent
IS_PAYLOAD = HERE.name == "bin" and (ROOT / "site").is_dir()
_SYSTEM = ("/usr/lib", "/usr/lib/aarch64-linux-gnu", "/usr/local/lib", "/usr/lib64")
OPENCL_LIBRARY = "libOpenCL.so"  # as TFLite opens it (delegates/gpu/cl/opencl_wrapper.cc)
# Where the delegates that have a name are looked for; {opencl} is --opencl.
PLACES = {
    "teflon": (str(ROOT / "lib" / "libteflon.so"), "/usr/lib/teflon/libteflon.so"),
    "opencl": (
        "{opencl}/lib/libopencl_delegate.so",
        str(ROOT / "opencl/lib/libopencl_delegate.so"),
    ),
    "tim-vx": tuple(f"{folder}/libvx_delegate.so" for folder in _SYSTEM),
}
# Without this node the vendor's driver is not loaded, and his libraries end the process.
DEVICES = {"tim-vx": "/dev/galcore"}
# What says in the environment how drivers and delegates behave: recorded with each row.
WATCHED = (
    "LD_LIBRARY_PATH", "LD_PRELOAD", "LIBGL_DRIVERS_PATH", "RUSTICL_ENABLE", "RUSTICL_DEVICE_TYPE",
    "RUSTICL_FEATURES", "OCL_ICD_VENDORS", "OCL_ICD_FILENAMES", "SMALLER_SOFTMAX", "TEFLON_DEBUG",
    "ETNA_MESA_DEBUG", "MESA_LOADER_DRIVER_OVERRIDE", "VIVANTE_SDK_DIR", "OMP_NUM_THREADS",
)  # fmt: skip
# The one order of preference, for the doctor and the gate too: the runtime that is still developed first.
RUNTIMES = ("ai_edge_litert", "tflite_runtime")

# Its latency is nobody's figure of merit.
REFERENCE_RUNS = 3

# Loading the model without a delegate, on the slowest machine that is meant: the rows' own deadline is for
# running it.
LOAD_TIMEOUT_S = 60.0

# Opening a device node, and a few ioctls.
PROBE_TIMEOUT_S = 10.0
# After which a process that was told to end counts as stuck in the kernel.
GRACE_S = 5.0

# What is kept of the kernel's log of one row (lines).
KERNEL_LOG_LINES = 200

# What the processes of the delegates may print, at most, before it is cut (bytes).
LOG_LIMIT_BYTES = 1 << 20

# Linux include/uapi/drm/etnaviv_drm.h: DRM_IOWR(DRM_COMMAND_BASE + DRM_ETNAVIV_GET_PARAM,
# struct drm_etnaviv_param { __u32 pipe, param; __u64 value; }), and its ETNAVIV_PARAM_GPU_*.
ETNAVIV_GET_PARAM = (3 << 30) | (16 << 16) | (ord("d") << 8) | 0x40
ETNAVIV_PARAM = {"model": 0x01, "revision": 0x02, "product_id": 0x1C, "customer_id": 0x1D}
ETNAVIV_PIPES = 4
# Linux drivers/gpu/drm/etnaviv/etnaviv_hwdb.c: the NPUs are all GC8000.
NPU_MODEL = 0x8000


class StageError(Exception):
    """Something that the caller is to read: the stage in which it went wrong, what, and what helps."""

    def __init__(self, stage: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.stage = stage
        self.hint = hint

    def record(self) -> dict[str, str]:
        """Return it for a document."""
        return {"stage": self.stage, "message": str(self), "hint": self.hint}


# --- set-up ----------------------------------------------------------------------------------


def use_payload() -> None:
    """Put the payload's packages first, and load its libraries, so that the system's are not needed."""
    # A generation is not to change: compiled Python goes elsewhere.
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    sys.pycache_prefix = sys.pycache_prefix or str(cache / "npu-bsp" / "pycache")
    sys.path.insert(0, str(HERE))
    if not IS_PAYLOAD:
        return
    wanted = json.loads((ROOT / "manifest.json").read_text(encoding="utf-8"))["python"]
    found = f"{sys.version_info.major}.{sys.version_info.minor}"
    if found != wanted:
        raise StageError("set-up", f"the payload is for Python {wanted}, this is Python {found}")
    sys.path.insert(0, str(ROOT / "site"))
    missing = sorted((ROOT / "lib").glob("*.so.*"))
    problem = ""
    for _ in range(len(missing)):  # they need each other: as many rounds as it takes
        for path in list(missing):
            try:
                ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
                missing.remove(path)
            except OSError as error:
                problem = str(error)
    if missing:
        raise StageError("set-up", f"cannot load {missing[0].name}: {problem}")


def load_runtime() -> tuple[Any, str]:
    """Return the TFLite interpreter module that is there, and its name and version."""
    import importlib
    import importlib.metadata

    problems = []
    for name in RUNTIMES:
        try:
            module = importlib.import_module(f"{name}.interpreter")
        except ImportError as error:
            problems.append(f"{name}: {error}")
            continue
        package = name.replace("_", "-")
        try:
            return module, f"{package} {importlib.metadata.version(package)}"
        except importlib.metadata.PackageNotFoundError:
            return module, package
    raise StageError("runtime", "no TFLite runtime can be imported; " + "; ".join(problems))


def npu_devices() -> list[dict[str, Any]]:
    """List device nodes whose kernel driver drives NPUs, and the cores behind them."""
    found = []
    entries = [*Path("/sys/class/drm").glob("renderD*"), *Path("/sys/class/accel").glob("accel*")]
    for entry in sorted(entries):
        driver = driver_of(entry)
        accel = entry.name.startswith("accel")
        if not accel and driver != "etnaviv":
            continue
        node = f"/dev/{'accel' if accel else 'dri'}/{entry.name}"
        device: dict[str, Any] = {"node": node, "driver": driver, "error": None, "cores": []}
        device["by_path"] = by_path(node)
        # In a process of its own: Linux 6.12's etnaviv_open() dereferences NULL, and ends who opens it,
        # where the driver has found no core.
        device |= in_child(lambda node=node, accel=accel: look_into(node, accel), PROBE_TIMEOUT_S)
        del device["log"]
        if isinstance(device["error"], dict):  # it did not come to an answer
            device["error"], device["unsafe"] = None, device["error"]["message"]
        found.append(device)
    return found


def driver_of(entry: Path) -> str:
    """Return the driver of a device node. Rocket's cores share a device that no driver is bound to.

    Source: Linux drivers/accel/rocket/rocket_drv.c, ``drm_dev``.
    """
    if (entry / "device" / "driver").exists():
        return (entry / "device" / "driver").resolve().name
    name = (entry / "device").resolve().name
    return "rocket" if name == "rknn" else name


def by_path(node: str) -> str | None:
    """Return the name of a device node that is the same whichever driver comes first; None without udev."""
    links = sorted((Path(node).parent / "by-path").glob("*"))
    return next((str(link) for link in links if link.resolve() == Path(node)), None)


class KernelLog:
    """The kernel's messages since this was made; ``read`` returns None where they may not be read."""

    def __init__(self) -> None:
        self._handle = -1
        try:
            self._handle = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.lseek(self._handle, 0, os.SEEK_END)
        except OSError:
            self.close()

    def read(self) -> list[str] | None:
        """Return the messages so far, oldest first, and close.

        A record is ``priority,number,microseconds,flags;text`` (Linux Documentation/ABI/testing/dev-kmsg).
        """
        if self._handle < 0:
            return None
        lines: list[str] = []
        while True:
            try:
                record = os.read(self._handle, 8192).decode(errors="replace")
            except BlockingIOError:
                break
            except BrokenPipeError:  # overwritten before it was read
                lines.append("(messages were lost)")
                continue
            except OSError:
                break
            lines.append(record.partition(";")[2].partition("\n")[0])
        self.close()
        return lines[-KERNEL_LOG_LINES:]

    def close(self) -> None:
        """Close the log, if it is open."""
        if self._handle >= 0:
            os.close(self._handle)
        self._handle = -1


def mesa_version(library: str | None) -> str | None:
    """Return the version that is compiled into one of Mesa's libraries, as ``25.0.7-2``."""
    try:
        content = Path(library or "").read_bytes()
    except OSError:
        return None
    found = re.search(rb"\0(\d{2}\.\d\.\d{1,2}(?:[-+~.\w]{0,40}))\0", content)
    return found.group(1).decode() if found else None


def look_into(node: str, accel: bool) -> dict[str, Any]:
    """Open a device node, and list the cores behind it."""
    try:
        handle = os.open(node, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return {"error": error.strerror}
    return {"cores": [{"pipe": 0, "npu": True}] if accel else etnaviv_cores(handle)}


def etnaviv_cores(handle: int) -> list[dict[str, Any]]:
    """Ask the kernel's driver which cores it has found behind an open render node."""
    cores = []
    for pipe in range(ETNAVIV_PIPES):
        core: dict[str, Any] = {"pipe": pipe}
        for name, number in ETNAVIV_PARAM.items():
            request = bytearray(struct.pack("<IIQ", pipe, number, 0))
            try:
                fcntl.ioctl(handle, ETNAVIV_GET_PARAM, request)
            except OSError:
                continue
            core[name] = struct.unpack("<IIQ", request)[2]
        if "model" in core:
            cores.append(core | {"npu": core["model"] == NPU_MODEL})
    return cores


def count_operations(model: bytes) -> int:
    """Return the number of operators in the model's main graph, read from the FlatBuffer itself.

    Slots as in TensorFlow's schema.fbs: Model.subgraphs is 2, SubGraph.operators is 3.
    """

    def follow(table: int, slot: int) -> int:
        (back,) = struct.unpack_from("<i", model, table)
        size, field = 0, 0
        (size,) = struct.unpack_from("<H", model, table - back)
        if 4 + 2 * slot < size:
            (field,) = struct.unpack_from("<H", model, table - back + 4 + 2 * slot)
        if not field:
            raise StageError("model", "the model has no graph, or the graph no operators")
        (away,) = struct.unpack_from("<I", model, table + field)
        return int(table + field + away)

    if model[4:8] != b"TFL3":
        raise StageError("model", f"not a .tflite file: bytes 4-7 are {model[4:8]!r}, not b'TFL3'")
    try:
        graphs = follow(struct.unpack_from("<I", model)[0], 2)
        (away,) = struct.unpack_from("<I", model, graphs + 4)
        operators = follow(graphs + 4 + away, 3)
        (count,) = struct.unpack_from("<I", model, operators)
    except struct.error as error:
        raise StageError(
            "model", f"the model is cut short or broken: its graph is not in its {len(model)} bytes"
        ) from error
    return int(count)


def delegated(interpreter: Any, total_ops: int) -> dict[str, Any]:
    """Return which operators the delegates did not take, and in how many graphs they took the others.

    ``delegated_ops`` is None where this runtime cannot tell.

    The runtime lists the nodes of the model and, behind them, one for each graph that a delegate took. What
    such a node stands for lies between its outputs and its inputs.
    """
    try:
        nodes = interpreter._get_ops_details()
    except AttributeError:
        return {"delegated_ops": None, "delegated_nodes": None, "partitions": None, "on_cpu": []}
    makers = {
        int(tensor): number
        for number, node in enumerate(nodes[:total_ops])
        for tensor in node["outputs"]
    }
    taken: set[int] = set()
    for node in nodes[total_ops:]:
        stop = {int(tensor) for tensor in node["inputs"]}
        open_ends = [int(tensor) for tensor in node["outputs"]]
        while open_ends:
            tensor = open_ends.pop()
            number = makers.get(tensor)
            if tensor in stop or number is None or number in taken:
                continue
            taken.add(number)
            open_ends += [int(source) for source in nodes[number]["inputs"]]
    return {
        "delegated_ops": len(taken),
        "delegated_nodes": sorted(taken),
        "partitions": len(nodes) - total_ops,
        "on_cpu": [
            {"index": number, "op": str(nodes[number]["op_name"])}
            for number in range(total_ops)
            if number not in taken
        ],
    }


# --- the environment -------------------------------------------------------------------------


def set_environment(asked: dict[str, str], rusticl: str | None, preload: str | None = None) -> None:
    """Set variables before anything is loaded; starts this program anew if the linker has to see them.

    A folder of our own with rusticl in it comes behind what was asked for, ``preload`` before it.
    """
    linker = ("LD_LIBRARY_PATH", "LD_PRELOAD")
    before = [os.environ.get(name, "") for name in linker]
    os.environ.update(asked)
    if preload:
        loaded = [preload, *os.environ.get("LD_PRELOAD", "").split(":")]
        os.environ["LD_PRELOAD"] = ":".join(dict.fromkeys(filter(None, loaded)))
    if rusticl:
        more = (f"{rusticl}/lib", f"{rusticl}/lib/libclc_path.so")
        for name, path in zip(linker, more, strict=True):
            paths = [*os.environ.get(name, "").split(":"), path]
            os.environ[name] = ":".join(dict.fromkeys(filter(None, paths)))
        os.environ.setdefault("OCL_ICD_VENDORS", f"{rusticl}/rusticl.icd")
        os.environ["NPU_BSP_LIBCLC"] = f"{rusticl}/clc"
    if [os.environ.get(name, "") for name in linker] != before:
        os.execv(sys.executable, [sys.executable, *sys.argv])  # noqa: S606


def profile_library() -> str | None:
    """Return the library that has to be preloaded for a profile; None if it is, or is not there."""
    import profiling  # type: ignore[import-not-found]

    library = ROOT / "lib" / profiling.LIBRARY_NAME
    return str(library) if library.exists() and not profiling.preloaded() else None


# --- one delegate, in a process of its own ---------------------------------------------------


def parse_delegate(text: str, opencl: str | None) -> tuple[str, str | None, dict[str, str]]:
    """Split ``NAME:key=value;key=value`` or ``PATH:...`` into kind, library and options."""
    if text in ("cpu", "cpu-reference"):
        return text, None, {}
    name, _, rest = text.partition(":")
    words = [word for word in rest.split(";") if word]
    if any("=" not in word for word in words):
        raise StageError("arguments", f"delegate options are key=value;key=value, not {rest!r}")
    options = {key: value for key, _, value in (word.partition("=") for word in words)}
    if name not in PLACES:
        return "external", name, options
    places = [place.replace("{opencl}", opencl or "/nowhere") for place in PLACES[name]]
    return "external", next((place for place in places if Path(place).exists()), None), options


def not_there(name: str, library: str | None) -> str:
    """Say what a delegate lacks before it can be loaded; "" if nothing."""
    kind = name.partition(":")[0]
    if library is None:
        wanted = PLACES[kind][-1].rpartition("/")[2]
        return f"{wanted} is not there"
    if not Path(library).exists():
        if Path(library).is_symlink():
            return f"{library} is a link to {Path(library).readlink()}, which is not there: install that"
        return f"{library} is not there: give the delegate's path on the machine that runs it"
    node = DEVICES.get(kind)
    if node and not Path(node).exists():
        return f"{node} is not there: the vendor's kernel driver is not loaded"
    return ""


def run_delegate(module: Any, job: argparse.Namespace, model: bytes, picture: Any,
                 delegate: str, profiled: bool = False) -> dict[str, Any]:  # fmt: skip
    """Run the model once, then up to ``job.runs`` times within ``job.budget`` seconds.

    ``profiled``: return when each job began and ended, in place of what came out.
    """
    import model_inputs  # type: ignore[import-not-found]
    import picked  # type: ignore[import-not-found]
    import preprocess  # type: ignore[import-not-found]
    import profiling

    kind, library, options = parse_delegate(delegate, job.opencl)
    one_job = profiled and profiling.ask_for_one_job_a_submit(library)
    arguments: dict[str, Any] = {"model_content": model, "num_threads": job.threads}
    resolver = module.OpResolverType
    if kind == "cpu-reference" or (kind == "external" and job.portable):
        # The portable kernels: the same numbers on every machine, bit for bit, and slow.
        arguments["experimental_op_resolver_type"] = resolver.BUILTIN_REF
    elif kind == "external":
        # Without this, XNNPACK takes what the delegate leaves.
        arguments["experimental_op_resolver_type"] = resolver.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    start = time.perf_counter()
    if kind == "external":
        import delegate_library  # type: ignore[import-not-found]

        try:
            delegate_library.load(library)
            arguments["experimental_delegates"] = [module.load_delegate(library, options)]
        except (delegate_library.LibraryError, ValueError, OSError, RuntimeError) as error:
            said = str(error).strip() or repr(error)
            if delegate.partition(":")[0] == "opencl":
                said = delegate_library.of_opened(OPENCL_LIBRARY) or said
            raise StageError("delegate", said) from error
    try:
        interpreter = module.Interpreter(**arguments)
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise StageError("model", str(error).strip() or repr(error)) from error
    prepare_ms = (time.perf_counter() - start) * 1000
    taken = delegated(interpreter, count_operations(model))
    chosen = picked.sources(interpreter) if kind == "cpu-reference" else {}
    if chosen:  # what was chosen from is wanted, too
        interpreter = module.Interpreter(**arguments, experimental_preserve_all_tensors=True)
        interpreter.allocate_tensors()

    sources = [detail["index"] for detail in interpreter.get_input_details()]
    fillings = model_inputs.fillings(model_inputs.inputs_of(interpreter))

    def feed(view: Any) -> list[Any]:
        """Set all inputs, and return what they were set to."""

        def resized(height: int, width: int) -> Any:
            fused = preprocess.fuses_multiply_add()
            return preprocess.resize_bilinear(view, height, width, fused=fused)

        given = [model_inputs.values(each, resized, preprocess.to_input) for each in fillings]
        for source, values in zip(sources, given):  # noqa: B905 # one each
            interpreter.set_tensor(source, values)
        return given

    given = feed(picture)

    start = time.perf_counter()
    interpreter.invoke()
    first_ms = (time.perf_counter() - start) * 1000
    if profiled:
        try:
            found = profiling.record(interpreter.invoke, job.runs, job.budget)
        except profiling.ProfileError as error:
            raise StageError("profile", str(error)) from error
        return {**found, "one_job_a_submit": one_job}
    most = min(job.runs, REFERENCE_RUNS) if kind == "cpu-reference" else job.runs
    runs_ms = timed_runs(interpreter.invoke, most, job.budget)

    sink = interpreter.get_output_details()[0]
    output, *others = (
        described(interpreter, detail) | scored(interpreter, chosen, detail["index"])
        for detail in interpreter.get_output_details()
    )
    views, scored_views = [], []
    deadline = time.perf_counter() + job.budget
    for view in preprocess.views(picture)[: job.views]:
        if time.perf_counter() > deadline:
            break
        feed(view)
        interpreter.invoke()
        views.append(packed(interpreter.get_tensor(sink["index"])))
        scored_views.append(scored(interpreter, chosen, sink["index"]))
    return {
        **taken,
        "prepare_ms": prepare_ms,
        "first_ms": first_ms,
        "runs_ms": runs_ms,
        "input": fed(given[0]),
        "other_inputs": [fed(values) for values in given[1:]],
        "output": output,
        "other_outputs": others,
        "views": views,
        "scored_views": scored_views if chosen else [],
    }


def scored(interpreter: Any, chosen: dict[int, Any], tensor: int) -> dict[str, Any]:
    """Return how good each class was, for an output that only names the best one; empty for others."""
    import picked

    short = picked.shortfall(interpreter, chosen[tensor]) if tensor in chosen else None
    if short is None:
        return {}
    return {
        "short": {"classes": short.shape[1], "unit": picked.UNIT, "data": packed(short)},
    }


def timed_runs(invoke: Any, most: int, budget_s: float) -> list[float]:
    """Return the milliseconds of each of up to ``most`` calls within a budget; one is always made."""
    runs_ms: list[float] = []
    deadline = time.perf_counter() + budget_s
    while len(runs_ms) < most and (not runs_ms or time.perf_counter() < deadline):
        start = time.perf_counter()
        invoke()
        runs_ms.append((time.perf_counter() - start) * 1000)
    return runs_ms


def fed(values: Any) -> dict[str, Any]:
    """Describe what an input was set to."""
    return {
        "shape": [int(size) for size in values.shape],
        "dtype": values.dtype.name,
        "sha256": hashlib.sha256(values.tobytes()).hexdigest(),
    }


def described(interpreter: Any, detail: dict[str, Any]) -> dict[str, Any]:
    """Return an output with its values, and what they mean."""
    values = interpreter.get_tensor(detail["index"])
    scale, zero_point = detail["quantization"]
    return {
        "name": str(detail["name"]),
        "shape": [int(size) for size in values.shape],
        "dtype": values.dtype.name,
        "scale": float(scale),
        "zero_point": int(zero_point),
        "data": packed(values),
    }


def packed(values: Any) -> str:
    """Return an array's bytes as text."""
    return base64.b64encode(zlib.compress(values.tobytes())).decode()


def in_child(work: Any, timeout_s: float) -> dict[str, Any]:
    """Return what ``work()`` returns, from a forked process: with its output, however it ends."""
    with tempfile.TemporaryFile() as log, tempfile.TemporaryFile() as answer:
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                be_first_to_go()
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
                signal.setitimer(signal.ITIMER_REAL, timeout_s)  # ends us inside C code, too
                try:
                    result = work()
                except StageError as error:
                    result = {"error": error.record()}
                except Exception as error:
                    traceback.print_exc()
                    result = {"error": {"stage": "run", "message": f"{error!r}"}}
                os.write(answer.fileno(), json.dumps(result).encode())
                code = 0
            finally:
                # Not exit(): delegates are known to crash while they are taken down.
                os._exit(code)
        status = wait_for(child, timeout_s + GRACE_S)
        if status is None:
            message = f"did not end within {timeout_s:g} s, and cannot be killed"
            return {"error": {"stage": "time", "message": message}, "log": ""}
        answer.seek(0)
        content = answer.read()
        size = log.seek(0, os.SEEK_END)
        log.seek(max(0, size - LOG_LIMIT_BYTES))
        text = log.read().decode(errors="replace")
    if content and not os.WIFSIGNALED(status):
        facts: dict[str, Any] = json.loads(content)
    elif os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM:
        facts = {"error": {"stage": "time", "message": f"did not end within {timeout_s:g} s"}}
    elif os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        name = signal_name(number)
        # Nobody but the kernel, short of memory, and an administrator sends it.
        said = f"was killed with {name}" if number == signal.SIGKILL else f"crashed with {name}"
        facts = {"error": {"stage": "crash", "message": said}, "signal": number}
    else:
        facts = {"error": {"stage": "crash", "message": f"ended with status {status}"}}
    facts["log"] = text
    return facts


def be_first_to_go() -> None:
    """Have the kernel end this process, not the board's others, when memory runs out."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def signal_name(number: int) -> str:
    """Return ``SIGSEGV`` for 11; real-time signals have no names of their own."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def wait_for(child: int, timeout_s: float) -> int | None:
    """Return the status of a process that ends, or None if it is stuck in the kernel.

    Ends both if the connection that asked is cut: sshd ends then, and nobody is left to read results.
    """
    deadline = time.monotonic() + timeout_s
    pause_s = 0.001
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        if os.getppid() != STARTED_BY:
            os.kill(child, signal.SIGKILL)
            sys.exit("whoever started this is gone")
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, 0.05)
    os.kill(child, signal.SIGKILL)
    return None


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, which may be larger than the memory that is wanted for it."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


# --- the whole -------------------------------------------------------------------------------


def check_model(module: Any, runtime: str, model: bytes) -> list[dict[str, Any]]:
    """Load the model without any delegate, in a process of its own; return what its inputs are given.

    Raises:
        StageError: no row could run it.
    """
    import loading  # type: ignore[import-not-found]
    import model_inputs

    def load() -> dict[str, Any]:
        try:
            interpreter = loading.load(module, runtime, model)
            fillings = model_inputs.fillings(model_inputs.inputs_of(interpreter))
        except loading.LoadError as error:
            raise StageError(error.stage, str(error), error.hint) from error
        except model_inputs.InputError as error:
            raise StageError("model", str(error), model_inputs.HINT) from error
        return {"inputs": [each.record() for each in fillings]}

    found = in_child(load, LOAD_TIMEOUT_S)
    if "error" not in found:
        inputs: list[dict[str, Any]] = found["inputs"]
        return inputs
    error = found["error"]
    if error["stage"] in ("crash", "time"):
        message = f"{runtime} {error['message']} while it loaded this model, without any delegate"
        raise StageError("model", message, "the model is broken or too large: give another one")
    raise StageError(error["stage"], error["message"], error.get("hint", ""))


def run(job: argparse.Namespace) -> dict[str, Any]:
    """Run all delegates and return the facts."""
    import bmp  # type: ignore[import-not-found]
    import numpy

    model = Path(job.model).read_bytes()
    try:
        picture = bmp.open_bmp(Path(job.image))
    except bmp.ImageError as error:
        raise StageError("image", f"{job.image}: {error}") from error
    operations = count_operations(model)
    module, runtime = load_runtime()
    inputs = check_model(module, runtime, model)
    devices = npu_devices()
    unsafe = [f"{each['node']} {each['unsafe']}" for each in devices if "unsafe" in each]
    results = []
    for delegate in job.delegate:
        sys.stderr.write(f"running {delegate}\n")
        kind, library, _ = parse_delegate(delegate, job.opencl)
        is_teflon = delegate.partition(":")[0] == "teflon"
        facts: dict[str, Any] = {
            "delegate": delegate,
            "library": library,
            "environment": {name: os.environ[name] for name in WATCHED if name in os.environ},
            "mesa": mesa_version(library) if is_teflon else None,
        }
        missing = not_there(delegate, library) if kind == "external" else ""
        kernel_log = KernelLog()
        if missing:
            facts |= {"error": {"stage": "library", "message": missing}, "log": ""}
        elif is_teflon and unsafe:
            # It would open the node again, which may hang for good by now.
            facts |= {"error": {"stage": "device", "message": unsafe[0]}, "log": ""}
        else:
            facts |= in_child(
                lambda name=delegate: run_delegate(module, job, model, picture, name), job.timeout
            )
            if job.profile and is_teflon and "error" not in facts:
                # Mesa looks at its options once a process.
                facts["profile"] = in_child(
                    lambda name=delegate: run_delegate(module, job, model, picture, name, True),
                    job.timeout,
                )
                del facts["profile"]["log"]
        facts["kernel_log"] = kernel_log.read()
        results.append(facts)
    return {
        "format": FORMAT,
        "runtime": runtime,
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "machine": platform.machine(),
        "kernel": platform.release(),
        "threads": job.threads,
        "model_sha256": hashlib.sha256(model).hexdigest(),
        "image_sha256": sha256_of(Path(job.image)),
        "total_ops": operations,
        "inputs": inputs,
        "npu_devices": devices,
        "results": results,
        # From this program's start; what the rows took is in them.
        "seconds": time.monotonic() - STARTED_S,
    }


def main() -> int:
    """Parse, run, print; 0 when there is a JSON document with results, 1 with only an error."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", required=True, help=".tflite file")
    parser.add_argument("--image", required=True, help="BMP file")
    parser.add_argument("--delegate", action="append", required=True,
                        help="cpu, cpu-reference, teflon, opencl, tim-vx or PATH, with "
                        "[:key=value;...]; repeatable")  # fmt: skip
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE",
                        help="set in the environment of all delegates; repeatable")  # fmt: skip
    parser.add_argument("--opencl", help="folder with lib/libopencl_delegate.so")
    parser.add_argument(
        "--rusticl", help="folder with Mesa's OpenCL driver, where none is installed"
    )
    parser.add_argument(
        "--profile", action="store_true", help="take the times of teflon's jobs, too"
    )
    parser.add_argument("--portable", action="store_true",
                        help="run what a delegate leaves on the portable kernels")  # fmt: skip
    parser.add_argument("--runs", type=int, default=50, help="measured runs at most")
    parser.add_argument("--views", type=int, default=8, help="crops and flips to run, too")
    parser.add_argument("--budget", type=float, default=20, help="seconds of measured runs")
    parser.add_argument("--timeout", type=float, default=300, help="seconds for one delegate")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads")
    job = parser.parse_args()
    if any("=" not in word for word in job.env):
        parser.error("--env takes NAME=VALUE")
    asked = dict(word.split("=", 1) for word in job.env)
    set_environment(asked, job.rusticl, profile_library() if job.profile else None)
    # Mesa src/gallium/frontends/teflon: the delegate then says what it took; read before it loads.
    os.environ.setdefault("TEFLON_DEBUG", "verbose")
    try:
        use_payload()
        document = run(job)
    except StageError as error:
        document = {"format": FORMAT, "error": error.record()}
    except OSError as error:
        document = {"format": FORMAT, "error": {"stage": "files", "message": str(error)}}
    json.dump(document, sys.stdout)
    sys.stdout.write("\n")
    return 1 if "error" in document else 0


if __name__ == "__main__":
    sys.exit(main())
