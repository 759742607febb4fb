#!/bin/sh
# SPDX-License-Identifier: MIT
# Runs on a board, sent by doctor: prints what there is to know about its NPU, and changes nothing.
# Needs a shell and coreutils only; facts.py reads the sections. Beforehand doctor sets:
#   symbols      kernel options to look for, as an extended regular expression
#   compatibles  what NPU nodes are compatible with, as a basic regular expression
#   payload      folder of the deployed userspace
# and defines run_python, which runs probe.py in the background of all that follows.
export PATH="$PATH:/usr/sbin:/sbin" LC_ALL=C

section() { echo "@@section $1"; }

kernel=$(uname -r)
all=$( (dmesg || journalctl --dmesg --boot --quiet --no-pager --output=short-monotonic) 2>/dev/null)
log=$(printf '%s\n' "$all" | grep -v 'ommand line:' |
    grep -i -e etnaviv -e galcore -e rknpu -e rocket -e ethosu -e cma: -e cma_alloc -e '[. ]npu' | tail -n 60)

# Linux 6.12 etnaviv_open() dereferences NULL where no core came up: say so before anyone opens the node.
# etnaviv_gpu.c prints the model before it gives a core up ("hw init failed", "Unknown GPU model").
open_node=yes
up=$(printf '%s\n' "$log" | grep -c 'model: GC[1-9a-e]')
lost=$(printf '%s\n' "$log" | grep -c -e 'hw init failed' -e 'Unknown GPU model')
[ "$lost" -gt 0 ] && [ "$up" -le "$lost" ] && open_node=no

answer=$(mktemp) || exit 1
trap 'rm -f "$answer"' EXIT
have_python=
if command -v python3 >/dev/null; then
    have_python=yes
    run_python "$open_node" >"$answer" 2>&1 &
fi

section machine
uname -m
section kernel
echo "$kernel"
section user
id -u
id -Gn
grep -q '^render:' /etc/group 2>/dev/null && echo 'has group render'
section cmdline
cat /proc/cmdline
section model
tr -d '\0' </proc/device-tree/model 2>/dev/null && echo
section compatible
tr '\0' '\n' </proc/device-tree/compatible 2>/dev/null
section fdt
if [ -r /sys/firmware/fdt ]; then
    base64 /sys/firmware/fdt
fi
section nodes
# Where the blob is root's alone: the NPU nodes' own properties, in hexadecimal.
if [ ! -r /sys/firmware/fdt ] && [ -d /proc/device-tree ]; then
    find /proc/device-tree/ -name compatible -exec grep -l "$compatibles" {} + 2>/dev/null |
        while read -r file; do
            for property in "${file%/*}"/*; do
                [ -f "$property" ] || continue
                value=$(od -An -v -tx1 "$property" | tr -d ' \n')
                echo "${property#/proc/device-tree} $value"
            done
        done
fi
section devices
# Device, node, driver, whether it waits for a supplier, power state.
for device in /sys/bus/platform/devices/*; do
    case ${device##*/} in *npu* | *galcore* | *gpu* | *vip*) ;; *) continue ;; esac
    node=$(readlink -f "$device/of_node") driver=$(readlink "$device/driver") waits= state=
    [ -r "$device/waiting_for_supplier" ] && read -r waits <"$device/waiting_for_supplier"
    [ -r "$device/power/runtime_status" ] && read -r state <"$device/power/runtime_status"
    base=/sys/firmware/devicetree/base
    echo "${device##*/} ${node#"$base"} ${driver##*/}- ${waits:-0} ${state:-unknown}"
done 2>/dev/null
section deferred
cat /sys/kernel/debug/devices_deferred 2>/dev/null
section genpd
cat /sys/kernel/debug/pm_genpd/pm_genpd_summary 2>/dev/null
section clk_summary
cat /sys/kernel/debug/clk/clk_summary 2>/dev/null
section config
{ zcat /proc/config.gz || cat "/boot/config-$kernel" || cat "/lib/modules/$kernel/config"; } 2>/dev/null |
    grep -E "^(# )?CONFIG_($symbols)[= ]"
section modules
grep -E '^(etnaviv|galcore|vipcore|rknpu|rocket|ethosu) ' /proc/modules | cut -d ' ' -f 1
for module in etnaviv galcore rknpu rocket ethosu; do # built in
    [ -d "/sys/module/$module" ] && echo "$module"
done
section module_files
grep -h -o -E '^[^:]*/(etnaviv|rocket|ethosu)\.ko[.a-z]*' "/lib/modules/$kernel/modules.dep" 2>/dev/null
grep -h -E '/(etnaviv|rocket|ethosu)\.ko' "/lib/modules/$kernel/modules.builtin" 2>/dev/null
section blacklist
# Files that do not end in .conf are not modprobe's.
drivers='(etnaviv|rocket|ethosu)'
barring="blacklist[[:space:]]+$drivers[[:space:]]*$|install[[:space:]]+$drivers[[:space:]]+(/usr)?/bin/(false|true)"
grep -s -H -E "^[[:space:]]*($barring)" /etc/modprobe.d/*.conf /run/modprobe.d/*.conf \
    /usr/local/lib/modprobe.d/*.conf /usr/lib/modprobe.d/*.conf /lib/modprobe.d/*.conf | head -n 6
section memory
grep -E '^(Cma|MemAvail)' /proc/meminfo
section log_readable
[ -n "$all" ] && echo yes
# The kernel's buffer is a ring: after a while the first lines are overwritten.
printf '%s\n' "$all" | sed -n 1p | grep -q '^\[ *[1-9]' && echo 'begins late'
section log
printf '%s\n' "$log"
section render_nodes
# Node, driver, mode, owner, group, and what this user may do with it.
for entry in /sys/class/drm/renderD* /sys/class/accel/accel*; do
    [ -e "$entry" ] || continue
    driver=$(readlink "$entry/device/driver" || readlink -f "$entry/device")
    node=/dev/dri/${entry##*/}
    case $entry in */accel/*) node=/dev/accel/${entry##*/} ;; esac
    access=
    [ -r "$node" ] && access=r
    [ -w "$node" ] && access=${access}w
    echo "$node ${driver##*/} $(stat -c '%a %U %G' "$node" 2>/dev/null || echo 'absent - -') ${access:-none}"
done
[ -c /dev/galcore ] && echo "/dev/galcore galcore $(stat -c '%a %U %G' /dev/galcore) rw"
section manifest
grep -m 1 '"python"' "$payload/manifest.json" 2>/dev/null
grep -A 1 '"name": "mesa-teflon-delegate"' "$payload/manifest.json" 2>/dev/null
section libraries
delegate=
for library in "$payload/lib/libteflon.so" /usr/lib/teflon/libteflon.so; do
    [ -f "$library" ] && echo "$library" && delegate=${delegate:-$library}
done
section elsewhere
for library in /usr/lib/libteflon.so /usr/lib64/libteflon.so /usr/lib/*/libteflon.so /usr/lib/*/teflon/libteflon.so \
    /usr/lib64/teflon/libteflon.so /usr/local/lib/libteflon.so /usr/local/lib/*/libteflon.so /opt/*/libteflon.so /opt/*/lib/libteflon.so; do
    [ -f "$library" ] && [ "$library" != /usr/lib/teflon/libteflon.so ] && echo "$library"
done
section mesa
# PACKAGE_VERSION, a string of its own in the library.
[ -n "$delegate" ] && grep -z -a -o -x -m 1 -E '[0-9]{2}\.[0-9]+\.[0-9]+[-+~.[:alnum:]]{0,24}' "$delegate" |
    tr '\0' '\n'
section delegate_drivers
# Mesa src/gallium/auxiliary/target-helpers: each driver's name is a string of its own, too.
[ -n "$delegate" ] && grep -z -a -o -x -F -e etnaviv -e rocket -e ethosu "$delegate" | tr '\0' '\n'
section vendor_libraries
for library in /usr/lib/*/ /usr/lib/ /usr/lib64/ /usr/local/lib/ /vendor/lib64/; do
    for name in rknnrt rknn_api GAL ovxlib tim-vx vx_delegate VIPlite VIPhal; do
        [ -e "${library}lib$name.so" ] && echo "${library}lib$name.so"
    done
done
for library in /usr/lib/python3*/*-packages /usr/local/lib/python3*/*-packages; do
    for name in rknnlite ksnn; do
        [ -d "$library/$name" ] && echo "$library/$name"
    done
done
section libc
# Which C library this very shell's programs have.
grep -o -E '/[^ ]*/(ld-musl-[^ ]*|libc\.musl[^ ]*|ld-linux[^ ]*|libc\.so\.6)$' /proc/self/maps 2>/dev/null | sort -u
section container
[ -e /.dockerenv ] && echo docker
[ -e /run/.containerenv ] && echo podman
[ -n "$KUBERNETES_SERVICE_HOST" ] && echo kubernetes
[ -e /.flatpak-info ] && echo flatpak
[ -n "$container" ] && echo "$container"
cat /run/systemd/container /run/host/container-manager 2>/dev/null
grep -o -m 1 -E 'docker|libpod|kubepods|containerd|lxc' /proc/1/cgroup 2>/dev/null
tr '\0' '\n' 2>/dev/null </proc/1/environ | sed -n 's/^container=//p'
section cards
# Card, driver, whether it has connectors for displays.
for entry in /sys/class/drm/card[0-9] /sys/class/drm/card[0-9][0-9]; do
    [ -e "$entry" ] || continue
    driver=$(readlink "$entry/device/driver" || readlink -f "$entry/device") display=none
    for connector in "$entry"/card*-*; do
        [ -e "$connector" ] && display=display
    done
    echo "/dev/dri/${entry##*/} ${driver##*/} $display"
done
section by_path
ls -l /dev/dri/by-path /dev/accel/by-path 2>/dev/null | grep -e '->'
section seats
grep '^E:ID_SEAT=' /run/udev/data/c226:* /dev/null 2>/dev/null
section displays
for program in /usr/lib/xorg/Xorg /usr/bin/Xorg /usr/libexec/Xorg /usr/bin/weston /usr/bin/sway /usr/bin/labwc \
    /usr/bin/wayfire /usr/bin/cage /usr/bin/gnome-shell /usr/bin/kwin_wayland; do
    [ -x "$program" ] && echo "$program"
done
section regulators
printf '%s\n' "$all" | grep -E ': disabling$' | tail -n 60
section boot_files
# Path, time of its last change, whether it is npu-bsp's.
for file in /boot/boot.scr /boot/*/boot.scr /efi/boot.scr /boot.scr \
    /boot/extlinux/extlinux.conf /boot/*/extlinux/extlinux.conf; do
    [ -f "$file" ] || continue
    ours=foreign
    grep -q -a npu_bsp "$file" 2>/dev/null && ours=ours
    echo "$file $(stat -c %Y "$file") $ours"
done
section extlinux
grep -h -i -E '^[[:space:]]*append[[:space:]]' /boot/extlinux/extlinux.conf /boot/*/extlinux/extlinux.conf 2>/dev/null
section mounts
grep -E '^/dev/[^ ]+ /(boot[^ ]*|efi)? ' /proc/mounts
section payload
[ -f "$payload/bin/runner.py" ] && echo "$payload"
section generation
readlink -f "${payload%/userspace}" 2>/dev/null
wait
section python
[ -n "$have_python" ] && cat "$answer"
section end
