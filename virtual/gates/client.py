# SPDX-License-Identifier: MIT
"""Runs many models with the delegate, each in a forked process of its own: crashes and hangs are results.

Started once, under qemu-user, by ``model_runner``: imports take seconds, a fork takes none. It needs only
the standard library, numpy and a TFLite runtime, whose folder is the first argument; the second is
libteflon.so, the others are the names of the runtimes to take, the preferred one first. Each line of
standard input is a request, each line of standard output its answer, as JSON. A request with ``here``
is run in this process: what QEMU has translated then, it has in every fork.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

# What runs on boards, and here, too.
_ONBOARD = Path(__file__).parents[2] / "userspace/npu/validate/onboard"
LOG_BYTES = 20_000
# After which a process that was told to end is killed.
GRACE_S = 5.0


def run_model(module: Any, library: str, request: dict[str, Any]) -> dict[str, Any]:
    """Run one model; return what part of it was delegated, and write its outputs to a file.

    Without ``delegate`` in the request the CPU computes it all.
    """
    import numpy
    import output_values  # type: ignore[import-not-found]

    os.environ.update(request["environment"])
    began = time.process_time()
    try:
        interpreter = loaded(module, library, request, request["resolver"])
    except ValueError as error:
        # The portable kernels lack some operators (int4 weights, RFFT2D) that TFLite has.
        if "Didn't find op" not in str(error):
            raise
        interpreter = loaded(module, library, request, "BUILTIN_WITHOUT_DEFAULT_DELEGATES")
    interpreter.allocate_tensors()
    load_s = time.process_time() - began
    nodes = [
        {
            "op_name": node["op_name"],
            "inputs": [int(tensor) for tensor in node["inputs"]],
            "outputs": [int(tensor) for tensor in node["outputs"]],
        }
        for node in interpreter._get_ops_details()
    ]
    with numpy.load(request["inputs"]) as inputs:
        for number, details in enumerate(interpreter.get_input_details()):
            interpreter.set_tensor(details["index"], inputs[f"arr_{number}"])
    started = time.perf_counter()
    interpreter.invoke()
    seconds = time.perf_counter() - started
    details = interpreter.get_output_details()
    outputs = [output_values.output_value(interpreter, each) for each in details]
    numpy.savez(request["outputs"], *outputs)
    return {
        "status": "ran",
        "partitions": sum("delegate" in node["op_name"].lower() for node in nodes),
        "seconds": seconds,
        "load_s": load_s,
        "nodes": nodes,
    }


def loaded(module: Any, library: str, request: dict[str, Any], resolver: str) -> Any:
    """Return an interpreter of a request's model, with kernels of that name for what is left to the CPU."""
    return module.Interpreter(
        model_path=request["model"],
        experimental_delegates=[module.load_delegate(library)] if request["delegate"] else [],
        experimental_op_resolver_type=getattr(module.OpResolverType, resolver),
        num_threads=1,
    )


def in_child(module: Any, library: str, request: dict[str, Any]) -> dict[str, Any]:
    """Run ``run_model`` in a forked process, however it ends."""
    timeout_s = float(request["timeout_s"])
    with tempfile.TemporaryFile() as log, tempfile.TemporaryFile() as answer:
        child = os.fork()
        if child == 0:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            signal.setitimer(signal.ITIMER_REAL, timeout_s)
            code = 1
            try:
                try:
                    result = run_model(module, library, request)
                except Exception as error:
                    result = {"status": "error", "message": str(error).strip() or repr(error)}
                os.write(answer.fileno(), json.dumps(result).encode())
                code = 0
            finally:
                os._exit(code)
        late = not ended_within(child, timeout_s + GRACE_S)
        if late:
            os.kill(child, signal.SIGKILL)  # it ignores SIGALRM
        _, status = os.waitpid(child, 0)
        answer.seek(0)
        content = answer.read()
        size = log.seek(0, os.SEEK_END)
        log.seek(max(0, size - LOG_BYTES))
        text = log.read().decode(errors="replace")
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if late or number == signal.SIGALRM:
            facts = {"status": "hangs", "message": f"did not end within {timeout_s:g} s"}
        else:
            facts = {"status": "crashes", "message": signal_name(number)}
    elif content:
        try:
            facts = json.loads(content)
        except ValueError:
            words = "could not write all of its answer: the disk is full?"
            facts = {"status": "crashes", "message": words}
    else:
        facts = {"status": "crashes", "message": f"ended with status {os.WEXITSTATUS(status)}"}
    return {**facts, "log": text}


def ended_within(child: int, timeout_s: float) -> bool:
    """Wait for a child's end, without taking its status; False where it has not come in time."""
    deadline = time.monotonic() + timeout_s
    pause_s = 0.001
    while not os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        if time.monotonic() > deadline:
            return False
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.5, 0.01)
    return True


def signal_name(number: int) -> str:
    """Return ``SIGSEGV`` for 11; real-time signals have no names of their own."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def main() -> int:
    """Serve requests until standard input ends."""
    site, library, *runtimes = sys.argv[1:]
    sys.path[:0] = [site, str(_ONBOARD)]
    import importlib

    import numpy  # noqa: F401 - before the first fork

    for name in runtimes:
        if (Path(site) / name).is_dir():
            module = importlib.import_module(f"{name}.interpreter")
            break
    else:
        raise ImportError(f"no TFLite runtime in {site}")
    try:
        ctypes.CDLL(library)  # also before the first fork: relocations are done once
    except OSError as error:
        sys.stdout.write(f"not loaded: {error}\n")
        return 1
    # At a process's first thread QEMU drops all the code it has translated: better here, once, than in
    # each child, where it doubles the time.
    first = threading.Thread(target=int)
    first.start()
    first.join()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        request = json.loads(line)
        run = run_model if request["here"] else in_child
        sys.stdout.write(json.dumps(run(module, library, request)) + "\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
