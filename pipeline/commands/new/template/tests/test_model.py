import torch

from my_project.data import Spirals
from my_project.model import Classifier


def test_it_says_two_numbers_for_each_point():
    assert Classifier()(torch.zeros(5, 2)).shape == (5, 2)


def test_it_learns_a_batch_by_heart():
    torch.manual_seed(1)
    data = Spirals(n=50, seed=1)
    model = Classifier()
    optimizer = model.configure_optimizers()
    for _ in range(300):
        loss, _ = model._score((data.points, data.labels))
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    assert loss.mean() < 0.1
