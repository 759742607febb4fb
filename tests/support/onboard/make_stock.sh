#!/bin/sh
# SPDX-License-Identifier: MIT
# Makes a virtual board of ours one as somebody else's image is: kernel and RAM disk on the FAT partition, without
# a release in their names, modules in /lib/modules, and a boot script of its own ($1: a compiled one). Nothing
# of npu-bsp is left. Takes effect at the next boot.
set -eu
fat=/boot/firmware
release=$(uname -r)
generation=$(basename "$(readlink /run/npu-bsp/current)")
while IFS='=' read -r name value; do
    case $name in
        npu_kernel) gzip -c "$fat$value" >/boot/Image.gz && cp "$fat$value" "$fat/vmlinuz" ;;
        npu_initrd) cp "$fat$value" "$fat/initrd.img" ;;
        npu_dtb) cp "$fat$value" "$fat/board.dtb" ;;
    esac
done <"$fat/npu-bsp/$generation/args.env"
umount -l "/lib/modules/$release"
cp -al "/var/lib/npu-bsp/generations/$generation/modules/$release/." "/lib/modules/$release/"
rm -rf "$fat/npu-bsp" /var/lib/npu-bsp /usr/local/lib/npu-bsp /etc/npu-bsp
find /etc/systemd/system -name 'npu-bsp-*' -exec rm {} +
cp "$1" "$fat/boot.scr"
echo "of no kernel" >/boot/initrd-other # only the size that U-Boot handed over tells them apart
sync
