"""What is read of a shared library."""

from __future__ import annotations

import pytest

from mindmodel.build_cache import BuildError
from mindmodel.dryrun.elf import SharedLibrary


@pytest.fixture
def path(tmp_path, plugin_library):
    (tmp_path / "plugin.so").write_bytes(plugin_library)
    return tmp_path / "plugin.so"


def test_it_is_known_what_a_library_needs_defines_and_lacks(path):
    library = SharedLibrary(path)
    assert "libascendcl.so" in library.needed and "libc.so.6" in library.needed
    assert {"hcclOwn", "names"} <= library.defined and "aclInit" not in library.defined
    assert {"aclInit", "unrelated"} <= library.undefined and "hcclOwn" not in library.undefined


def test_what_a_system_library_brings_in_a_version_is_not_lacking(path):
    library = SharedLibrary(path)
    assert "puts" not in library.undefined | library.defined


def test_texts_are_found_whole(path):
    texts = SharedLibrary(path).texts()
    assert {b"aclrtMalloc", b"aclnnAdd failed", b"libopapi.so"} <= texts


def test_what_is_no_library_is_refused(tmp_path):
    for content in (b"", b"\x7fELF\x02\x01", b"#!/bin/sh" + bytes(100), b"\x7fELF\x01\x01" + bytes(100)):
        (tmp_path / "a.so").write_bytes(content)
        with pytest.raises(BuildError, match="a.so: not a 64-bit shared library. Install the package it belongs to"):
            SharedLibrary(tmp_path / "a.so")


def test_a_library_that_ends_too_early_is_refused(tmp_path, plugin_library):
    (tmp_path / "a.so").write_bytes(plugin_library[: len(plugin_library) // 2])
    with pytest.raises(BuildError, match="a.so: ends too early. Install the package it belongs to again"):
        SharedLibrary(tmp_path / "a.so")
