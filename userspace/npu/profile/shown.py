# SPDX-License-Identifier: MIT
"""A profile as text: a table in 80 columns; or as bars of a page."""

from __future__ import annotations

from html import escape

from bsp.base.output import table
from bsp.base.words import counted, filled

from ..validate.records import OperationTime, ProfileRecord

_WIDTH = 80
_MOST_ROWS = 24
_MOST_BARS = 60
_MOST_NAMED = 8
EMULATED = "emulated: they say nothing about a board"
"""What is said of times of an emulated NPU or CPU."""


def text(title: str, profile: ProfileRecord, *, emulated: bool) -> str:
    """Return a title, the operations that take most, and the time outside of jobs."""
    if "error" in profile:
        return filled(f"{title}: no time by operation: {profile['error']}", _WIDTH)
    kept, left = _heaviest(profile, _MOST_ROWS)
    rows = [
        [_place(each), each["name"], _ms(each["ms"]), _share(each["share"]), _jobs(each)]
        for each in kept
    ]
    if left:
        spent, share = sum(each["ms"] for each in left), sum(each["share"] for each in left)
        rows.append(["", f"{len(left)} others", _ms(spent), _share(share), ""])
    lines = [
        filled(f"{title}: {summary(profile, emulated=emulated)}", _WIDTH),
        table(["#", "operation", "ms", "share", "jobs"], rows),
        filled(rest(profile), _WIDTH),
    ]
    return "\n".join(lines)


def summary(profile: ProfileRecord, *, emulated: bool) -> str:
    """Return the whole in a sentence: time, jobs, overhead."""
    over = profile["overhead"]
    words = (
        f"{_ms(profile['inference_ms'])} ms an inference (middle half of {profile['runs']}), "
        f"{_ms(profile['npu_ms'])} on the NPU in {counted(profile['nn_jobs'], 'NN job')} and "
        f"{counted(profile['tp_jobs'], 'TP job')}"
    )
    if over is not None:
        longer = "longer" if over >= 0 else "shorter"
        words += f"; {abs(over):.0%} {longer} than without the profile"
    if not profile["one_job_a_submit"]:
        words += "; this driver submits several jobs at once, so that there is no time for each"
    elif any(not each["operations"] for each in profile["operations"]):
        words += "; whose job each is cannot be told"
    return words + (f" ({EMULATED})" if emulated else "")


def rest(profile: ProfileRecord) -> str:
    """Return the time of an inference outside of jobs."""
    on_cpu = profile["on_cpu"]
    named = ", ".join(map(str, on_cpu[:_MOST_NAMED]))
    more = f" and {len(on_cpu) - _MOST_NAMED} more" if len(on_cpu) > _MOST_NAMED else ""
    cpu = f"operations {named}{more} on the CPU, " if on_cpu else ""
    return (
        f"The rest, in ms: {_ms(profile['before_ms'])} before the first job, "
        f"{_ms(profile['between_ms'])} while none ran, {_ms(profile['after_ms'])} behind the last: "
        f"{cpu}conversion of tensors, the driver."
    )


def bars(profile: ProfileRecord, *, emulated: bool) -> str:
    """Return bars for a page."""
    if "error" in profile:
        return f'<p class="soft">No time by operation: {escape(profile["error"])}</p>'
    kept, left = _heaviest(profile, _MOST_BARS)
    most = max((each["ms"] for each in kept), default=0.0) or 1.0
    items = [
        bar(
            f"{_place(each)} {each['name']}".strip(),
            f"{_ms(each['ms'])} ms · {_share(each['share'])}",
            each["ms"] / most,
        )
        for each in kept
    ]
    more = f"<p>and {len(left)} others, {_ms(sum(each['ms'] for each in left))} ms</p>"
    return (
        f'<p class="soft">{escape(summary(profile, emulated=emulated))}.</p>'
        f'<ul class="bars">{"".join(items)}</ul>{more if left else ""}'
        f'<p class="soft small">{escape(rest(profile))}</p>'
    )


def bar(name: str, value: str, share: float) -> str:
    """Return one bar of a list of class ``bars``; ``share``: of its full length."""
    return (
        f'<li class="label"><span>{escape(name)}</span><span>{escape(value)}</span>'
        f'<span class="bar"><i style="width:{100 * share:.1f}%"></i></span></li>'
    )


def _heaviest(profile: ProfileRecord, most: int) -> tuple[list[OperationTime], list[OperationTime]]:
    """Return those that take most time, in their order, and the others."""
    rows = profile["operations"]
    heavy = sorted(range(len(rows)), key=lambda place: -rows[place]["ms"])[:most]
    kept = sorted(heavy)
    return [rows[place] for place in kept], [
        each for place, each in enumerate(rows) if place not in heavy
    ]


def _place(each: OperationTime) -> str:
    return str(each["operations"][0]) if len(each["operations"]) == 1 else ""


def _jobs(each: OperationTime) -> str:
    parts = [f"{each['nn_jobs']} NN"] if each["nn_jobs"] else []
    parts += [f"{each['tp_jobs']} TP"] if each["tp_jobs"] else []
    return ", ".join(parts)


def _share(share: float) -> str:
    return f"{share:.1%}"


def _ms(value: float) -> str:
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"
