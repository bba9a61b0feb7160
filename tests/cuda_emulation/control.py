"""emu_control.h from Python: steers an emulated library and asks what it found."""

from __future__ import annotations

import ctypes
import enum
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Order(enum.IntEnum):
    ROUND_ROBIN = 0
    LAST_WARP_FIRST = 1
    RANDOM = 2
    WARP_PRIORITIES = 3


class Kind(enum.IntEnum):
    INPUT = 0
    OUTPUT = 1
    INOUT = 2


class Rounding(enum.IntEnum):
    NEAREST = 0
    TRUNCATE = 1


class Emulation:
    """One library made by build.py. Its own functions are those of ``.library``, a ctypes.CDLL."""

    def __init__(self, path: Path | str) -> None:
        self.library = ctypes.CDLL(str(path))
        for name, result, *arguments in (
            ("set_order", None, ctypes.c_int, ctypes.c_uint64),
            ("set_shared_limit", None, ctypes.c_size_t),
            ("set_mma_rounding", None, ctypes.c_int),
            ("register", None, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_int),
            ("register_part", None, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p),
            ("unregister", None, ctypes.c_void_p),
            ("mode", ctypes.c_char_p),
            ("report_count", ctypes.c_size_t),
            ("report_text", ctypes.c_char_p),
            ("reset_reports", None),
            ("sync_sites", ctypes.c_char_p),
            ("reset_sync_counts", None),
            ("disable_site", ctypes.c_int, ctypes.c_char_p),
            ("enable_all_sites", None),
            ("traffic", ctypes.c_char_p),
            ("reset_traffic", None),
            ("switches", ctypes.c_uint64),
        ):
            function = getattr(self.library, f"emu_{name}")
            function.restype = result
            function.argtypes = arguments

    def set_order(self, order: Order, seed: int = 1) -> None:
        """The order in which threads run from now on; a seed repeats it exactly."""
        self.library.emu_set_order(order, seed)

    def set_shared_limit(self, size: int) -> None:
        """Bytes of shared memory that the device gives a block."""
        self.library.emu_set_shared_limit(size)

    def set_mma_rounding(self, rounding: Rounding) -> None:
        self.library.emu_set_mma_rounding(rounding)

    @property
    def mode(self) -> str:
        return self.library.emu_mode().decode()

    def register(self, pointer: int, size: int, name: str, kind: Kind) -> None:
        """Tells the checker of ``size`` bytes that kernels may touch."""
        self.library.emu_register(pointer, size, name.encode(), kind)

    def register_part(self, pointer: int, size: int, name: str) -> None:
        """Has an array inside a registered buffer watched on its own, as long as the buffer is registered."""
        self.library.emu_register_part(pointer, size, name.encode())

    def unregister(self, pointer: int) -> None:
        self.library.emu_unregister(pointer)

    @contextmanager
    def registered(self, **buffers: tuple[Any, Kind]) -> Iterator[None]:
        """Arrays or tensors, by name, that kernels may touch inside the with block; None among them is passed over."""
        spans = [(*_span(array), name, kind) for name, (array, kind) in buffers.items() if array is not None]
        for span in spans:
            self.register(*span)
        try:
            yield
        finally:
            for span in spans:
                self.unregister(span[0])

    @property
    def report_count(self) -> int:
        return self.library.emu_report_count()

    @property
    def report_text(self) -> str:
        return self.library.emu_report_text().decode(errors="replace")

    def reset_reports(self) -> None:
        self.library.emu_reset_reports()

    def sync_sites(self) -> list[dict[str, Any]]:
        """Where threads synchronised so far: dicts of site ("kernel.cuh:12"), file, operation, count, disabled."""
        return json.loads(self.library.emu_sync_sites())

    def reset_sync_counts(self) -> None:
        self.library.emu_reset_sync_counts()

    def disable_site(self, site: str) -> bool:
        """Makes the synchronisation in that source line do nothing; False if none has run there yet."""
        return bool(self.library.emu_disable_site(site.encode()))

    def enable_all_sites(self) -> None:
        self.library.emu_enable_all_sites()

    @contextmanager
    def without(self, site: str) -> Iterator[None]:
        """A barrier mutant: inside the with block, the synchronisation in that source line does nothing."""
        self.disable_site(site)
        try:
            yield
        finally:
            self.enable_all_sites()

    def traffic(self) -> dict[str, dict[str, int]]:
        """By buffer: bytes (its size), read, written, and each byte once: read_unique, written_unique, touched."""
        return json.loads(self.library.emu_traffic())

    def reset_traffic(self) -> None:
        self.library.emu_reset_traffic()

    @property
    def switches(self) -> int:
        return self.library.emu_switches()


def _span(array: Any) -> tuple[int, int]:
    """Address and bytes of a contiguous numpy array or of a torch tensor; the whole storage of one with gaps."""
    if hasattr(array, "data_ptr"):
        if array.is_contiguous():
            return array.data_ptr(), array.numel() * array.element_size()
        return array.untyped_storage().data_ptr(), array.untyped_storage().nbytes()
    return array.ctypes.data, array.nbytes
