"""MindFormers' folder as files: layouts give the blocks, and what is missing, cut or misshapen is one clear message."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mindmodel.convert.mindformers import from_mindformers, to_mindformers
from mindmodel.convert.mindformers_folder import find_iteration, read_tensors, write_iteration
from mindmodel.errors import ConversionError
from mindmodel.tensor_file import LazyTensor, write_tensors

WHOLE = np.arange(48, dtype=np.float32).reshape(8, 6)
LAYOUT = {
    "device_matrix": [2, 2],
    "tensor_map": [1, 0],
    "interleaved_parallel": False,
    "alias_name": ["dp", "tp"],
    "rank_list": [4, 5, 6, 7],
}


def lazy(array):
    return LazyTensor(shape=array.shape, dtype=array.dtype, read=lambda: array)


def file_of(rank, kind="model"):
    return f"{kind}-{rank:07d}-0000008.safetensors"


def metadata_of(layout=LAYOUT, name="w", kind="model"):
    """Of a tensor that ranks 4 to 7 hold, a slice each."""
    ranks = range(4, 8)
    places = [[{"file_name": file_of(rank, kind), "storage_rank": rank, "rank_group": [rank]}] for rank in ranks]
    return {
        "state_dict_metadata": {
            name: {
                "properties": {"dtype": "Float32"},
                "global_shape": [8, 6],
                "axis_fragmentations": [2, 2],
                "layout": layout,
                "chunk": [{"global_offset": [number], "local_shape": [4, 3]} for number in range(4)],
            }
        },
        "storage_data": {f"('{name}', ({number},))": place for number, place in enumerate(places)},
    }


@pytest.fixture
def cut(tmp_path):
    """An iteration of four ranks, and the optimizer's state of one."""
    folder = tmp_path / "iteration_00000007"
    folder.mkdir()
    for rank, (row, column) in zip(range(4, 8), ((0, 0), (0, 3), (4, 0), (4, 3))):
        block = WHOLE[row : row + 4, column : column + 3]
        write_tensors(folder / file_of(rank), {"w": np.ascontiguousarray(block)})
    metadata, moments = metadata_of(), metadata_of(name="adam_m.w", kind="opt")
    for part in metadata:
        metadata[part].update(moments[part])
    (folder / "metadata.json").write_text(json.dumps(metadata))
    return folder


@pytest.fixture
def whole(tmp_path):
    """The folder that one process writes, of two files."""
    write_iteration(tmp_path, 7, 16, {"w": lazy(WHOLE), "v": lazy(WHOLE[0])}, 100)
    return tmp_path


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def refused(path, text):
    with pytest.raises(ConversionError, match=text):
        read_tensors(path)


def test_a_tensor_is_put_together_from_the_blocks_of_its_layout_and_the_optimizers_are_left(cut):
    tensors = read_tensors(cut)
    assert list(tensors) == ["w"]
    np.testing.assert_array_equal(tensors["w"].read(), WHOLE, strict=True)


def test_several_axes_cut_a_dim_and_copies_count_once(cut):
    metadata = metadata_of({**LAYOUT, "tensor_map": [[1, 0], -1]})
    for rank in range(4):
        write_tensors(cut / file_of(4 + rank), {"w": WHOLE[2 * rank : 2 * rank + 2]})
    (cut / "metadata.json").write_text(json.dumps(metadata))
    np.testing.assert_array_equal(read_tensors(cut)["w"].read(), WHOLE)
    for rank in range(4):
        write_tensors(cut / file_of(4 + rank), {"w": WHOLE})
    (cut / "metadata.json").write_text(json.dumps(metadata_of({**LAYOUT, "tensor_map": [-1, -1]})))
    np.testing.assert_array_equal(read_tensors(cut)["w"].read(), WHOLE)


def test_what_was_written_is_read_and_is_the_newest(whole):
    iteration = find_iteration(whole)
    assert iteration.name == "iteration_00000007" and find_iteration(iteration) == iteration
    names = sorted(path.name for path in iteration.iterdir())
    files = [f"model-000000{number}-0000002.safetensors" for number in (0, 1)]
    assert names == ["common.json", "metadata.json", *files]
    common = json.loads((iteration / "common.json").read_text())
    assert (common["global_step"], common["global_batch_size"]) == (7, 16)
    tensors = read_tensors(iteration)
    np.testing.assert_array_equal(tensors["w"].read(), WHOLE)
    np.testing.assert_array_equal(tensors["v"].read(), WHOLE[0])


def test_one_process_needs_no_metadata(tmp_path):
    write_tensors(tmp_path / "llama-model-0000000-0000001.safetensors", {"w": WHOLE})
    write_tensors(tmp_path / "llama-opt-0000000-0000001.safetensors", {"adam_m.w": WHOLE})
    assert list(read_tensors(tmp_path)) == ["w"]


def test_without_a_tracker_there_is_no_newest(tmp_path):
    with pytest.raises(ConversionError, match="holds no latest_checkpointed_iteration.txt. Give the folder of Mind"):
        find_iteration(tmp_path)


@pytest.mark.parametrize("text", ["8", "../7", "", "seven"])
def test_a_tracker_that_names_no_folder_is_refused(whole, text):
    (whole / "latest_checkpointed_iteration.txt").write_text(text)
    with pytest.raises(ConversionError, match=f"iteration.txt: says '{text}', and there is no such iteration_"):
        find_iteration(whole)


def test_a_folder_without_weights_is_refused(tmp_path):
    refused(tmp_path, "holds neither metadata.json nor model-N-M.safetensors")


def test_missing_metadata_is_named(whole):
    iteration = find_iteration(whole)
    (iteration / "metadata.json").unlink()
    refused(iteration, "metadata.json is missing, which says how the tensors in model-.* are cut. Copy it too")
    (iteration / "model-0000001-0000002.safetensors").unlink()
    refused(iteration, "metadata.json is missing")


def test_damaged_metadata_is_named(cut):
    (cut / "metadata.json").write_text("{")
    refused(cut, "metadata.json: not JSON")


@pytest.mark.parametrize(
    "change, fault",
    [
        (lambda content: content.pop("storage_data"), "KeyError.*storage_data"),
        (lambda content: content["storage_data"].pop("('w', (3,))"), "KeyError.*w"),
        (lambda content: content.update(state_dict_metadata=[]), "AttributeError"),
        (lambda content: content["state_dict_metadata"]["w"]["layout"].update(rank_list=[0, 1, 2, 3]), "4 is not in"),
        (lambda content: content["state_dict_metadata"]["w"]["layout"].update(tensor_map=[1]), "shorter|longer"),
        (lambda content: content["state_dict_metadata"]["w"]["layout"].update(tensor_map=[1, 5]), "IndexError"),
        (
            lambda content: content["state_dict_metadata"]["w"]["layout"].update(interleaved_parallel=True),
            "a layout with interleaved_parallel, which is not read",
        ),
    ],
)
def test_metadata_that_lacks_a_part_is_refused(cut, change, fault):
    edit(cut / "metadata.json", change)
    refused(cut, f"metadata.json: a part is missing or of the wrong kind: .*{fault}")


def test_a_name_that_leaves_the_folder_is_refused(cut):
    outside = f"../{file_of(4)}"
    edit(cut / "metadata.json", lambda content: content["storage_data"]["('w', (0,))"][0].update(file_name=outside))
    refused(cut, "leads out of the folder")


def test_a_missing_file_is_named(cut):
    (cut / file_of(6)).unlink()
    refused(cut, f"'{file_of(6)}' is missing")


def test_a_file_that_was_cut_is_named(cut):
    path = cut / file_of(5)
    path.write_bytes(path.read_bytes()[:-4])
    refused(cut, f"{file_of(5)}: no whole safetensors file")


@pytest.mark.parametrize(
    "array, name, held",
    [
        (WHOLE, "w", r"\(\(8, 6\), 'float32'\)"),
        (WHOLE[:4, :3].astype(np.float16), "w", r"\(\(4, 3\), 'float16'\)"),
        (WHOLE[:4, :3], "v", "missing"),
    ],
)
def test_a_file_that_does_not_hold_what_the_layout_says_is_named(cut, array, name, held):
    write_tensors(cut / file_of(5), {name: np.ascontiguousarray(array)})
    refused(cut, rf"{file_of(5)}: 'w' is {held}, by the layout in metadata.json \(4, 3\)")


def test_a_slice_that_no_rank_holds_is_a_gap(cut):
    edit(cut / "metadata.json", lambda content: content["state_dict_metadata"]["w"]["chunk"].pop())
    refused(cut, "metadata.json: 'w': its slices leave a gap. Copy the files of all ranks")


def test_without_a_config_the_model_is_asked_for(whole, tmp_path):
    with pytest.raises(ConversionError, match="holds no config.json, and MindFormers' weights .*--model DIR"):
        from_mindformers(whole, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_weights_of_another_model_are_refused_and_nothing_is_written(make_run, tmp_path):
    to_mindformers(make_run(family="qwen3").path, tmp_path / "out")
    to_mindformers(make_run("other", family="llama").path, tmp_path / "llama")
    with pytest.raises(ConversionError, match="not those of the model:\n  missing: decoder.final_layernorm.weight"):
        from_mindformers(tmp_path / "llama", tmp_path / "made", tmp_path / "out")
    assert not (tmp_path / "made").exists()


def test_a_target_that_is_taken_is_refused(make_run, tmp_path):
    run = make_run(family="qwen3")
    to_mindformers(run.path, tmp_path / "out")
    with pytest.raises(ConversionError, match="exists and is not an empty folder"):
        to_mindformers(run.path, tmp_path / "out")
    with pytest.raises(ConversionError, match="exists and is not an empty folder"):
        from_mindformers(tmp_path / "out", run.path)


@pytest.mark.parametrize("family", ["qwen3", "llama"])
@pytest.mark.parametrize("changes", [{}, {"tied_embeddings": True}])
def test_a_run_comes_back_bit_by_bit(make_run, tmp_path, family, changes):
    run = make_run(family=family, **changes)
    to_mindformers(run.path, tmp_path / "out")
    from_mindformers(tmp_path / "out", tmp_path / "back")
    to_mindformers(tmp_path / "back", tmp_path / "again")
    first, second = (read_tensors(find_iteration(tmp_path / name)) for name in ("out", "again"))
    assert list(first) == list(second)
    assert any(name in first for name in ("output_layer.weight", "lm_head.weight")) != bool(changes)
    for name, tensor in first.items():
        np.testing.assert_array_equal(tensor.read(), second[name].read(), strict=True)
