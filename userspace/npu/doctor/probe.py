# SPDX-License-Identifier: MIT
"""Runs on a board, sent by doctor: what only Python can ask. Standard library; needs no payload.

Prints one JSON line: Python's version, the NPU's device nodes and the cores behind them, which TFLite
runtime can be imported, and what one convolution on the NPU came to.
``doctor`` puts ``RUNNER`` (source of the runner's functions that are called here), ``MODEL`` (base64 of a
.tflite file), ``PAYLOAD`` and ``OPEN_NODE`` before it. Delegates and device nodes are only touched in child
processes: Linux 6.12's etnaviv ends a process that opens a node without cores.

A visit waits for it, so it does little: ``RUNNER`` has nothing else, Python is started without ``site``,
and ends without taking anything down.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import types
from pathlib import Path
from typing import Any

TYPE_CHECKING = False
if TYPE_CHECKING:
    RUNNER = MODEL = PAYLOAD = ""
    OPEN_NODE = True

LIMIT_S = 20.0


def load_runner() -> Any:
    """Return the runner as a module; as if it lay in the payload, where there is one."""
    module = types.ModuleType("runner")
    module.__file__ = PAYLOAD + "/bin/runner.py"
    sys.modules["runner"] = module
    exec(compile(RUNNER, "runner.py", "exec"), module.__dict__)  # noqa: S102 # our own file
    return module


def load_runtime(runner: Any) -> tuple[Any, str]:
    """As ``runner.load_runtime``, without importlib.metadata, which takes longer than all the rest."""
    for name in runner.RUNTIMES:
        try:
            module = __import__(name + ".interpreter", fromlist=["Interpreter"])
        except ImportError:
            continue
        for entry in Path(str(module.__file__)).parents[1].glob(name + "-*.dist-info"):
            version = entry.name[len(name) + 1 : -len(".dist-info")]
            return module, name.replace("_", "-") + " " + version
        return module, name
    runner.load_runtime()  # says why not
    raise AssertionError


def convolve(module: Any, library: str) -> dict[str, Any]:
    """Run one convolution on the delegate and on the CPU; return how far they are apart."""
    import numpy

    model = base64.b64decode(MODEL)
    plain = module.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    outputs = []
    for delegates in ([], [module.load_delegate(library, {})]):
        interpreter = module.Interpreter(
            model_content=model,
            experimental_delegates=delegates or None,
            experimental_op_resolver_type=plain,
        )
        interpreter.allocate_tensors()
        source = interpreter.get_input_details()[0]
        values = numpy.arange(int(numpy.prod(source["shape"])), dtype=numpy.int64) * 37 % 256
        interpreter.set_tensor(
            source["index"], values.astype(source["dtype"]).reshape(source["shape"])
        )
        interpreter.invoke()
        output = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
        outputs.append(output.astype(numpy.int64))
    difference = int(numpy.abs(outputs[0] - outputs[1]).max())
    constant = bool((outputs[1] == outputs[1].ravel()[0]).all())
    return {"max_difference": difference, "constant": constant}


def main() -> dict[str, Any]:
    """Ask everything that can be asked, each so that its failure does not end the rest."""
    answer: dict[str, Any] = {"python": ".".join(map(str, sys.version_info[:3]))}
    runner = load_runner()
    answer["devices"] = runner.npu_devices() if OPEN_NODE else None
    places = (PAYLOAD + "/lib/libteflon.so", "/usr/lib/teflon/libteflon.so")
    library = next((place for place in places if Path(place).is_file()), None)
    answer["library"] = library
    try:
        if not runner.IS_PAYLOAD:
            import site

            site.main()  # packages may be where the distribution or pip has put them
        runner.use_payload()
        module, answer["runtime"] = load_runtime(runner)
    except Exception as error:
        answer["runtime_error"] = str(error)[:500]
        return answer
    usable = [
        device
        for device in answer["devices"] or []
        if any(core["npu"] for core in device["cores"]) and not device["error"]
    ]
    if library and usable:
        os.environ["TEFLON_DEBUG"] = "verbose"
        answer["model"] = runner.in_child(lambda: convolve(module, library), LIMIT_S)
        answer["model"]["log"] = answer["model"]["log"][-3000:]
    return answer


if __name__ == "__main__":
    sys.stdout.write("@@json " + json.dumps(main()) + "\n")
    sys.stdout.flush()
    os._exit(0)
