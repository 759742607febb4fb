#!/bin/sh
# SPDX-License-Identifier: MIT
# Writes an ext4 file system into an image: make_root.sh TAR EXTRA IMAGE OFFSET_BYTES SIZE_KIB WORKSPACE
# TAR is the root file system, EXTRA a folder whose files go over it and belong to root.
# Runs under fakeroot (or as root), so that owners are kept and nobody needs privileges.
set -eu
tar=$1 extra=$2 image=$3 offset=$4 size_kib=$5 workspace=$6

mkdir "$workspace/root"
tar --extract --file "$tar" --directory "$workspace/root" --numeric-owner --preserve-permissions \
    --exclude='./dev/*'
chown -R 0:0 "$extra"
cp --archive --no-target-directory "$extra" "$workspace/root"
mke2fs -q -t ext4 -F -L npu-root -m 0 -d "$workspace/root" \
    -E "offset=$offset,lazy_itable_init=1,lazy_journal_init=1" "$image" "${size_kib}k"
