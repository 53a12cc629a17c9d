"""Recipes for the compiler, and what it says of some of their ranks."""

from __future__ import annotations

from mindmodel.dryrun.compile import compiled
from mindmodel.dryrun.jobs import Job
from mindmodel.dryrun.report import report_of
from mindmodel.recipe.load import recipe_from_dict
from mindmodel.recipe.rules import with_defaults


def recipe_for(model, *, seq_len, sequences, train=(), runtime=(), **parallel):
    """A recipe of a model for one step of so many sequences; other keywords are those of `parallel`."""
    return with_defaults(recipe_from_dict({
        "name": "tests",
        "model": model,
        "data": {"source": "stdlib", "seq_len": seq_len, "tokenizer": "tokenizer.json"},
        "parallel": parallel,
        "train": {"steps": 1, "tokens_per_step": sequences * seq_len, **dict(train)},
        "runtime": dict(runtime),
    }, "tests"))


def reports_of(ranks):
    """What the compiler says of ranks, each a recipe and a number, by the names that they have here."""
    jobs = {
        name: Job(name=f"job-{number}", recipe=recipe, rank=rank, level=1)
        for number, (name, (recipe, rank)) in enumerate(ranks.items())
    }
    with compiled(list(jobs.values()), 2) as results:
        return {name: report_of(results[job.name]) for name, job in jobs.items()}
