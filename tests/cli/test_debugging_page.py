"""docs/debugging.md: every command in it, as it stands there, on a small recipe instead of recipes/cpu/tiny.yaml."""

from __future__ import annotations

import re
import shlex

import pytest

from command import RECIPE, ROOT
from mindmodel.cli.main import parse_arguments

PAGE = (ROOT / "docs" / "debugging.md").read_text()
BLOCKS = re.findall(r"^```bash\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines()]

TINY, LLAMA = "recipes/cpu/tiny.yaml", "recipes/llama/8b.yaml"
ROPE_BASE = "test_the_first_place_of_another_rope_base_is_the_first_attention"
ONE_OF_EIGHT = "test_a_rank_of_a_cluster_s_recipe_is_compiled_for_a_simulated_device_and_its_kernels_are_asked_for"
ELSEWHERE = {
    f"graph {LLAMA} --single --shrink runtime.cpu_kernels=graph": "test_a_recipe_is_compiled_and_its_graph_saved",
    f"graph {LLAMA} --single --shrink --device ascend": ONE_OF_EIGHT,
    "graph recipes/llama/1b_8.yaml --shrink --device ascend --devices 8 --rank 1": ONE_OF_EIGHT,
    f"profile {TINY}": "test_a_step_is_profiled_and_nothing_else_is_left_behind",
    f"profile {LLAMA} --single --shrink runtime.cpu_kernels=graph --steps 20":
        "test_a_step_is_profiled_and_nothing_else_is_left_behind",
    f"step {TINY}": "test_a_step_that_goes_on_is_the_first_of_the_run",
    f"step {LLAMA} --single --shrink": "test_a_step_that_goes_on_is_the_first_of_the_run",
    f"step {TINY} --steps 2 --break layers.0.attention":
        "test_the_debugger_stops_in_the_construct_of_the_cell_with_its_callers",
    "replay runs/tiny --from 120 --to 130": "test_steps_from_a_checkpoint_are_the_same_bit_for_bit_and_the_run_is_only",
    "replay runs/tiny --from 120 --to 130 runtime.mode=pynative":
        "test_from_the_beginning_in_pynative_mode_the_first_differing_step_is_named",
    "replay runs/tiny --from 129 --to 130 --break layers.0.attention":
        "test_the_debugger_opens_in_the_steps_after_the_first_that_is_asked_for",
    f"trace {TINY}": ROPE_BASE,
    f"compare {TINY} {TINY}:runtime.cpu_kernels=graph": ROPE_BASE,
    f"compare {TINY} {TINY}:train.compute_dtype=bfloat16 --shrink": ROPE_BASE,
    f"compare {LLAMA} {LLAMA}:parallel.micro_batches=4 --single --shrink": ROPE_BASE,
    "nan runs/tiny": "test_a_run_that_diverges_names_its_step_and_the_operator",
    "nan runs/tiny --step 120": "test_a_clean_run_is_all_finite_and_is_left_as_it_was",
}
"""Commands of `debug` whose like another test of this folder starts and looks at; they are not started twice."""
FEW_STEPS = "train.steps=10"
"""Behind a command that trains."""


@pytest.fixture
def folder(command):
    """With recipes, a run in `runs/tiny` and its Hugging Face folder."""
    recipes = command.folder / "recipes"
    (recipes / "cpu").mkdir(parents=True)
    (recipes / "cpu" / "tiny.yaml").write_text(RECIPE)
    (recipes / "llama").symlink_to(ROOT / "recipes" / "llama")
    for arguments in (("train", TINY, FEW_STEPS), ("convert", "to-hf", "runs/tiny", "runs/tiny-hf")):
        done = command(*arguments)
        assert done.returncode == 0, done.stderr
    return command


def test_every_command_can_be_typed():
    assert len(COMMANDS) > 20
    for command in COMMANDS:
        name, verb, *arguments = shlex.split(command)
        parse_arguments(verb, arguments)
        recipes = [argument.partition(":")[0] for argument in arguments if argument.startswith("recipes/")]
        assert name == "mindmodel" and all((ROOT / recipe).is_file() for recipe in recipes)


def test_commands_that_are_started_elsewhere_stand_in_the_page_and_their_tests_are_there():
    assert {f"mindmodel debug {line}" for line in ELSEWHERE} <= set(COMMANDS)
    tests = "".join(path.read_text() for path in (ROOT / "tests" / "cli").glob("test_debug_*.py"))
    assert all(f"def {test}" in tests for test in ELSEWHERE.values())


@pytest.mark.long
def test_every_command_ends_well(folder, standin):
    failed = {}
    for line in (line.removeprefix("mindmodel ") for line in COMMANDS):
        if line.removeprefix("debug ") in ELSEWHERE:
            continue
        done = folder(*line.split(), *([FEW_STEPS] if line.startswith("train ") else []))
        if done.returncode:
            failed[line] = done.returncode, done.stderr[-2000:]
    assert failed == {}
