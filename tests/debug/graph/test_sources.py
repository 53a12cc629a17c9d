"""The readable graph of MindSpore gives each node a scope and the calls that led to it, outermost first."""

from __future__ import annotations

from importlib.metadata import distribution

from mindmodel.debug.graph.sources import Source, read_sources

FRAMEWORK = distribution("mindspore").locate_file("mindspore/ops/function.py")
NODE = """\
  %4(y) = PrimFunc_MatMul(%1, %2) {instance name: matmul}
      : (<Tensor[Float32], (2, 3)>) -> (<Tensor[Float32], (2, 3)>)
      # Fullname with scope: (Default/qkv-Linear/MatMul-op0)
      # In file /home/me/net.py:3~9, 4~20/    def construct(self, x):/
      # In file /home/me/net.py:7, 8~20/        return norm(x)/<~~This line of code can be shared by multiple nodes./
"""


def sources_of(tmp_path, text):
    path = tmp_path / "graph.ir"
    path.write_text(text)
    return read_sources(path)


def test_a_node_has_the_innermost_line(tmp_path):
    assert sources_of(tmp_path, NODE) == {"Default/qkv-Linear/MatMul-op0": Source(file="/home/me/net.py", line=7)}


def test_lines_of_mindspore_are_passed_over(tmp_path):
    found = sources_of(tmp_path, f"{NODE}      # In file {FRAMEWORK}:55, 8~20/    return prim(x)/\n")
    assert [str(source) for source in found.values()] == ["/home/me/net.py:7"]


def test_where_there_are_no_others_they_are_given(tmp_path):
    text = f"# Fullname with scope: (Default/Add-op0)\n# In file {FRAMEWORK}:55, 8~20/    return prim(x)/\n"
    assert [str(source) for source in sources_of(tmp_path, text).values()] == [f"{FRAMEWORK}:55"]


def test_a_node_without_lines_has_no_source(tmp_path):
    text = f"# Fullname with scope: (Default/Add-op0)\n{NODE}"
    assert list(sources_of(tmp_path, text)) == ["Default/qkv-Linear/MatMul-op0"]


def test_files_below_the_working_folder_are_named_from_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = sources_of(tmp_path, NODE.replace("/home/me", str(tmp_path)))
    assert [str(source) for source in found.values()] == ["net.py:7"]
