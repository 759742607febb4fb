# SPDX-License-Identifier: MIT
# npu-bsp boot script 2, for U-Boot's hush shell; compiled to boot.scr on the partition that U-Boot scans.
#
# It boots the good generation. If trial.env names another one, that is booted once: the sector is
# overwritten with zeros, and read back, *before* anything of the trial is loaded. So whatever happens
# then (a file that is missing, a kernel that hangs, a power cut), the next reset ends in the good one.
#
# On FAT that is done by name. On ext4, which few U-Boots can write to, trial.env says itself which sector of
# the disk it is; the sector is only written to if it holds what was read by name. A file that was moved or
# copied since is no trial, and nobody else's block is touched.
#
# devtype, devnum and distro_bootpart are set by U-Boot's standard boot and name where this script lies.
# Needed of U-Boot: load, source, itest, mw, booti: what every board in bsp/uboots has; fatwrite, or cmp and
# the device's read and write. No `env import` and no `setexpr`: the state and the arguments are script images
# themselves, whose checksum says whether they are whole; `source` runs none that is torn.
#
# What is found missing of that is collected in npu_lacks (a,b), and handed to what boots next, as
# npu_bsp.lacks=a,b on its command line; why a trial was not taken, as npu_bsp.trial=torn, moved, unloadable or unstarted.
# Where there is nothing to say, nothing is added. bsp/boot_survey/told.py says what each word means. A
# trial.env that sets npu_probe instead of npu_trial asks just that: it is spent, then the board boots as it
# did before.
#
# Where things are loaded is the SoC's map (its file in bsp/socs), not the board's variables: those are
# missing on some boards, and leave no room for the kernel on others. Empty: the board's own are taken.
# npu_root is the folder of the partition that all of this lies in: none, or /boot.
# @ADDRESSES@

setenv npu_old_args "${bootargs}"
setenv npu_lacks
setenv npu_comma
setenv npu_why
if test -z "${devtype}"; then
  # Not run by the standard boot: NXP's commands name the place by these.
  if test -n "${mmcdev}"; then
    setenv devtype mmc
    setenv devnum ${mmcdev}
    setenv distro_bootpart ${mmcpart}
  fi
fi
if test -z "${devtype}"; then
  setenv npu_lacks "devtype"; setenv npu_comma ,
fi
if test -z "${devnum}"; then
  setenv npu_lacks "${npu_lacks}${npu_comma}devnum"; setenv npu_comma ,
fi
setenv npu_part "${devtype} ${devnum}:${distro_bootpart}"
# `bootflow scan` of before 2023.04 does not say which partition: the one that is marked, else the first.
if test -z "${distro_bootpart}"; then setenv npu_part "${devtype} ${devnum}:auto"; fi
if test -z "${npu_at_kernel}"; then
  setenv npu_at_kernel ${kernel_addr_r}
  setenv npu_at_dtb ${fdt_addr_r}
  setenv npu_at_initrd ${ramdisk_addr_r}
  if test -z "${npu_at_kernel}"; then
    setenv npu_lacks "${npu_lacks}${npu_comma}kernel_addr_r"; setenv npu_comma ,
  fi
  if test -z "${npu_at_dtb}"; then
    setenv npu_lacks "${npu_lacks}${npu_comma}fdt_addr_r"; setenv npu_comma ,
  fi
fi
# The state is read to where the kernel goes later: memory that is free until then.
setenv npu_buffer ${npu_at_kernel}
if test -z "${npu_buffer}"; then setenv npu_buffer ${scriptaddr}; fi
if test -z "${npu_buffer}"; then setenv npu_buffer ${loadaddr}; fi

# --- can it do what is needed? Each command, where it succeeds if it is there.
if itest 1 == 1; then true; else
  setenv npu_lacks "${npu_lacks}${npu_comma}itest"; setenv npu_comma ,
fi
if test -n "${npu_buffer}"; then
  if mw.b ${npu_buffer} 0 1; then true; else
    setenv npu_lacks "${npu_lacks}${npu_comma}mw"; setenv npu_comma ,
  fi
fi

# --- which one is good? Two copies; of a torn one the checksum is wrong.
setenv npu_good none
setenv npu_previous none
for npu_file in good.env good-copy.env; do
  if test "${npu_good}" = none; then
    if load ${npu_part} ${npu_buffer} ${npu_root}/npu-bsp/${npu_file}; then source ${npu_buffer}; fi
    if test "${npu_good}" = none; then echo "npu-bsp: ${npu_file} is torn or missing"; fi
  fi
done

if test "${npu_good}" = none; then
  # This script is a file that must be there: if its place and one in memory are known.
  if test -n "${devtype}" && test -n "${devnum}" && test -n "${npu_buffer}"; then
    if load ${npu_part} ${npu_buffer} ${npu_root}/boot.scr; then true; else
      setenv npu_lacks "${npu_lacks}${npu_comma}load"; setenv npu_comma ,
    fi
  fi
fi

# --- is there one to try? Spend it first.
setenv npu_try none
setenv npu_trial
setenv npu_probe
setenv npu_sector
if load ${npu_part} ${npu_buffer} ${npu_root}/npu-bsp/trial.env; then
  if itest.l *${npu_buffer} != 0; then
    source ${npu_buffer}
    if test -z "${npu_trial}${npu_probe}"; then setenv npu_why torn; fi
    # Torn or not, it is gone after this.
    setenv npu_spent no
    if test -n "${npu_sector}"; then
      ${devtype} dev ${devnum}
      mw.b ${npu_at_dtb} 1 200
      if ${devtype} read ${npu_at_dtb} ${npu_sector} 1; then
        if cmp.b ${npu_buffer} ${npu_at_dtb} 200; then
          mw.b ${npu_buffer} 0 200
          if ${devtype} write ${npu_buffer} ${npu_sector} 1; then
            setenv npu_spent yes
          else
            setenv npu_lacks "${npu_lacks}${npu_comma}${devtype}-write"; setenv npu_comma ,
          fi
        else
          if cmp.b ${npu_buffer} ${npu_buffer} 1; then
            echo "npu-bsp: trial.env is not in the sector that it names: it was moved, and is left alone"
            setenv npu_why moved
          else
            setenv npu_lacks "${npu_lacks}${npu_comma}cmp"; setenv npu_comma ,
          fi
        fi
      else
        setenv npu_lacks "${npu_lacks}${npu_comma}${devtype}-read"; setenv npu_comma ,
      fi
    else
      mw.b ${npu_buffer} 0 200
      if fatwrite ${npu_part} ${npu_buffer} ${npu_root}/npu-bsp/trial.env 200; then
        setenv npu_spent yes
      else
        # A torn one does not say in which sector of an ext4 it is: nothing lacks then.
        if test -z "${npu_why}"; then
          setenv npu_lacks "${npu_lacks}${npu_comma}fatwrite"; setenv npu_comma ,
        fi
      fi
    fi
    if test "${npu_spent}" = yes; then
      mw.b ${npu_buffer} 1 200
      setenv npu_spent no
      if load ${npu_part} ${npu_buffer} ${npu_root}/npu-bsp/trial.env; then
        if itest.l *${npu_buffer} == 0; then
          setenv npu_spent yes
          if test -n "${npu_trial}"; then setenv npu_try ${npu_trial}; fi
        fi
      fi
      if test "${npu_spent}" = no && test -z "${npu_lacks}"; then
        # It wrote elsewhere: U-Boots of before 2018.11 write to FAT in the root folder only.
        if test -n "${npu_sector}"; then
          setenv npu_lacks "${npu_lacks}${npu_comma}${devtype}-write"; setenv npu_comma ,
        else
          setenv npu_lacks "${npu_lacks}${npu_comma}fatwrite"; setenv npu_comma ,
        fi
      fi
    fi
    if test "${npu_try}" = none; then
      if test -n "${npu_probe}"; then
        echo "npu-bsp: asked what this U-Boot can do: nothing is tried"
      else
        echo "npu-bsp: trial.env is torn or cannot be spent: no trial"
      fi
    fi
  fi
fi

# --- boot: the trial, else the good one, else the one before it.
setenv npu_slot trial
for npu_generation in ${npu_try} ${npu_good} ${npu_previous}; do
  if test "${npu_generation}" != none; then
    echo "npu-bsp: ${npu_slot} generation ${npu_generation}"
    setenv npu_kernel
    setenv npu_initrd
    if load ${npu_part} ${npu_buffer} ${npu_root}/npu-bsp/${npu_generation}/args.env; then source ${npu_buffer}; fi
    if test -n "${npu_kernel}"; then
      if test -n "${npu_initrd}"; then
        if test -z "${npu_at_initrd}"; then
          setenv npu_lacks "${npu_lacks}${npu_comma}ramdisk_addr_r"; setenv npu_comma ,
        fi
      fi
      setenv bootargs "${npu_args} npu_bsp.slot=${npu_slot}"
      if test -n "${npu_lacks}"; then setenv bootargs "${bootargs} npu_bsp.lacks=${npu_lacks}"; fi
      if test -n "${npu_why}"; then setenv bootargs "${bootargs} npu_bsp.trial=${npu_why}"; fi
      # A trial that stumbles in the kernel is to fall, not to limp on.
      if test "${npu_slot}" = trial; then setenv bootargs "${bootargs} oops=panic"; fi
      if load ${npu_part} ${npu_at_kernel} ${npu_root}${npu_kernel}; then
        if load ${npu_part} ${npu_at_dtb} ${npu_root}${npu_dtb}; then
          setenv npu_ready yes
          setenv npu_disk -
          if test -n "${npu_initrd}"; then
            setenv npu_ready no
            if load ${npu_part} ${npu_at_initrd} ${npu_root}${npu_initrd}; then
              setenv npu_ready yes
              setenv npu_disk ${npu_at_initrd}:${filesize}
            fi
          fi
          if test "${npu_ready}" = yes; then
            setenv npu_old_fdtaddr ${fdtaddr}
            setenv fdtaddr
            booti ${npu_at_kernel} ${npu_disk} ${npu_at_dtb}
            # Only comes back when it failed. It sets fdtaddr before it changes anything but the kernel's memory;
            # memory may be in disorder then. If not, it is missing or does not take this kernel.
            if test "${npu_slot}" = trial; then
              if test -n "${fdtaddr}"; then reset; fi
              setenv npu_why unstarted
            fi
            setenv fdtaddr ${npu_old_fdtaddr}
          fi
        fi
      fi
    fi
    echo "npu-bsp: generation ${npu_generation} cannot be booted"
    if test "${npu_slot}" = trial; then
      if test -z "${npu_why}"; then setenv npu_why unloadable; fi
    fi
  fi
  if test "${npu_slot}" = good; then setenv npu_slot previous; else setenv npu_slot good; fi
done
echo "npu-bsp: no generation could be booted; going on with the next boot method"

# --- a board that was taken over: what booted it before, under the names that onboard/adopt.py gave it.
setenv bootargs "${npu_old_args}"
setenv npu_told
if test -n "${npu_lacks}"; then setenv npu_told " npu_bsp.lacks=${npu_lacks}"; fi
if test -n "${npu_why}"; then setenv npu_told "${npu_told} npu_bsp.trial=${npu_why}"; fi
if test -n "${npu_told}"; then
  echo "npu-bsp: told to what boots next:${npu_told}"
  setenv bootargs "${npu_old_args}${npu_told}"
  # Scripts that begin bootargs anew take these in: Armbian's and Toradex'.
  setenv extraboardargs "${extraboardargs}${npu_told}"
  setenv tdxargs "${tdxargs}${npu_told}"
  # NXP's commands begin bootargs anew, and take in the root.
  if test -n "${mmcroot}"; then setenv mmcroot "${mmcroot}${npu_told}"; fi
fi
for npu_folder in /extlinux /boot/extlinux; do
  if load ${npu_part} ${npu_buffer} ${npu_folder}/before-npu-bsp.conf; then
    echo "npu-bsp: falling back on ${npu_folder}/before-npu-bsp.conf"
    setenv npu_size ${filesize}
    setenv npu_conf ${npu_folder}/before-npu-bsp.conf
    if test -n "${npu_told}"; then
      # The same, with ${npu_told} in its append lines.
      if test -e ${npu_part} ${npu_folder}/told-npu-bsp.conf; then
        setenv npu_conf ${npu_folder}/told-npu-bsp.conf
      fi
    fi
    sysboot ${npu_part} any ${npu_buffer} ${npu_conf}
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
  if test -e ${npu_part} ${npu_root}/${npu_file}; then
    echo "npu-bsp: falling back on ${npu_file}"
    # Where it expects to lie, if the board says where; else anywhere.
    setenv npu_at_script ${npu_buffer}
    if test -n "${scriptaddr}"; then setenv npu_at_script ${scriptaddr}; fi
    if load ${npu_part} ${npu_at_script} ${npu_root}/${npu_file}; then source ${npu_at_script}; fi
  fi
done
# NXP's commands run a boot.scr in place of Image, not before it: where there is one, they load nothing else.
if test -n "${loadimage}" && test -n "${mmcboot}"; then
  echo "npu-bsp: going on with the commands that the board has for itself"
  if run loadimage; then run mmcboot; fi
fi
