"""The command line and the environment that a recipe's mesh leads to."""

from __future__ import annotations

import dataclasses
import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mindmodel.errors import LaunchError, LayoutError
from mindmodel.parallel import launch
from mindmodel.parallel.launch import parse_device_ids, plan_launch, refuse_layout_without_graph
from mindmodel.parallel.mesh import mesh_of
from mindmodel.parallel.nodes import Nodes
from mindmodel.recipe.load import recipe_from_dict
from mindmodel.recipe.rules import with_defaults

ONE_NODE = Nodes()


def recipe(device="cpu", **parallel):
    return with_defaults(recipe_from_dict({
        "name": "small",
        "model": {"hidden_size": 64, "num_layers": 4, "num_heads": 8, "ffn_size": 128, "vocab_size": 512},
        "data": {"source": "stdlib", "seq_len": 32},
        "parallel": parallel,
        "train": {"steps": 10, "tokens_per_step": 32 * 64},
        "runtime": {"device": device, "output": "runs/here"},
    }, "test"))


def options(planned) -> dict[str, str]:
    """msrun's."""
    return dict(word[2:].split("=", 1) for word in planned.command if word.startswith("--"))


@pytest.fixture
def two_nodes():
    """The second of two, which does not have to listen."""
    return Nodes(count=2, rank=1, master="127.0.0.1", port=8118)


@pytest.fixture(autouse=True)
def limits_of_nobody(monkeypatch):
    for name in ("HCCL_CONNECT_TIMEOUT", "HCCL_EXEC_TIMEOUT", "HCCL_BUFFSIZE", launch.VISIBLE_DEVICES):
        monkeypatch.delenv(name, raising=False)


def test_msrun_starts_the_same_training_as_many_times_as_the_mesh_has_ranks():
    planned = plan_launch(recipe(dp=2), ONE_NODE, ["r.yaml", "train.steps=5"], timeout_s=90)
    assert planned.workers == 2 and list(planned.ranks) == [0, 1]
    assert planned.command[:2] == (sys.executable, str(Path(sys.executable).with_name("msrun")))
    assert shlex.join(planned.command).endswith("python -m mindmodel train r.yaml train.steps=5")
    assert options(planned) == {
        "worker_num": "2", "local_worker_num": "2", "master_addr": "127.0.0.1", "master_port": str(planned.nodes.port),
        "node_rank": "0", "log_dir": "runs/here/logs", "join": "False", "cluster_time_out": "90",
    }


def test_msrun_finds_this_interpreter():
    first = plan_launch(recipe(dp=2), ONE_NODE, []).environment["PATH"].split(os.pathsep)[0]
    assert Path(first, "python").samefile(sys.executable)


def test_workers_know_how_many_share_the_node_and_where_to_show_that_they_live():
    environment = plan_launch(recipe(dp=4), ONE_NODE, []).environment
    assert environment["MINDMODEL_WORKERS_HERE"] == "4"
    assert environment["MINDMODEL_HEARTBEATS"] == str(Path("runs/here/logs").absolute())


def test_a_free_port_is_taken_on_one_node():
    ports = {plan_launch(recipe(dp=2), ONE_NODE, []).nodes.port for _ in range(3)}
    assert all(1024 <= port <= 65535 for port in ports)


def test_nodes_have_as_many_workers_each(two_nodes):
    planned = plan_launch(recipe(dp=4), two_nodes, [])
    assert list(planned.ranks) == [2, 3]
    assert options(planned)["worker_num"] == "4" and options(planned)["local_worker_num"] == "2"
    assert options(planned)["master_port"] == "8118" and options(planned)["node_rank"] == "1"


def test_an_automatic_degree_is_told_to_the_workers(two_nodes):
    planned = plan_launch(recipe(), two_nodes, ["r.yaml"])
    assert planned.workers == 2 and planned.command[-1] == "parallel.dp=2"
    assert planned.recipe.parallel.dp == 2
    planned = plan_launch(recipe("ascend", tp=2), two_nodes, ["r.yaml"])
    assert planned.workers == 16 and planned.command[-1] == "parallel.dp=8"


def test_device_ids_say_how_many_devices_there_are():
    planned = plan_launch(recipe("ascend", tp=2), ONE_NODE, [], device_ids="0,2,5-6")
    assert planned.workers == 4 and planned.recipe.parallel.dp == 2
    assert planned.environment["ASCEND_RT_VISIBLE_DEVICES"] == "0,2,5,6"


def test_devices_that_are_visible_already_are_taken(monkeypatch):
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", "4-7")
    planned = plan_launch(recipe("ascend"), ONE_NODE, [])
    assert planned.workers == 4 and planned.environment["ASCEND_RT_VISIBLE_DEVICES"] == "4,5,6,7"
    assert "ASCEND_RT_VISIBLE_DEVICES" not in plan_launch(recipe("cpu", dp=2), ONE_NODE, []).environment


def test_cores_are_bound_on_ascend_only():
    assert options(plan_launch(recipe("ascend", dp=8), ONE_NODE, []))["bind_core"] == "True"
    assert "bind_core" not in options(plan_launch(recipe("cpu", dp=8), ONE_NODE, []))


def test_limits_of_mindspore_and_hccl_lie_above_the_launchers(monkeypatch):
    environment = plan_launch(recipe("ascend"), ONE_NODE, [], timeout_s=300, hang_limit_s=1500).environment
    assert environment["HCCL_CONNECT_TIMEOUT"] == "300"
    assert environment["HCCL_EXEC_TIMEOUT"] == str(45 * 68)
    assert environment["HCCL_BUFFSIZE"] == "200"
    assert environment["MS_RECEIVE_MSG_TIMEOUT"] == environment["MS_NODE_TIMEOUT"] == "3000"
    monkeypatch.setenv("HCCL_EXEC_TIMEOUT", "600")
    assert "HCCL_EXEC_TIMEOUT" not in plan_launch(recipe("ascend"), ONE_NODE, []).environment
    assert "HCCL_BUFFSIZE" not in plan_launch(recipe("cpu", dp=2), ONE_NODE, []).environment


def test_hccls_limits_stay_within_what_it_takes():
    environment = plan_launch(recipe("ascend"), ONE_NODE, [], timeout_s=5, hang_limit_s=99999).environment
    assert environment["HCCL_CONNECT_TIMEOUT"] == "120" and environment["HCCL_EXEC_TIMEOUT"] == "17340"


def test_a_shell_can_run_what_is_printed(tmp_path, monkeypatch):
    fake = tmp_path / "msrun"
    fake.write_text("import os; print(os.environ['MINDMODEL_WORKERS_HERE'], os.environ['PATH'])")
    monkeypatch.setattr(launch, "_msrun", lambda: fake)
    planned = plan_launch(recipe(dp=2), ONE_NODE, ["a file.yaml"])
    done = subprocess.run(["sh", "-c", planned.shell()], capture_output=True, text=True, check=True)
    assert done.stdout == f"2 {planned.environment['PATH']}\n"
    assert "'a file.yaml'" in planned.shell() and ':"$PATH"' in planned.shell()


@pytest.mark.parametrize("text, ids", [("0-3", (0, 1, 2, 3)), ("0,2,5-7", (0, 2, 5, 6, 7)), ("4", (4,))])
def test_device_ids_are_numbers_and_ranges(text, ids):
    assert parse_device_ids(text, "--device-ids") == ids


@pytest.mark.parametrize("text", ["", "a", "3-1", "0,,1", "-1", "1-2-3", "99999"])
def test_what_names_no_devices_is_refused(text):
    with pytest.raises(LaunchError, match=f"--device-ids: '{text}' is no list of devices"):
        parse_device_ids(text, "--device-ids")


def test_a_device_that_is_named_twice_is_refused():
    with pytest.raises(LaunchError, match="'0-3,2' names device 2 twice"):
        parse_device_ids("0-3,2", "--device-ids")


@pytest.mark.parametrize("ids, count", [("0-2", 3), ("0-4", 5)])
def test_other_devices_than_workers_are_refused(ids, count):
    with pytest.raises(LaunchError, match=f"{count} for 4 workers of this node. Use --device-ids with 4 devices"):
        plan_launch(recipe("ascend", dp=4), ONE_NODE, [], device_ids=ids)


def test_fewer_devices_in_the_machine_than_workers_are_refused(monkeypatch):
    monkeypatch.setattr(launch.machine, "ascend_devices", lambda: 4)
    with pytest.raises(LaunchError, match="8 workers on this node, which has 4 Ascend devices"):
        plan_launch(recipe("auto", dp=8), ONE_NODE, [])


def test_device_ids_mean_nothing_on_cpu():
    with pytest.raises(LaunchError, match="--device-ids 0-1: this run is on CPU, which has no device ids"):
        plan_launch(recipe("cpu", dp=2), ONE_NODE, [], device_ids="0-1")


def test_workers_that_nodes_cannot_share_are_refused():
    with pytest.raises(LaunchError, match="8 workers cannot be shared evenly by 3 nodes. Use 6 or 9 workers"):
        plan_launch(recipe("cpu", dp=8), Nodes(count=3, rank=1, port=8118), [])


@pytest.mark.parametrize(
    "parallel, cut", [({"tp": 2}, "tp=2"), ({"pp": 2, "micro_batches": 2}, "pp=2"), ({"cp": 2}, "cp=2"),
                      ({"dp": 2, "shard_optimizer": "states"}, "shard_optimizer=states")]
)
def test_a_cpu_trains_data_parallel_only(parallel, cut):
    with pytest.raises(LayoutError, match=f"parallel: {cut} cannot train here: on CPU only dp can be above 1. Use dp"):
        plan_launch(recipe("cpu", **parallel), ONE_NODE, [])


@pytest.mark.parametrize(
    "parallel",
    [
        {"tp": 2},
        {"pp": 2, "dp": 1, "micro_batches": 2},
        {"cp": 2, "dp": 4, "micro_batches": 16},
        {"dp": 2, "shard_optimizer": "states"},
    ],
)
def test_ascend_trains_every_layout(parallel):
    launch = plan_launch(recipe("ascend", **parallel), ONE_NODE, [])
    assert launch.workers == mesh_of(launch.recipe.parallel).num_devices


def test_a_layout_of_ascend_devices_needs_the_graph():
    def in_pynative(device, **parallel):
        made = recipe(device, **parallel)
        return dataclasses.replace(made, runtime=dataclasses.replace(made.runtime, mode="pynative"))

    with pytest.raises(LayoutError, match="runtime.mode: 'pynative' on 4 Ascend devices: MindSpore lays out compiled"):
        refuse_layout_without_graph(in_pynative("ascend", dp=2, tp=2))
    refuse_layout_without_graph(in_pynative("ascend", dp=1))
    refuse_layout_without_graph(in_pynative("cpu", dp=4))
    refuse_layout_without_graph(recipe("ascend", dp=4))


def test_degrees_that_devices_cannot_make_are_refused_with_layouts_that_work():
    with pytest.raises(LayoutError, match="cannot be 6 devices"):
        plan_launch(recipe("ascend", tp=4), ONE_NODE, [], device_ids="0-5")


def test_a_port_in_use_is_refused_on_node_0_only():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(LaunchError, match=f"the scheduler cannot listen on 127.0.0.1:{port}: Address already in"):
            plan_launch(recipe(dp=2), Nodes(count=2, rank=0, port=port), [])
        plan_launch(recipe(dp=2), Nodes(count=2, rank=1, port=port), [])


def test_a_master_that_is_another_machine_is_refused_on_node_0():
    with pytest.raises(LaunchError, match="Node 0 must be the machine that has this address"):
        plan_launch(recipe(dp=2), Nodes(count=2, rank=0, master="192.0.2.1", port=8118), [])


def test_an_unknown_host_is_refused():
    with pytest.raises(LaunchError, match="the host 'no.such.host.invalid' is unknown here"):
        plan_launch(recipe(dp=2), Nodes(count=2, rank=1, master="no.such.host.invalid", port=8118), [])


def test_the_last_port_is_refused():
    with pytest.raises(LaunchError, match="port 65535 leaves none for the launchers"):
        plan_launch(recipe(dp=2), Nodes(count=2, rank=1, port=65535), [])


def test_a_missing_msrun_is_refused_with_what_to_install(tmp_path, monkeypatch):
    for name in ("python", "python3"):
        (tmp_path / name).symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(LaunchError, match="launcher is missing beside this Python. Install MindSpore there: "):
        plan_launch(recipe(dp=2), ONE_NODE, [])


def test_an_interpreter_that_msrun_cannot_name_is_refused(tmp_path, monkeypatch):
    (tmp_path / "python3.11").symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python3.11"))
    with pytest.raises(LaunchError, match="msrun starts a program named python or python3, and here neither is"):
        plan_launch(recipe(dp=2), ONE_NODE, [])
