"""The global order: a permutation for each epoch, the same on every machine and for every number of devices."""

import numpy as np
import pytest

from mindmodel.data.order import SampleOrder


@pytest.mark.parametrize("num_samples", [1, 2, 3, 4, 5, 17, 255, 256, 257, 1000])
@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1])
def test_each_epoch_visits_each_sample_once(num_samples, seed):
    order = SampleOrder(num_samples, seed)
    for epoch in range(3):
        assert sorted(order.indices(epoch * num_samples, num_samples)) == list(range(num_samples))


def test_any_cut_of_the_positions_gives_the_same_order():
    order = SampleOrder(50, 3)
    whole = order.indices(0, 170)
    cuts = [0, 1, 8, 49, 50, 51, 149, 170]
    parts = [order.indices(first, stop - first) for first, stop in zip(cuts, cuts[1:])]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_epochs_and_seeds_have_their_own_order():
    orders = {tuple(SampleOrder(20, seed).indices(epoch * 20, 20)) for seed in range(10) for epoch in range(10)}
    assert len(orders) == 100


def test_every_order_of_few_samples_occurs_about_equally_often():
    order = SampleOrder(4, 7)
    epochs = order.indices(0, 4 * 4800).reshape(4800, 4)
    _, counts = np.unique(epochs, axis=0, return_counts=True)
    assert len(counts) == 24
    assert ((counts - 200) ** 2 / 200).sum() < 50  # chi-square with 23 degrees of freedom: 1 in 1,000 is above 49.7


def test_neighbours_in_the_order_are_strangers_in_the_corpus():
    order = SampleOrder(100_000, 1)
    first, second = order.indices(0, 100_000), order.indices(100_000, 100_000)
    for one, other in ((first[:-1], first[1:]), (first, np.arange(100_000)), (first, second)):
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.013  # four standard deviations


def test_the_order_never_changes():
    assert SampleOrder(10, 1).indices(0, 12).tolist() == [4, 7, 3, 2, 5, 9, 6, 0, 8, 1, 6, 3]
    assert SampleOrder(1_000_000, 1234).indices(5, 4).tolist() == [857336, 790337, 748650, 672665]
    assert SampleOrder(2**62, 1).indices(0, 2).tolist() == [3693017604231860015, 2648018865208458555]


def test_no_positions_are_no_samples():
    assert SampleOrder(10, 1).indices(3, 0).tolist() == []
    assert SampleOrder(10, 1).indices(3, 0).dtype == SampleOrder(10, 1).indices(3, 1).dtype == np.int64
