# SPDX-License-Identifier: MIT
"""Under which conditions a measurement was made: clocks, governor, temperature, load, build.

A latency alone cannot be compared with another: a board that throttles or that is busy is slower without
anything having become worse.
"""

from __future__ import annotations

import contextlib
import re

from bsp.base.errors import BspError
from bsp.base.process import Completed, run
from bsp.remote.ssh import Connection

from .records import Conditions

_TIMEOUT_S = 30

# Prints name=value lines; what a machine does not have is left out. Needs a shell and coreutils only.
SCRIPT = r"""
export LC_ALL=C
echo "kernel=$(uname -r)"
read -r load _ </proc/loadavg && echo "load=$load"
echo "cmdline=$(cat /proc/cmdline)"
for file in /sys/devices/system/cpu/cpufreq/policy*; do
    [ -d "$file" ] || continue
    read -r value <"$file/scaling_governor" && echo "governor=$value"
    read -r value <"$file/scaling_cur_freq" && echo "cpu_khz=$value"
done 2>/dev/null
for file in /sys/class/thermal/thermal_zone*/temp; do
    [ -r "$file" ] && read -r value <"$file" && echo "millicelsius=$value"
done 2>/dev/null
for device in /sys/bus/platform/devices/*npu*; do
    [ -e "$device" ] && echo "npu=${device##*/}"
done
grep -s -E ' (core|bus|shader|reg) *$' /sys/kernel/debug/clk/clk_summary | sed 's/^/clk=/'
sed -n -e '/"name": "mesa-teflon-delegate"/{n;s/.*"version": "\(.*\)".*/mesa=\1/p;}' \
    /run/npu-bsp/current/userspace/manifest.json 2>/dev/null
"""


def conditions(connection: Connection | None) -> Conditions:
    """Ask a board (or, with None, this machine); empty where it does not answer."""
    with contextlib.suppress(BspError):
        return parse_conditions(_ask(connection).text)
    return {}


def _ask(connection: Connection | None) -> Completed:
    command = ["sh", "-c", SCRIPT]
    if connection is None:
        return run(command, timeout_s=_TIMEOUT_S, check=False)
    return connection.run(command, timeout_s=_TIMEOUT_S, check=False)


def parse_conditions(text: str) -> Conditions:
    """Read what the script prints."""
    values: dict[str, list[str]] = {}
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if equals:
            values.setdefault(name, []).append(value.strip())
    measured: Conditions = {}
    if values.get("kernel"):
        measured["kernel"] = values["kernel"][0]
    if values.get("mesa"):
        measured["mesa"] = values["mesa"][0]
    if values.get("load"):
        measured["load"] = float(values["load"][0])
    build = re.search(r"\bnpu_bsp\.generation=(\w+)", " ".join(values.get("cmdline", [])))
    if build:
        measured["generation"] = build[1]
    if values.get("governor"):
        measured["governor"] = ", ".join(sorted(set(values["governor"])))
    if values.get("cpu_khz"):
        measured["cpu_mhz"] = max(int(value) for value in values["cpu_khz"]) // 1000
    if values.get("millicelsius"):
        measured["temperature_c"] = max(int(value) for value in values["millicelsius"]) / 1000
    clocks = _npu_clocks(values.get("clk", []), values.get("npu", []))
    if clocks:
        measured["npu_clocks_hz"] = clocks
    return measured


def _npu_clocks(rows: list[str], devices: list[str]) -> dict[str, int]:
    rates_hz: dict[str, int] = {}
    rate_hz = 0
    for row in rows:
        words = row.split()
        if len(words) >= 9 and words[4].isdigit():
            rate_hz = int(words[4])
        if len(words) >= 2 and words[-2] in devices and rate_hz:
            rates_hz[words[-1]] = rate_hz
    return rates_hz


def after(before: Conditions, connection: Connection | None) -> Conditions:
    """Return ``before`` with what the machine says now: the higher temperature, and the load before.

    The load afterwards is the measurement's own.
    """
    now = conditions(connection)
    merged = now.copy()
    if "load" in before:
        merged["load"] = before["load"]
    hottest = [each["temperature_c"] for each in (before, now) if "temperature_c" in each]
    if hottest:
        merged["temperature_c"] = max(hottest)
    return merged or before
