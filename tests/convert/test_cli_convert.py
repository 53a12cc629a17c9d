"""`mindmodel convert`: exit codes and what is printed."""

import pytest

from mindmodel.cli.main import main


def test_a_run_is_exported_compared_and_imported(make_run, tmp_path, capsys):
    run, out, again = str(make_run().path), str(tmp_path / "out"), str(tmp_path / "again")
    assert main(["convert", "to-hf", run, out, "--dtype", "bfloat16"]) == 0
    printed = capsys.readouterr().out
    assert f"wrote {out}: 21 tensors" in printed and "bfloat16" in printed and "  model.safetensors\n" in printed
    assert main(["convert", "check", run, out]) == 0
    assert "are the same model" in capsys.readouterr().out
    assert main(["convert", "from-hf", out, again]) == 0
    printed = capsys.readouterr().out
    assert f"wrote {again}: 15 tensors" in printed and "  recipe.yaml\n" in printed and "checkpoints/step_0" in printed


def test_a_run_goes_to_mindformers_and_back(make_run, tmp_path, capsys):
    run, out, again = str(make_run(family="qwen3").path), str(tmp_path / "out"), str(tmp_path / "again")
    assert main(["convert", "to-mindformers", run, out, "--dtype", "bfloat16"]) == 0
    printed = capsys.readouterr().out
    assert f"wrote {out}: 19 tensors" in printed and "bfloat16" in printed
    assert "  iteration_00000010/metadata.json\n" in printed and "  config.json\n" in printed
    assert main(["convert", "from-mindformers", out, again]) == 0
    assert f"wrote {again}: 19 tensors" in capsys.readouterr().out
    assert main(["convert", "from-mindformers", f"{out}/iteration_00000010", f"{again}2", "--model", out]) == 0


def test_different_models_end_with_1_and_a_list(make_run, save_hf, capsys):
    assert main(["convert", "check", str(make_run().path), str(save_hf())]) == 1
    printed = capsys.readouterr().out
    assert "model.norm.weight: 16 of 16 numbers differ" in printed and "vocab_size is" in printed
    assert "differences\n" in printed


def test_bad_input_ends_with_2_and_one_message(tmp_path, capsys):
    assert main(["convert", "to-hf", str(tmp_path / "none"), str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("CheckpointError: ") and "Traceback" not in captured.err


def test_every_subcommand_has_debug(tmp_path):
    none, out = str(tmp_path / "none"), str(tmp_path / "out")
    for direction in ("to-hf", "from-hf", "check", "to-mindformers", "from-mindformers"):
        with pytest.raises(Exception, match="there is no such folder|holds no latest_checkpointed"):
            main(["convert", direction, none, out, "--debug"])


@pytest.mark.parametrize("arguments", ["", "to-hf", "to-hf a b --dtype x", "both a b"])
def test_wrong_arguments_end_with_2(arguments):
    with pytest.raises(SystemExit) as caught:
        main(["convert", *arguments.split()])
    assert caught.value.code == 2


@pytest.mark.parametrize("arguments", [["convert", "--help"], ["convert", "to-hf", "--help"]])
def test_help_is_there(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 0
    assert "RUN" in capsys.readouterr().out
