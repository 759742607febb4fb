# SPDX-License-Identifier: MIT
"""Models whose weights lie behind the FlatBuffer, as converters write what is larger than 2 GB."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from bsp.base.errors import UserError
from tests.support.models.inputs import Model
from tests.userspace.validate.test_model_inputs import picture as picture  # the fixture
from tests.userspace.validate.test_model_inputs import run_model
from userspace.npu.model import tflite_file as t
from userspace.npu.model.graph import read_model

pytestmark = pytest.mark.usefixtures("own_state")


def weights_behind() -> bytes:
    """A convolution; each buffer has an offset and a size (slots 1 and 2) in place of its bytes."""
    model = Model()
    image = model.image(1, 16, 16, 3)
    sink = model.conv(image)
    writer = t._Writer()
    contents = [
        np.ascontiguousarray(tensor.data, tensor.dtype).tobytes()
        for tensor in model.tensors
        if tensor.data is not None
    ]
    marks = [0xABCD << 32 | number for number in range(len(contents))]
    buffers = [writer.table([])]
    for mark, content in zip(marks, contents, strict=True):
        buffers.append(writer.table([("uint64", 1, mark), ("uint64", 2, len(content))]))
    numbers = iter(range(1, len(buffers)))
    tensors = [
        t._tensor_table(writer, tensor, 0 if tensor.data is None else next(numbers))
        for tensor in model.tensors
    ]
    operators = [t._operator_table(writer, each, 0) for each in model.operators]
    ends = writer.numbers([image], "int32"), writer.numbers([sink], "int32")
    graph = [writer.offsets(tensors), *ends, writer.offsets(operators)]
    table = writer.table([("offset", slot, part) for slot, part in enumerate(graph)])
    codes = writer.offsets([t._code_table(writer, *model.operators[0].key)])
    parts = (
        codes,
        writer.offsets([table]),
        writer.builder.CreateString("x"),
        writer.offsets(buffers),
    )
    fields = [("offset", slot, part) for slot, part in enumerate(parts, start=1)]
    whole = writer.table([("uint32", 0, 3), *fields])
    writer.builder.minalign = 16
    writer.builder.Finish(whole, file_identifier=b"TFL3")
    file = bytearray(t._aligned(writer.builder))
    for mark, content in zip(marks, contents, strict=True):
        place = file.index(struct.pack("<Q", mark))
        struct.pack_into("<Q", file, place, len(file))
        file += content + b"\0" * (-len(content) % 16)
    return bytes(file)


def test_weights_behind_the_flatbuffer_are_weights(picture: Path) -> None:
    """They were taken for values that the model computes, and it for one that crashes the delegate."""
    content = weights_behind()
    assert run_model(content, picture)["verdict"] == "pass"  # TFLite reads them
    _, weights, bias = read_model(content).operations[0].inputs
    assert weights
    assert bias
    assert len(weights.data or b"") == 4 * 3 * 3 * 3
    assert bias.data == bytes(16)


def test_weights_behind_the_end_are_a_broken_file() -> None:
    with pytest.raises(UserError, match=r"cut short or broken: 16 bytes at .* behind the end"):
        read_model(weights_behind()[:-16])
