"""What `mindmodel train` says before it begins."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

import pytest

from mindmodel.cli.train import _introduce
from mindmodel.terminal import Terminal


@pytest.mark.parametrize("heldout, said", [(0.1, True), (0, False)])
def test_a_single_document_that_leaves_nothing_to_hold_out_is_told(heldout, said):
    corpus = SimpleNamespace(
        train=SimpleNamespace(num_tokens=100),
        heldout=SimpleNamespace(num_tokens=0),
        tokenizer=SimpleNamespace(vocab_size=300),
    )
    opened = SimpleNamespace(
        corpus=corpus,
        folder=SimpleNamespace(path=Path("runs/x")),
        recipe=SimpleNamespace(data=SimpleNamespace(heldout=heldout)),
        position=SimpleNamespace(checkpoint=None, changes=()),
    )
    runtime = SimpleNamespace(ranks=SimpleNamespace(count=1), device="CPU", threads=2, kernels="graph kernels")
    stream = io.StringIO()
    _introduce(opened, Terminal(stream), runtime)
    told = "no held-out loss: the corpus is one document, and data.heldout takes whole ones\n"
    assert (told in stream.getvalue()) is said
