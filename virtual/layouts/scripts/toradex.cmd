# SPDX-License-Identifier: MIT
# A boot script that reads what Toradex' reads: overlays.txt, overlays/, Image.gz and ${fdtfile} of the
# FAT partition that it lies on. None of it is Toradex'.

test -n "${fdtfile}" || setenv fdtfile virtual.dtb
test -n "${fdt_addr_r}" || setenv fdt_addr_r 0x4fe00000
test -n "${overlays_file}" || setenv overlays_file overlays.txt
test -n "${overlays_prefix}" || setenv overlays_prefix overlays/
setenv boot_part 1
setenv root_part 2
setenv load_addr 0x54000000
setenv from "${devtype} ${devnum}:${boot_part}"

part uuid ${devtype} ${devnum}:${root_part} uuid
setenv rootargs "root=PARTUUID=${uuid} rw rootwait"

if load ${from} ${load_addr} ${overlays_file}; then
  env import -t ${load_addr} ${filesize}
fi

load ${from} ${load_addr} Image.gz
unzip ${load_addr} ${kernel_addr_r}
load ${from} ${fdt_addr_r} ${fdtfile}
fdt addr ${fdt_addr_r}
fdt resize 65536
for overlay_file in ${fdt_overlays}; do
  echo "Applying Overlay: ${overlay_file}"
  load ${from} ${load_addr} ${overlays_prefix}${overlay_file}
  fdt apply ${load_addr}
done

setenv bootargs "${defargs} ${rootargs} console=ttyAMA0 panic=10 ${setupargs} ${vidargs} ${tdxargs}"
echo "Bootargs: ${bootargs}"
booti ${kernel_addr_r} - ${fdt_addr_r}
