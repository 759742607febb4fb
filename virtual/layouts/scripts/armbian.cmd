# SPDX-License-Identifier: MIT
# A boot script that reads what Armbian's reads, and does it in the same order; none of it is Armbian's.
#
# devtype, devnum and prefix are U-Boot's (its standard boot sets them). Read: armbianEnv.txt, dtb/,
# overlay-user/, fixup.scr; Armbian's own comes with its package linux-u-boot and is not touched by updates
# of the kernel.

setenv load_addr 0x54000000
setenv rootdev /dev/vda1
setenv rootfstype ext4
setenv console both
setenv verbosity 1
test -n "${fdtfile}" || setenv fdtfile qemu/virtual.dtb
test -n "${fdt_addr_r}" || setenv fdt_addr_r 0x4fe00000
test -n "${prefix}" || setenv prefix /boot/
test -n "${distro_bootpart}" || setenv distro_bootpart 1
setenv part "${devtype} ${devnum}:${distro_bootpart}"

if test -e ${part} ${prefix}armbianEnv.txt; then
  load ${part} ${load_addr} ${prefix}armbianEnv.txt
  env import -t ${load_addr} ${filesize}
fi

setenv consoleargs "console=ttyAMA0"
setenv bootargs "root=${rootdev} rootwait rootfstype=${rootfstype} ${consoleargs} loglevel=${verbosity} ubootpart=${partuuid} usb-storage.quirks=${usbstoragequirks} ${extraargs} ${extraboardargs}"

load ${part} ${kernel_addr_r} ${prefix}Image
load ${part} ${ramdisk_addr_r} ${prefix}uInitrd
load ${part} ${fdt_addr_r} ${prefix}dtb/${fdtfile}
fdt addr ${fdt_addr_r}
fdt resize 65536

setenv overlay_error false
for overlay_file in ${overlays}; do
  if load ${part} ${load_addr} ${prefix}dtb/qemu/overlay/${overlay_prefix}-${overlay_file}.dtbo; then
    echo "Applying kernel provided DT overlay ${overlay_prefix}-${overlay_file}.dtbo"
    fdt apply ${load_addr} || setenv overlay_error true
  fi
done
for overlay_file in ${user_overlays}; do
  if load ${part} ${load_addr} ${prefix}overlay-user/${overlay_file}.dtbo; then
    echo "Applying user provided DT overlay ${overlay_file}.dtbo"
    fdt apply ${load_addr} || setenv overlay_error true
  fi
done
if test "${overlay_error}" = "true"; then
  echo "Error applying DT overlays, restoring original DT"
  load ${part} ${fdt_addr_r} ${prefix}dtb/${fdtfile}
else
  if test -e ${part} ${prefix}fixup.scr; then
    load ${part} ${load_addr} ${prefix}fixup.scr
    echo "Applying user provided fixup script (fixup.scr)"
    source ${load_addr}
  fi
fi

booti ${kernel_addr_r} ${ramdisk_addr_r} ${fdt_addr_r}
