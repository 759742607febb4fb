# SPDX-License-Identifier: MIT
"""Mesa's Teflon delegate from source: built for boards, with patches that mend what it computes wrongly."""
