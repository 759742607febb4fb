# SPDX-License-Identifier: MIT
"""The power-cut test: every state that a board's disk can be left in, checked; some of them booted.

record.py      a virtual board is deployed to while QEMU writes down each write to its disk
writelog.py    reads that record
subject.py     which board is recorded, in which layout
old_way.py     how a board boots that is not ours yet, or no more
disk_state.py  the disk as it was after some of the writes, and back again
root.py        is the root file system sound after recovery, and are generations whole in it?
boot.py        what would the boot script do?
points.py      which states there are, and the verdict on each
booted.py      really boots some of them
resume_cache.py  what was found out about a kept recording before
variants.py    deployments that are broken on purpose: the test has to catch them
harness.py     all of it, as one run
"""
