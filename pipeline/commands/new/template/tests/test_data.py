import torch

from my_project.data import Spirals


def test_a_sample_is_a_point_and_its_label():
    point, label = Spirals(n=10, seed=1)[3]
    assert point.shape == (2,)
    assert label == 1


def test_each_seed_gives_the_same_points_again_and_no_other_seed_does():
    assert torch.equal(Spirals(10, seed=1).points, Spirals(10, seed=1).points)
    assert not torch.equal(Spirals(10, seed=1).points, Spirals(10, seed=2).points)
