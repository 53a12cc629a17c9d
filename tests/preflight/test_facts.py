"""What a node says of itself, and when that is in the way of a job."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mindmodel.machine import Memory
from mindmodel.preflight import facts
from mindmodel.preflight.report import Fact


@pytest.fixture
def with_(small_recipe, tmp_path):
    """Function: the recipe with values of sections on top, its run folder in a folder of the test's own."""

    def change(**sections):
        sections["runtime"] = {"output": str(tmp_path / "run"), **sections.get("runtime", {})}
        values = {name: replace(getattr(small_recipe, name), **changes) for name, changes in sections.items()}
        return replace(small_recipe, **values)

    return change


@pytest.fixture
def npu_smi(tmp_path, monkeypatch):
    """Function: Huawei's tool is on PATH; a shell script with the device as $5."""

    def install(script: str) -> None:
        tool = tmp_path / "bin" / "npu-smi"
        tool.parent.mkdir(exist_ok=True)
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tool.parent}:/usr/bin:/bin")

    return install


def tells(state: str) -> str:
    """What the tool prints for a device of one chip and its controller."""
    lines = "NPU ID : $5", "Chip Count : 1", "", "Chip ID : 0", f"Health : {state}", "", "Health : OK", "Chip Name : M"
    return "\n".join(f'echo "        {line}"' for line in lines)


@pytest.mark.parametrize("state", ["OK", "Warning", "Alarm", "Critical", "UNKNOWN"])
def test_the_worst_state_of_a_device_is_its_health(state, npu_smi):
    npu_smi(tells(state))
    assert facts.health(3) == state


@pytest.mark.parametrize(
    "script",
    ["echo nonsense", "exit 0", "echo 'Health : Splendid'", "echo 'Health : OK'; exit 1", "echo 'no such device'"],
)
def test_what_is_not_understood_is_unknown_and_not_healthy(script, npu_smi):
    npu_smi(script)
    assert facts.health(0) == "unknown"
    fact = facts.chips("Ascend", [0])
    assert fact.text == "0 of 1 OK" and fact.fault.startswith("not known to be healthy: 0 unknown. See npu-smi info")


def test_a_tool_that_hangs_or_is_gone_says_nothing(npu_smi, monkeypatch):
    npu_smi("exec sleep 30")
    monkeypatch.setattr(facts, "NPU_SMI_LIMIT_S", 0.2)
    assert facts.health(0) == "unknown"
    monkeypatch.setenv("PATH", "/nowhere")
    assert facts.health(0) == "unknown"
    assert facts.chips("Ascend", [0]) == Fact(text="no npu-smi")


def test_a_sick_chip_is_named(npu_smi):
    npu_smi(f'if [ "$5" = 5 ]; then {tells("Alarm")}; else {tells("OK")}; fi')
    assert facts.chips("Ascend", range(4)) == Fact(text="4 of 4 OK")
    fact = facts.chips("Ascend", range(8))
    assert fact.text == "7 of 8 OK"
    assert fact.fault == "not known to be healthy: 5 Alarm. See npu-smi info, and leave chips out with --device-ids."
    assert facts.chips("CPU", range(8)).text == "not used"


def test_devices_that_are_not_there_are_named(monkeypatch):
    monkeypatch.setattr(facts.machine, "ascend_devices", lambda: 6)
    assert facts.devices("Ascend", [0, 5]) == Fact(text="2 of 2")
    fact = facts.devices("Ascend", range(8))
    assert fact.text == "6 of 8"
    assert fact.fault == "6 Ascend devices are visible (/dev/davinci*), not 6, 7. Use other --device-ids."


def test_the_device_is_the_one_that_processes_would_run_on(with_, monkeypatch):
    monkeypatch.setattr(facts.machine, "ascend_devices", lambda: 0)
    assert facts.device_of(with_(runtime={"device": "auto"})) == "CPU"
    assert facts.device_of(with_(runtime={"device": "ascend"})) == "Ascend"
    monkeypatch.setattr(facts.machine, "ascend_devices", lambda: 8)
    assert facts.device_of(with_(runtime={"device": "auto"})) == "Ascend"
    assert facts.device_of(with_(runtime={"device": "cpu"})) == "CPU"


def test_little_disk_or_memory_is_a_fault(with_, monkeypatch):
    recipe = with_(checkpoint={"every": 1, "keep": 3})
    assert facts.disk(recipe).fault == "" and facts.memory(1).fault == ""
    monkeypatch.setattr(facts.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1 << 20}))
    monkeypatch.setattr(facts.machine, "memory", lambda: Memory(total_bytes=4 << 30, free_bytes=3 << 30))
    assert facts.disk(recipe).fault.startswith("1 MiB, and checkpoints need 1 GiB. Make room, or choose another")
    assert facts.memory(3).fault == ""
    assert facts.memory(4).fault == "3 GiB, and 4 processes need 4 GiB at the least. Close other programs."


def test_disk_for_the_checkpoints_that_a_run_already_has_is_not_asked_for_again(with_, monkeypatch):
    recipe = with_(checkpoint={"every": 1, "keep": 3}, train={"steps": 9, "tokens_per_step": 8})
    monkeypatch.setattr(facts, "MIN_DISK_BYTES", 0)
    need = facts.estimate(recipe, 300)
    free = need.disk_bytes - need.checkpoint_bytes
    monkeypatch.setattr(facts.shutil, "disk_usage", lambda path: type("Usage", (), {"free": free}))
    assert facts.disk(recipe).fault
    saved = Path(recipe.output) / "checkpoints" / "step_1"
    saved.mkdir(parents=True)
    (saved / "weights.safetensors").write_bytes(bytes(need.checkpoint_bytes))
    assert facts.disk(recipe).fault == ""


NO_COMPILER = "runtime.cpu_kernels is native, and there is no C++ compiler. Use apt-get install g++, or auto."


@pytest.mark.parametrize("asked, compiler, fact", [
    ("auto", "/usr/bin/g++", Fact(text="native")),
    ("auto", None, Fact(text="graph")),
    ("graph", "/usr/bin/g++", Fact(text="graph")),
    ("native", None, Fact(text="graph", fault=NO_COMPILER)),
])
def test_the_kernels_are_those_that_can_be_had(asked, compiler, fact, with_, monkeypatch):
    monkeypatch.setattr(facts.machine, "cpp_compiler", lambda: compiler)
    recipe = with_(runtime={"cpu_kernels": asked})
    assert facts.kernels(recipe, "CPU") == fact
    assert facts.kernels(recipe, "Ascend").text == "Ascend"


def test_cann_is_needed_on_ascend_only(tmp_path, monkeypatch):
    monkeypatch.setattr(facts, "real_cann", lambda: None)
    assert facts.toolkit("CPU") == Fact(text="none")
    assert facts.toolkit("Ascend").fault.startswith("there is no CANN. `mindmodel doctor` says")
    (tmp_path / "compiler").mkdir()
    (tmp_path / "compiler" / "version.info").write_text("Version=8.1.RC1\n")
    monkeypatch.setattr(facts, "real_cann", lambda: tmp_path)
    assert facts.toolkit("CPU") == Fact(text="8.1.RC1")
    assert facts.toolkit("Ascend").fault.startswith("MindSpore 2.9.0 takes CANN 8.2, 8.3, 8.5 or 9.0.")


def test_a_package_that_is_missing_is_a_fault():
    assert facts.package("mindspore").text.startswith("2.")
    assert facts.package("no-such-package").fault.startswith("no-such-package is not installed. `mindmodel doctor`")


def test_the_code_is_told_by_content(tmp_path, monkeypatch):
    monkeypatch.setattr(facts.mindmodel, "__file__", str(tmp_path / "__init__.py"))
    (tmp_path / "a.py").write_text("one")
    (tmp_path / "a.pyc").write_text("compiled")
    before = facts.code()
    (tmp_path / "a.pyc").write_text("compiled anew")
    assert facts.code() == before
    (tmp_path / "a.py").write_text("two")
    assert facts.code() != before


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    (folder / "tokenizer").mkdir(parents=True)
    for name in ("train.bin", "train.idx", "tokenizer/tokenizer.json", "notes.txt"):
        (folder / name).write_text("some")
    return folder


def test_data_are_told_by_names_and_sizes(with_, corpus):
    shards = with_(data={"source": None, "path": str(corpus)})
    texts = with_(data={"source": (str(corpus), "stdlib")})
    before = [facts.data(recipe) for recipe in (shards, texts)]
    assert [fact.fault for fact in before] == ["", ""] and before[0] != before[1]
    (corpus / "train.bin").write_text("more")
    assert facts.data(shards) == before[0]
    (corpus / "train.bin").write_text("longer")
    (corpus / "notes.txt").write_text("longer")
    assert facts.data(shards) != before[0] and facts.data(texts) != before[1]


def test_data_or_weights_that_are_not_visible_are_a_fault(with_, tmp_path):
    missing = str(tmp_path / "gone")
    told = f"{missing}: there is no such file or folder."
    for recipe in (with_(data={"source": (missing,)}), with_(data={"source": None, "path": missing})):
        fact = facts.data(recipe)
        assert fact.text == "not visible" and fact.fault.startswith(told)
    assert facts.data(with_(data={"source": ("stdlib",), "tokenizer": missing})).fault.startswith(told)
    assert facts.weights(with_(train={"init_from": missing})).fault.startswith(told)
    assert facts.weights(with_()) == Fact(text="not set")


def test_a_corpus_that_the_run_has_made_stands_for_its_source(with_, tmp_path):
    recipe = with_(data={"source": (str(tmp_path / "gone"),)})
    (tmp_path / "run" / "data").mkdir(parents=True)
    (tmp_path / "run" / "data" / "train.bin").write_text("tokens")
    assert facts.data(recipe).fault == ""


def test_weights_are_told_by_names_and_sizes(with_, corpus):
    recipe = with_(train={"init_from": str(corpus)})
    before = facts.weights(recipe)
    (corpus / "train.bin").write_text("longer")
    assert before.fault == "" and facts.weights(recipe) != before


def test_all_facts_of_this_machine_fit_a_table(with_):
    told = facts.gather(with_(), [0, 1])
    assert all(len(fact.text) <= 20 and "\n" not in fact.fault for fact in told.values())
    assert told["devices"].text.startswith("2 on ")
