"""What the stand-in must have, and that its code returns what MindSpore looks into."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from mindmodel.dryrun.stubs import CREATE_OPERATOR, PROCESS_REPORT, source, wanted
from mindmodel.machine import cpp_compiler

CALLER = r"""
#include <cstring>
#include <memory>
#include <new>

namespace ge {
class Operator {
 public:
  virtual ~Operator() = default;
  std::shared_ptr<int> implementation;
};
struct OperatorFactory {
  static Operator CreateOperator(const char *name, const char *type);
};
}  // namespace ge

extern "C" long aclInit();
extern "C" int PROCESS_REPORT(int milliseconds);

int main() {
  alignas(ge::Operator) unsigned char place[sizeof(ge::Operator)];
  std::memset(place, 255, sizeof place);
  new (place) ge::Operator(ge::OperatorFactory::CreateOperator("name", "type"));
  int wrong = aclInit() != 0 || PROCESS_REPORT(100) != 0;
  for (unsigned char byte : place) wrong |= byte;
  return wrong;
}
"""


def test_wanted_is_what_is_lacking_or_looked_up_by_name(small_package):
    found = wanted(small_package)
    assert found.functions == ("aclInit", "aclnnAdd", "aclnnAddGetWorkspaceSize", "aclrtMalloc")
    assert found.libraries == ("libascendcl.so", "libhccl.so", "libopapi.so")


def test_what_the_package_brings_is_not_wanted(small_package):
    (small_package / "lib" / "libhccl.so").write_bytes(b"")
    assert wanted(small_package).libraries == ("libascendcl.so", "libopapi.so")


def test_what_is_loaded_with_the_plugin_is_looked_through_as_well(small_package, plugin_library):
    (small_package / "lib" / "libascendcl.so").write_bytes(plugin_library.replace(b"aclInit", b"aclStop"))
    assert {"aclInit", "aclStop"} <= set(wanted(small_package).functions)


@pytest.mark.parametrize("machine", ["", "aarch64"])
def test_functions_return_zero_and_an_operator_is_returned_empty(machine, tmp_path):
    tools = ("aarch64-linux-gnu-g++", "qemu-aarch64") if machine else (cpp_compiler() or "g++",)
    if not all(map(shutil.which, tools)):
        pytest.skip(f"needs {' and '.join(tools)}: apt-get install g++-aarch64-linux-gnu qemu-user, or g++")
    compiler, emulator = tools[0], tools[1:]
    (tmp_path / "standin.c").write_text(source(["aclInit", CREATE_OPERATOR]))
    (tmp_path / "caller.cc").write_text(CALLER.replace("PROCESS_REPORT", PROCESS_REPORT))
    subprocess.run([compiler, "-x", "c", "-O1", "-Wall", "-Werror", "-c", "standin.c"], cwd=tmp_path, check=True)
    command = [compiler, "-std=c++17", "-static", "caller.cc", "standin.o", "-o", "caller"]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert subprocess.run([*emulator, "./caller"], cwd=tmp_path).returncode == 0
