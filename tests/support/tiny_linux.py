# SPDX-License-Identifier: MIT
"""A kernel tree of a dozen files: real Kconfig (kconfiglib's tools), real make, real compiler.

It has what build-kernel relies on: ``make O=``, ``allnoconfig`` with KCONFIG_ALLCONFIG,
``modules_install``, ``.NAME.cmd`` files, ``LOCALVERSION``. It boots nowhere.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

KCONFIG = """\
mainmenu "Tiny"

config ARM64
	def_bool y

config MODULES
	bool "Modules"
	option modules

config BLOCK
	bool "Block layer"

config BLK_DEV
	bool "Block devices"
	depends on BLOCK

config VIRTIO_BLK
	tristate "Virtio disk"
	depends on BLK_DEV

config DRM
	tristate "Graphics"

config DRM_ETNAVIV
	tristate "Etnaviv"
	depends on DRM
	select CRC32
	select DRM_SCHED

config CRC32
	bool "Checksums"

config NR_CPUS
	int "Cores"
	range 2 64
	default 4

config LOAD
	hex "Address"
	default 0x10

config NAME
	string "Name"

choice
	prompt "Preemption"
	default PREEMPT_NONE

config PREEMPT_NONE
	bool "None"

config PREEMPT_VOLUNTARY
	bool "Voluntary"

config PREEMPT
	bool "Full"

endchoice

config IKCONFIG
	tristate "Configuration in the kernel"

config IKCONFIG_PROC
	bool "Readable in /proc"
	depends on IKCONFIG

config STMMAC
	tristate "Ethernet"

config STMMAC_MESON
	tristate "Glue"
	depends on STMMAC

config EXPERT
	bool "Expert"

config FUTEX
	bool "Futex" if EXPERT
	default y

config HID
	bool "Input devices"
	default y

config HID_GENERIC
	bool "Generic driver"
	depends on HID

config GCC_VERSION
	int
	default $(shell,echo 120200)

config CC_HAS_KASAN
	def_bool $(shell,echo n)

config KASAN
	bool "Checks"
	depends on CC_HAS_KASAN

config DRM_SCHED
	tristate

config HAVE_BLOCK
	def_bool y if BLOCK

config NOTHING_SETS
	bool

"""

MAKEFILE = """\
VERSION = 6
PATCHLEVEL = 12
SUBLEVEL = 7
release = $(VERSION).$(PATCHLEVEL).$(SUBLEVEL)$(LOCALVERSION)
conf = cd $(O) && srctree=$(CURDIR) KCONFIG_CONFIG=$(O)/.config @PYTHON@ -m
mkdir = mkdir -p $(@D)

allnoconfig alldefconfig olddefconfig:
	@$(conf) $@ $(CURDIR)/Kconfig >/dev/null

$(O)/%.o: $(CURDIR)/%.c
	@$(mkdir); echo "  CC      $*.o"; $(CROSS_COMPILE)gcc -c -o $@ $<
	@echo 'cmd' > $(@D)/.$(@F).cmd

$(O)/arch/arm64/boot/Image: $(O)/kernel/main.o
	@$(mkdir); echo "  OBJCOPY $@"; cp $< $@

$(O)/drivers/etnaviv.ko: $(O)/drivers/etnaviv.o
	@echo "  LD [M]  drivers/etnaviv.ko"; cp $< $@; echo cmd > $(O)/drivers/.etnaviv.ko.cmd

release-file:
	@mkdir -p $(O)/include/config; echo $(release) > $(O)/include/config/kernel.release
	@test -e $(O)/System.map || echo "0 T start" > $(O)/System.map

Image: release-file $(O)/arch/arm64/boot/Image

modules: $(O)/drivers/etnaviv.ko
	@test -e $(O)/modules.order || echo drivers/etnaviv.o > $(O)/modules.order
	@test -e $(O)/modules.builtin || : > $(O)/modules.builtin

dtbs:
	@mkdir -p $(O)/arch/arm64/boot/dts

modules_install:
	@d=$(INSTALL_MOD_PATH)/lib/modules/$(release); mkdir -p $$d/drivers; \\
	cp $(O)/drivers/etnaviv.ko $$d/drivers/; cp $(O)/modules.order $(O)/modules.builtin $$d/
"""

FRAGMENT = """\
# Modules
CONFIG_MODULES=y

# The disk
CONFIG_BLOCK=y
CONFIG_BLK_DEV=y
CONFIG_VIRTIO_BLK=y

# The NPU
CONFIG_DRM=m
CONFIG_DRM_ETNAVIV=m
CONFIG_NR_CPUS=8

# The network
CONFIG_STMMAC=y
CONFIG_STMMAC_MESON=y

# Prefer: as distributions have it
CONFIG_PREEMPT_VOLUNTARY=y
CONFIG_IKCONFIG=y
CONFIG_IKCONFIG_PROC=y
"""


def make_tree(folder: Path) -> Path:
    """Write the tree."""
    files = {
        "Makefile": MAKEFILE.replace("@PYTHON@", shlex.quote(sys.executable)),
        "Kconfig": KCONFIG,
        "kernel/main.c": "int main(void) { return 0; }\n",
        "drivers/etnaviv.c": "int etnaviv;\nint rate = 24000000;\nint one;\nint two;\nint last;\n",
        "drivers/Makefile": "obj-$(CONFIG_DRM_ETNAVIV) += etnaviv.o\n",
        "kernel/Makefile": "obj-y += main.o\n",
        "scripts/min-tool-version.sh": '[ "$1" = gcc ] && echo 5.1.0 || echo 13.0.1\n',
        "arch/arm64/Makefile": "",
        "arch/arm64/boot/dts/Makefile": "",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder
