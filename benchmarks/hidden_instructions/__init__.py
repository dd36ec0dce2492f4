"""Hides AVX-512, AMX and AVX-VNNI from a command and all that it starts, to measure AVX2 on a newer machine."""

from __future__ import annotations

import ctypes


def hidden() -> str | None:
    """Returns what is hidden from this process, as a sentence of a result; None if nothing is."""
    try:
        told = ctypes.CDLL(None).hidden_instructions
    except AttributeError:
        return None
    told.restype = ctypes.c_char_p
    return str(told().decode())
