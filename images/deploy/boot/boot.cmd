# SPDX-License-Identifier: MIT
# The boot script, for U-Boot's hush shell; compiled to /boot.scr on the FAT boot partition.
#
# It boots the good generation. If trial.env names another one, that is booted once: the sector is
# overwritten with zeros, and read back, *before* anything of the trial is loaded. So whatever happens
# then (a file that is missing, a kernel that hangs, a power cut), the next reset ends in the good one.
#
# devtype, devnum and distro_bootpart are set by U-Boot's standard boot and name where this script lies.
# Needed of U-Boot: env import -t, test -e, load, fatwrite, booti. All are in distributions' default builds.
# A variable list after `env import` imports these and nothing else, so a corrupt file cannot set others.

setenv npu_old_args "${bootargs}"
setenv npu_part "${devtype} ${devnum}:${distro_bootpart}"
# The state is read to where the kernel goes later: memory that is free until then.
setenv npu_buffer ${kernel_addr_r}
# Boards that hand their own device tree on (QEMU) leave fdt_addr_r unset: take 4 MiB below the RAM disk
# (a DTB has 2 MiB at most).
setenv npu_own_fdt no
if test -z "${fdt_addr_r}"; then
  setenv npu_own_fdt yes
  setexpr fdt_addr_r ${ramdisk_addr_r} - 400000
fi

# --- which one is good? Two copies; a torn one lacks its last line, or that line does not match.
setenv npu_good none
setenv npu_previous none
for npu_file in good.env good-copy.env; do
  if test "${npu_good}" = none; then
    setenv npu_good_end
    if load ${npu_part} ${npu_buffer} /npu-bsp/${npu_file}; then
      env import -t ${npu_buffer} ${filesize} npu_good npu_previous npu_good_end
    fi
    if test "${npu_good_end}" != "${npu_good}.${npu_previous}"; then
      echo "npu-bsp: ${npu_file} is torn or missing"
      setenv npu_good none
      setenv npu_previous none
    fi
  fi
done

# --- is there one to try? Spend it first.
setenv npu_try none
setenv npu_trial
setenv npu_trial_end
if test -e ${npu_part} /npu-bsp/trial.env; then
  if load ${npu_part} ${npu_buffer} /npu-bsp/trial.env; then
    env import -t ${npu_buffer} ${filesize} npu_trial npu_trial_end
  fi
fi
if test -n "${npu_trial}"; then
  if test "${npu_trial}" = "${npu_trial_end}"; then setenv npu_try ${npu_trial}; fi
  # Torn or not, it is gone after this.
  setenv npu_spent no
  mw.b ${npu_buffer} 0 200
  if fatwrite ${npu_part} ${npu_buffer} /npu-bsp/trial.env 200; then
    mw.b ${npu_buffer} 1 200
    if load ${npu_part} ${npu_buffer} /npu-bsp/trial.env; then
      setenv npu_trial_end
      env import -t ${npu_buffer} ${filesize} npu_trial_end
      if test -z "${npu_trial_end}"; then setenv npu_spent yes; fi
    fi
  fi
  if test "${npu_spent}" = no; then setenv npu_try none; fi
  if test "${npu_try}" = none; then echo "npu-bsp: trial.env is torn or cannot be spent: no trial"; fi
fi

# --- boot: the trial, else the good one, else the one before it.
setenv npu_slot trial
for npu_generation in ${npu_try} ${npu_good} ${npu_previous}; do
  if test "${npu_generation}" != none; then
    echo "npu-bsp: ${npu_slot} generation ${npu_generation}"
    setenv npu_args_end
    if load ${npu_part} ${npu_buffer} /npu-bsp/${npu_generation}/args.env; then
      env import -t ${npu_buffer} ${filesize} npu_args npu_kernel npu_initrd npu_dtb npu_args_end
    fi
    if test "${npu_args_end}" = 1; then
      setenv bootargs "${npu_args} npu_bsp.slot=${npu_slot}"
      # A trial that stumbles in the kernel is to fall, not to limp on.
      if test "${npu_slot}" = trial; then setenv bootargs "${bootargs} oops=panic"; fi
      if load ${npu_part} ${kernel_addr_r} ${npu_kernel}; then
        if load ${npu_part} ${fdt_addr_r} ${npu_dtb}; then
          if load ${npu_part} ${ramdisk_addr_r} ${npu_initrd}; then
            booti ${kernel_addr_r} ${ramdisk_addr_r}:${filesize} ${fdt_addr_r}
            # Only comes back when it failed; memory may be in disorder by now.
            if test "${npu_slot}" = trial; then reset; fi
          fi
        fi
      fi
    fi
    echo "npu-bsp: generation ${npu_generation} cannot be booted"
  fi
  if test "${npu_slot}" = good; then setenv npu_slot previous; else setenv npu_slot good; fi
done
echo "npu-bsp: no generation could be booted; going on with the next boot method"

# --- a board that was taken over: what booted it before, under the names that onboard/adopt.py gave it.
setenv bootargs "${npu_old_args}"
if test "${npu_own_fdt}" = yes; then setenv fdt_addr_r; fi
for npu_folder in /extlinux /boot/extlinux; do
  if load ${npu_part} ${npu_buffer} ${npu_folder}/before-npu-bsp.conf; then
    echo "npu-bsp: falling back on ${npu_folder}/before-npu-bsp.conf"
    setenv npu_size ${filesize}
    sysboot ${npu_part} any ${scriptaddr} ${npu_folder}/before-npu-bsp.conf
    # Only comes back where U-Boot has no sysboot, or it failed: give the file its old name, and start again.
    setenv filesize 0
    load ${npu_part} ${npu_buffer} ${npu_folder}/extlinux.conf
    if test "${filesize}" != "${npu_size}"; then
      if load ${npu_part} ${npu_buffer} ${npu_folder}/before-npu-bsp.conf; then
        if fatwrite ${npu_part} ${npu_buffer} ${npu_folder}/extlinux.conf ${filesize}; then reset; fi
      fi
    fi
  fi
done
for npu_file in boot-before-npu-bsp.scr.uimg boot-before-npu-bsp.scr; do
  if test -e ${npu_part} /${npu_file}; then
    echo "npu-bsp: falling back on ${npu_file}"
    if load ${npu_part} ${scriptaddr} /${npu_file}; then source ${scriptaddr}; fi
  fi
done
