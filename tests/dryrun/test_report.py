"""What a compiled rank says, read from files as MindSpore writes them."""

from __future__ import annotations

import pytest

from mindmodel.dryrun.report import Collective, RankReport, chosen_kinds, read_collectives, read_kernels, ring_bytes
from mindmodel.parallel.mesh import Mesh
from step_trace import live_with

COLLECTIVES = """\
index,group,comm_rank,primitive,src_rank,dest_rank,root_rank,input_shape,input_type,output_shape,output_type,input_size,output_size
"1","a","0 1","AllReduce","","","","(32, 32)","BFloat16","(32, 32)","BFloat16","2048","2048"
"2","a","0 1","AllReduce","","","","(32, 32)","BFloat16","(32, 32)","BFloat16","2048","2048"
"3","b","0 1","AllGather","","","","(16)","Float32","(32)","Float32","64","128"
"4","c","0 2","Send","","2","","(32, 32)","BFloat16","(32, 32)","BFloat16","2048","2048"
"5","c","0 2","Receive","2","","","()","BFloat16","(32, 32)","BFloat16","2","2048"
"""


def test_collectives_are_counted_by_kind_axes_and_dtype(tmp_path):
    (tmp_path / "c.csv").write_text(COLLECTIVES)
    found = read_collectives(tmp_path / "c.csv", 0, Mesh(tp=2, pp=2))
    assert [(c.kind, c.axes, c.count, c.bytes, c.dtype, c.ranks) for c in found] == [
        ("AllReduce", ("tp",), 2, 4096, "bfloat16", (0, 1)),
        ("Send", ("pp",), 1, 2048, "bfloat16", (0, 2)),
        ("Receive", ("pp",), 1, 2048, "bfloat16", (0, 2)),
        ("AllGather", ("tp",), 1, 128, "float32", (0, 1)),
    ]


def test_a_rank_alone_has_no_collectives(tmp_path):
    assert read_collectives(tmp_path / "absent.csv", 0, Mesh()) == ()


@pytest.mark.parametrize(
    "kind, num_ranks, sent",
    [("AllReduce", 4, 1200), ("AllGather", 4, 600), ("ReduceScatter", 2, 400), ("AllToAll", 8, 700), ("Send", 2, 800),
     ("Receive", 2, 0), ("AllReduce", 1, 0)],
)
def test_a_ring_sends_all_parts_but_its_own_and_twice_for_a_sum(kind, num_ranks, sent):
    assert ring_bytes(kind, 800, num_ranks) == sent


def collective(kind="AllReduce", axes=("tp",), count=1, num_bytes=800, dtype="bfloat16", ranks=(0, 1)):
    return Collective(kind=kind, axes=axes, count=count, bytes=num_bytes, dtype=dtype, ranks=ranks)


def report(*collectives):
    live = live_with(weights=3, constants=1, other=4, **{"weight copies": 2})
    return RankReport(rank=3, stage=1, live=live, host_bytes=7, cpu_s=2.0, collectives=collectives,
                      kernels={"MatMul": 2}, layer_kernels=1, old_kernels=())


def test_kinds_are_those_of_the_closed_form_copies_being_weights():
    assert report().by_kind == {
        "weights": 5, "optimizer": 0, "gradients": 0, "activations": 0, "logits": 0, "other": 5
    }


def test_bytes_of_groups_within_a_node_take_its_links_and_others_the_network():
    found = report(collective(ranks=(0, 1)), collective(axes=("dp",), ranks=(0, 8)))
    assert found.wire_bytes(devices_per_node=8) == (800, 800)
    assert found.wire_bytes(devices_per_node=16) == (1600, 0)


def test_for_scripts_the_same_collective_with_other_ranks_is_one_entry():
    found = report(collective("Send", ("pp",), ranks=(3, 5)), collective("Send", ("pp",), ranks=(3, 1)))
    assert found.to_json() == {
        "rank": 3, "stage": 1, "peak_bytes": 10, "by_kind": found.by_kind, "host_bytes": 7,
        "collectives": [{"kind": "Send", "axes": ("pp",), "count": 2, "bytes": 1600, "dtype": "bfloat16"}],
        "kernels": {"MatMul": 2},
    }


KERNELS = """\
index,node_name,logic_id,stream_id,node_info,event_id,group
"1","Default/StreamSend-op0","0","0","","33",""
"2","Default/network-RankStep/decoder-Decoder/Reshape-op0","0","0","","",""
"3","Default/network-RankStep/decoder-Decoder/layers-CellList/0-Block/MatMul-op0","0","0","","",""
"4","Default/network-RankStep/decoder-Decoder/layers-CellList/1-Block/MatMul-op1","0","0","","",""
"5","Default/network-RankStep/loss-HeadLoss/OneHot-op0","0","0","","",""
"6","Default/network-RankStep/loss-HeadLoss/AllReduce-op0","0","0","","","2-50"
"""


def test_kernels_are_counted_without_events_views_and_collectives(tmp_path):
    (tmp_path / "k.csv").write_text(KERNELS)
    assert read_kernels(tmp_path / "k.csv") == ({"MatMul": 2, "OneHot": 1}, 2)


def test_the_log_tells_which_kind_of_kernel_was_chosen(tmp_path):
    (tmp_path / "log.txt").write_text(
        "[INFO] DEVICE(1,7f,python):2026 [a.cc:750] CollectOpSelectedType] OneHot select aclop kernel\n"
        "[INFO] DEVICE(1,7f,python):2026 [a.cc:750] CollectOpSelectedType] MatMul select aclnn kernel\n"
    )
    assert chosen_kinds(tmp_path / "log.txt") == {"OneHot": "aclop", "MatMul": "aclnn"}
