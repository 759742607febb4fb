# SPDX-License-Identifier: MIT
"""The agent that runs on a board: each file can be read, and tested, alone.

The Python modules are the board's half of a deployment (start at ``agent.py``). They run from memory on
the board's own Python, 3.9 or later, need nothing but its standard library, and import it sparingly: a
board's start-up time counts.

The folder is flat, because what is sent is one list of modules and not a tree: ``START`` in
``transfer/agent.py`` makes them one package on the board, and compiles each only when it is imported, so
that a request pays for what it uses. Read them by what they serve:

- requests: ``agent``; which deployment holds the board: ``lease``
- what is there: ``board``, ``files``, ``root_disk``, ``boot_files``
- a generation is built: ``stage``, ``entries``, ``frames``, ``patches``, ``signature``
- it is booted: ``boot_partition``, ``raw_sector``, ``script_image``, ``kexec``; ``activate`` and
  ``npu-bsp-activate.service`` put its modules and userspace in place
- it is confirmed: ``health``; ``watch-trial`` and ``npu-bsp-trial.service`` end a trial that hangs
- a board of another distribution: ``adopt``, ``kept_modules``, ``persist``
"""
