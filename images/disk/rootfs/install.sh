#!/bin/sh
# SPDX-License-Identifier: MIT
# Makes a configured Debian of another architecture in the folder $1 out of the packages in $2/*.deb.
# Runs on the host, inside mmdebstrap, which has mounted /proc and /sys in $1.
#
# What can run natively does: unpacking is the host's dpkg-deb, tar and dpkg. Only the packages' own
# scripts run under qemu-user, chrooted into $1. They are what takes the time, so four of the things
# they do that a board has no use for are kept short: see "short cuts".
set -eu

root=$1
debs=$2

left_out='/usr/share/doc/* /usr/share/man/* /usr/share/locale/* /usr/share/info/* /usr/lib/udev/hwdb.d/*'
set -f
tar_options='--exclude=./dev --exclude=./proc --exclude=./sys'
# Never --force-all: it includes script-chrootless, and the scripts would run on the host.
dpkg_options='--force-depends --force-architecture --force-unsafe-io --log=/dev/null'
mkdir -p "$root/etc/dpkg/dpkg.cfg.d"
for pattern in $left_out; do
    tar_options="$tar_options --exclude=.$pattern"
    dpkg_options="$dpkg_options --path-exclude=$pattern"
    # For packages that somebody installs later.
    echo "path-exclude=$pattern" >>"$root/etc/dpkg/dpkg.cfg.d/npu-bsp"
done

# The files first: scripts need a shell, a C library and perl to run at all.
(
    set +f
    for deb in "$debs"/*.deb; do
        # shellcheck disable=SC2086 # options are words on purpose
        (
            set -f
            dpkg-deb --fsys-tarfile "$deb" |
                tar --extract --preserve-permissions --directory "$root" $tar_options
        )
    done
)

# Then dpkg's own records; --root makes it run the scripts chrooted.
mkdir -p "$root/var/lib/dpkg/info" "$root/var/lib/dpkg/updates"
: >"$root/var/lib/dpkg/status"
set +f
set -- "$debs"/*.deb
set -f
# shellcheck disable=SC2086
LC_ALL=C dpkg --root="$root" $dpkg_options --unpack "$@" >"$root/tmp/unpack.log" 2>&1 || {
    grep -A 3 '^dpkg: error' "$root/tmp/unpack.log" >&2 || tail -n 20 "$root/tmp/unpack.log" >&2
    exit 1
}
set +f

# Short cuts. SSH host keys: made for each disk, not here; an empty file keeps the script from making one.
mkdir -p "$root/etc/ssh"
for kind in rsa ecdsa ed25519; do
    : >"$root/etc/ssh/ssh_host_${kind}_key"
done
# Compiled Python: made by Python when a module is first used. The scripts run py_compile.py as a program
# and may write file names to it.
for file in "$root"/usr/lib/python3.*/py_compile.py; do
    cp -p "$file" "$file.kept"
    {
        echo 'if __name__ == "__main__":'
        echo '    import sys'
        echo '    if "-" in sys.argv: sys.stdin.read()'
        echo '    raise SystemExit(0)'
        cat "$file.kept"
    } >"$file"
done
# A RAM disk: the kernel's script makes it (-c), and initramfs-tools would make the same again at the end (-u).
for file in "$root"/usr/sbin/update-initramfs; do
    [ -e "$file" ] || continue
    cp -p "$file" "$file.kept"
    sed '1a [ "$*" = -u ] && exit' "$file.kept" >"$file"
done
# (The fourth: /usr/lib/udev/hwdb.d is left out, so that udev has no hardware database to compile.)

DEBIAN_FRONTEND=noninteractive DEBCONF_NONINTERACTIVE_SEEN=true LC_ALL=C \
    chroot "$root" dpkg --force-unsafe-io --configure --pending

for file in "$root"/usr/lib/python3.*/py_compile.py.kept "$root"/usr/sbin/update-initramfs.kept; do
    [ -e "$file" ] || continue
    mv "$file" "${file%.kept}"
done
rm -f "$root"/etc/ssh/ssh_host_* "$root/etc/hostname" "$root/etc/resolv.conf"

incomplete=$(LC_ALL=C chroot "$root" dpkg-query --show --showformat '${db:Status-Status} ${Package}\n' | grep -v '^installed ' || true)
if [ -n "$incomplete" ]; then
    echo "packages that were not configured: $incomplete" >&2
    exit 1
fi
