# SPDX-License-Identifier: MIT
"""What ``npu.show`` and ``npu.replay`` print for people, at 80 columns."""

from __future__ import annotations

from bsp.base.output import table
from bsp.base.words import counted, filled

from ..identity import RocketIdentity
from .replay import ReplayDifference, Replayed
from .show import JobShown, Shown, SubmissionShown
from .trace import Header

_MOST_DIFFERENCES = 20


def shown_text(shown: Shown, *, fields: bool = False) -> str:
    """Return a trace as tables; with ``fields`` each job's descriptor in place of a row."""
    parts = [_title(shown.header)]
    for each in shown.submissions:
        if fields:
            parts += [_descriptor(job) for job in each.jobs]
        else:
            parts.append(_submission(each, shown.header))
    if not fields:
        sums = shown.totals()
        seconds = sum(each.seconds for one in shown.submissions for each in one.jobs)
        count = counted(sums["submissions"], "submission")
        parts.append(_wrapped(f"in all: {count}, {_sums(sums, seconds, shown.header)}"))
    return "\n\n".join(parts)


def replayed_text(replayed: Replayed) -> str:
    """Return what a replay found."""
    parts = [_title(replayed.header)]
    jobs = _jobs(replayed.nn_jobs, replayed.tp_jobs, replayed.header)
    ran = (
        f"{counted(replayed.submissions, 'submission')}, {jobs} replayed in "
        f"{replayed.seconds:.2f} s (recorded: {replayed.recorded_seconds:.2f} s), "
        f"{replayed.macs / 1e6:.0f} million multiplications"
    )
    parts.append(_wrapped(ran))
    if replayed.findings:
        parts.append("\n".join(_wrapped(f"finding: {each}") for each in replayed.findings))
    if replayed.faults:
        parts.append(_wrapped(f"{counted(replayed.faults, 'submission')} stopped at a fault"))
    if not replayed.differences:
        parts.append(f"equal: all {replayed.bytes_compared} bytes that the jobs wrote")
        return "\n\n".join(parts)
    rows = [_difference(each) for each in replayed.differences[:_MOST_DIFFERENCES]]
    parts.append(table(("job", "unit", "bytes", "largest", "first, and what"), rows))
    more = len(replayed.differences) - _MOST_DIFFERENCES
    if more > 0:
        parts.append(f"and {more} more")
    parts.append(f"DIFFERS: {counted(len(replayed.differences), 'job')}")
    return "\n\n".join(parts)


def _difference(each: ReplayDifference) -> list[str]:
    if not each.bytes:
        text = f"{each.description}: expected {each.expected}, found {each.found}"
        return [str(each.job), each.unit, "-", "-", text]
    where = f"{each.operation} " if each.operation else ""
    text = (
        f"at {each.first_address:#010x}: expected {each.expected}, found {each.found}; "
        f"{where}{each.description}"
    )
    return [str(each.job), each.unit, f"{each.bytes} of {each.of_bytes}", str(each.largest), text]


def _title(header: Header) -> str:
    software = ", ".join(f"{name} {version}" for name, version in header.software.items())
    return _wrapped(
        f"{header.npu.title}, recorded {header.created} by the {header.door} door, mode "
        f"{header.mode}" + (f"; {software}" if software else "")
    )


def _submission(each: SubmissionShown, header: Header) -> str:
    sums = each.totals()
    title = (
        f"submission {each.number}, client {each.client}: {counted(each.buffers, 'buffer')} of "
        f"{_size(each.buffer_bytes)}, {each.stream_words} command words"
    )
    lines = [_wrapped(title)]
    if each.like is not None:
        lines.append(f"the same jobs as submission {each.like}")
    elif each.jobs:
        columns = ("job", "unit", "10^6 MACs", "coefficients", "moved", "what")
        lines.append(table(columns, [_row(job) for job in each.jobs]))
        lines.append(_wrapped(_sums(sums, sum(job.seconds for job in each.jobs), header)))
    if each.fault:
        lines.append(_wrapped(f"stopped: {each.fault}"))
    return "\n".join(lines)


def _row(job: JobShown) -> list[str]:
    coefficients = ""
    if job.weights:
        share = 100 * job.stored_bytes / job.weights
        coefficients = f"{_size(job.stored_bytes)} {share:4.0f}%"
    what = job.problem or f"{job.kind} {job.what}"
    if job.operation:
        what += f", {job.operation}"
    macs = f"{job.macs / 1e6:.2f}" if job.macs else ""
    return [str(job.number), job.unit, macs.rjust(9), coefficients.rjust(12),
            _size(job.moved_bytes).rjust(7), what]  # fmt: skip


def _jobs(nn_jobs: int, tp_jobs: int, header: Header) -> str:
    if isinstance(header.npu, RocketIdentity):
        return counted(nn_jobs, "task")
    return f"{nn_jobs} NN and {tp_jobs} TP jobs"


def _sums(sums: dict[str, int], seconds: float, header: Header) -> str:
    text = (
        f"{_jobs(sums['nn_jobs'], sums['tp_jobs'], header)}, {sums['macs'] / 1e6:.1f} million "
        f"MACs ({sums['useful_macs'] / 1e6:.1f} without padded depthwise planes), "
        f"{_size(sums['read_bytes'])} read, {_size(sums['written_bytes'])} written, "
        f"{seconds:.2f} s in the emulator"
    )
    if sums["weights"]:
        text += (
            f"; coefficients {_size(sums['stored_bytes'])} for {sums['weights']} weights "
            f"({100 * sums['stored_bytes'] / sums['weights']:.0f}%; "
            f"{100 * sums['zero_weights'] / sums['weights']:.0f}% are zero)"
        )
    return text


def _descriptor(job: JobShown) -> str:
    lines = [
        _wrapped(f"job {job.number}, {job.unit} at {job.address:#010x}: {job.kind} {job.what}")
    ]
    if job.problem:
        lines.append(_wrapped(job.problem))
    rows = [[name, str(value), f"{value:#x}"] for name, value in job.fields.items() if value]
    lines.append(table(("field (all others are 0)", "value", "hex"), rows))
    return "\n".join(lines)


def _size(size_bytes: int) -> str:
    if size_bytes < 1000:
        return f"{size_bytes} B"
    if size_bytes < 1_000_000:
        return f"{size_bytes / 1e3:.1f} kB"
    return f"{size_bytes / 1e6:.2f} MB"


def _wrapped(text: str) -> str:
    return filled(text, rest="  ")
