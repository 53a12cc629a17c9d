"""Shared by the tests of dry runs: the stand-in for CANN, and a small package that looks like MindSpore's."""

from __future__ import annotations

import subprocess

import pytest

from mindmodel.dryrun.stubs import PLUGIN
from mindmodel.machine import cpp_compiler

CODE = r"""
#include <stdio.h>
extern int aclInit(const char *);
extern int unrelated(void);
const char *names[] = {"aclnnAdd", "aclrtMalloc", "aclnnAdd failed",
                       "libopapi.so", "/lib64/libhccl.so", "libsystem.so.1"};
int hcclOwn(void) { return puts(names[0]) + aclInit(names[1]) + unrelated(); }
"""


@pytest.fixture(scope="session")
def standin(cache_of_the_tests):
    """Folder of the stand-in for CANN, built for this session."""
    from mindmodel.dryrun.standin import find_or_build

    if cpp_compiler() is None:
        pytest.skip("the stand-in for CANN needs a compiler: apt-get install g++")
    return find_or_build()


@pytest.fixture(scope="session")
def plugin_library(tmp_path_factory):
    """A library that lacks a function of CANN, needs a library of it, and names others."""
    compiler, folder = cpp_compiler(), tmp_path_factory.mktemp("plugin")
    if compiler is None:
        pytest.skip("needs a compiler: apt-get install g++")
    command = [compiler, "-x", "c", "-", "-shared", "-fPIC"]
    subprocess.run([*command, "-o", folder / "libascendcl.so"], input="int other;", text=True, check=True)
    linked = ["-Wl,--no-as-needed", f"-L{folder}", "-lascendcl", "-lc"]
    subprocess.run([*command, *linked, "-o", folder / "plugin.so"], input=CODE, text=True, check=True)
    return (folder / "plugin.so").read_bytes()


@pytest.fixture
def package(tmp_path):
    """A folder as MindSpore's, with empty files for the plugin's libraries."""
    folder = tmp_path / "site-packages" / "mindspore"
    (folder / "lib" / "plugin").mkdir(parents=True)
    (folder / "version.py").write_text("__version__ = '2.9.0'\n")
    for name in PLUGIN:
        (folder / "lib" / "plugin" / name).write_bytes(b"")
    return folder


@pytest.fixture
def small_package(package, plugin_library):
    """The same with libraries that can be read."""
    for name in PLUGIN:
        (package / "lib" / "plugin" / name).write_bytes(plugin_library)
    return package
