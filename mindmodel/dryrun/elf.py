"""What a shared library needs, defines and names: as much of the ELF format as that takes. Imports no mindspore.

Source: System V Application Binary Interface, "Object Files" and "Dynamic Linking", in the 64-bit little-endian form;
Linux Standard Base, "Symbol Versioning".
"""

from __future__ import annotations

from pathlib import Path
from typing import Optional

import numpy as np

from mindmodel.build_cache import BuildError

HEADER_BYTES = 64
MAGIC = b"\x7fELF\x02\x01"
SECTION = np.dtype(
    [("name", "<u4"), ("type", "<u4"), ("flags", "<u8"), ("address", "<u8"), ("offset", "<u8"), ("size", "<u8")]
    + [("link", "<u4"), ("info", "<u4"), ("align", "<u8"), ("entry_size", "<u8")]
)
SYMBOL = np.dtype(
    [("name", "<u4"), ("info", "u1"), ("other", "u1"), ("section", "<u2"), ("value", "<u8"), ("size", "<u8")]
)
DYNAMIC = np.dtype([("tag", "<i8"), ("value", "<u8")])
PROGBITS, DYNAMIC_TABLE, DYNAMIC_SYMBOLS, SYMBOL_VERSIONS = 1, 6, 11, 0x6FFFFFFF
WRITABLE, LOADED, EXECUTABLE = 1, 2, 4
NEEDED = 1
UNDEFINED = 0
LAST_WITHOUT_VERSION = 1


class SharedLibrary:
    """One shared library on disk.

    Raises:
        BuildError: if it is none, or one that ends too early.
    """

    def __init__(self, path: Path):
        self.path = path
        self._bytes = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8)
        if len(self._bytes) < HEADER_BYTES or self._bytes[: len(MAGIC)].tobytes() != MAGIC:
            raise BuildError(f"{path}: not a 64-bit shared library. Install the package it belongs to again.")
        offset, count = int(self._bytes[40:48].view("<u8")[0]), int(self._bytes[60:62].view("<u2")[0])
        self._sections = self._table(offset, count * SECTION.itemsize, SECTION)

    @property
    def needed(self) -> frozenset[str]:
        """Names of the libraries that are loaded with it."""
        section = self._section(DYNAMIC_TABLE)
        if section is None:
            return frozenset()
        entries = self._content(section, DYNAMIC)
        return self._names(section, entries["value"][entries["tag"] == NEEDED])

    @property
    def defined(self) -> frozenset[str]:
        """Names that other libraries find in it."""
        return self._symbols(False)

    @property
    def undefined(self) -> frozenset[str]:
        """Names that it must find elsewhere, and of no particular version as those of the system's libraries are."""
        return self._symbols(True)

    def texts(self) -> set[bytes]:
        """What stands between two zeros of its read-only data: all texts, and much that is none."""
        found: set[bytes] = set()
        for section in self._sections[self._sections["type"] == PROGBITS]:
            if int(section["flags"]) & (WRITABLE | LOADED | EXECUTABLE) == LOADED:
                found.update(self._content(section, np.dtype(np.uint8)).tobytes().split(b"\0"))
        return found

    def _symbols(self, undefined: bool) -> frozenset[str]:
        section, versions = self._section(DYNAMIC_SYMBOLS), self._section(SYMBOL_VERSIONS)
        if section is None:
            return frozenset()
        symbols = self._content(section, SYMBOL)
        chosen = (symbols["section"] == UNDEFINED) == undefined
        if undefined and versions is not None:
            chosen &= self._content(versions, np.dtype("<u2")) <= LAST_WITHOUT_VERSION
        return self._names(section, symbols["name"][chosen])

    def _names(self, section: np.void, offsets: np.ndarray) -> frozenset[str]:
        """Texts at these offsets of the table of names that a section is linked to."""
        names = self._content(self._sections[section["link"]], np.dtype(np.uint8)).tobytes()
        return frozenset(names[start : names.find(b"\0", start)].decode() for start in offsets.tolist())

    def _section(self, kind: int) -> Optional[np.void]:
        """The section of a kind that a library has at most once."""
        return next(iter(self._sections[self._sections["type"] == kind]), None)

    def _content(self, section: np.void, dtype: np.dtype) -> np.ndarray:
        return self._table(int(section["offset"]), int(section["size"]), dtype)

    def _table(self, offset: int, size: int, dtype: np.dtype) -> np.ndarray:
        if offset + size > len(self._bytes):
            raise BuildError(f"{self.path}: ends too early. Install the package it belongs to again.")
        return np.frombuffer(self._bytes, dtype, size // dtype.itemsize, offset)
