"""What MindSpore's Ascend plugin wants of CANN, read from its libraries, and C code that has it. Imports no mindspore.

While it simulates, MindSpore imitates the device itself. It insists only that CANN's libraries load and that their
functions are found: by the dynamic linker, or by name at run time.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Iterable

from mindmodel.dryrun.elf import SharedLibrary

PLUGIN = (
    "libmindspore_ascend.so.2", "libmindspore_ops_ascend.so", "libmindspore_ascend_res_manager.so",
    "libmindspore_graph_ir.so", "libd_collective.so", "libhccl_plugin.so",
)
"""What MindSpore opens for the device Ascend."""

STARTS = ("acl", "rt", "hal", "Hccl", "hccl", "Hcom", "mspti", "mstx", "Adump")
FUNCTION = re.compile(r"(acl[a-z]*|rt|hal|[Hh]ccl|Hcom|mspti|mstx|Adump)[A-Z]\w*|_ZNK?2ge\w+")
"""C functions begin with the name of an interface, C++ functions are in the namespace ge."""
LIBRARY = re.compile(r"(?:.*/)?(lib\w+\.so)")
"""CANN's libraries carry no version in their names, the system's do."""

WORKSPACE = "GetWorkspaceSize"
"""Every operator of the interface aclnn has a second function, of this ending."""

CREATE_OPERATOR = "_ZN2ge15OperatorFactory14CreateOperatorEPKcS2_"
"""ge::OperatorFactory::CreateOperator(char const*, char const*)"""

PROCESS_REPORT = "_ZN9mindspore6device6ascend27SimuFuncIaclrtProcessReportIiEET_i"
"""MindSpore's own imitation of aclrtProcessReport; the dynamic linker takes the first of a name."""

CODE = """\
static long nothing(void) { return 0; }

/* The one result that MindSpore looks into: a ge::Operator, whose virtual table it sets and whose shared_ptr it copies.
   C and C++ return an object of this size in the same way, in memory that the caller owns. */
struct operator_object { void *virtual_table, *pointer, *count; };
struct operator_object CREATE_OPERATOR(const char *name, const char *type)
{
    struct operator_object empty = {0, 0, 0};
    (void)name;
    (void)type;
    return empty;
}

/* MindSpore's own function returns at once, and two threads that ask whether a stream has something to report would
   each fill a core until the process ends. No simulated stream ever has. */
extern int poll(void *, unsigned long, int);
int PROCESS_REPORT(int milliseconds)
{
    (void)milliseconds;
    return poll(0, 0, 10);
}

"""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Names of the functions and of the libraries that CANN would bring."""

    functions: tuple[str, ...]
    libraries: tuple[str, ...]


def libraries_of(mindspore: Path) -> dict[str, Path]:
    """Every library of a MindSpore package by its name; the first of two of a name."""
    return {path.name: path for path in sorted((mindspore / "lib").rglob("*.so*"), reverse=True)}


def wanted(mindspore: Path) -> Wanted:
    """What the plugin of the package in a folder lacks.

    Raises:
        BuildError: if a library of it is damaged.
    """
    files = libraries_of(mindspore)
    loaded, outside = _loaded(files)
    texts = {name for library in PLUGIN for name in _texts(loaded[library])}
    defined = frozenset().union(*(library.defined for library in loaded.values()))
    names = texts.union(*(library.undefined for library in loaded.values())) - defined
    functions = set(filter(FUNCTION.fullmatch, names))
    operators = {name.removesuffix(WORKSPACE) for name in functions if name.startswith("aclnn")}
    functions |= operators | {f"{name}{WORKSPACE}" for name in operators}
    libraries = {found[1] for name in texts | outside if (found := LIBRARY.fullmatch(name))} - files.keys()
    return Wanted(functions=tuple(sorted(functions)), libraries=tuple(sorted(libraries)))


def _loaded(files: dict[str, Path]) -> tuple[dict[str, SharedLibrary], set[str]]:
    """The plugin with all that is loaded with it, and the names that MindSpore does not bring."""
    loaded: dict[str, SharedLibrary] = {}
    outside: set[str] = set()
    names = list(PLUGIN)
    while names:
        name = names.pop()
        if name not in files:
            outside.add(name)
        elif name not in loaded:
            loaded[name] = SharedLibrary(files[name])
            names += loaded[name].needed
    return loaded, outside


def _texts(library: SharedLibrary) -> set[str]:
    """Names of functions and libraries that are looked up at run time."""
    starts = tuple(start.encode() for start in STARTS)
    texts = (text for text in library.texts() if text.startswith(starts) or text.endswith(b".so"))
    return {text.decode("ascii", "replace") for text in texts}


def source(functions: Iterable[str]) -> str:
    """C code of a library with these functions: each returns 0, which is success or a null pointer.

    To be loaded before MindSpore, of which one function is replaced.
    """
    names = (name for name in functions if name != CREATE_OPERATOR)
    stubs = [f'long {name}(void) __attribute__((alias("nothing")));\n' for name in names]
    code = CODE.replace("CREATE_OPERATOR", CREATE_OPERATOR).replace("PROCESS_REPORT", PROCESS_REPORT)
    return code + "".join(stubs)
