"""A project's name is that of a package, a distribution and an image, and hides nothing."""

import pytest

from pipeline.commands.new.names import name_problem


@pytest.mark.parametrize("name", ["cube", "my_net2", "a", "x1_y2"])
def test_a_name_that_is_free_is_taken(name: str) -> None:
    assert name_problem(name, "folder") is None


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("My-Net", "add --name my_net"),
        ("2fast", "add --name fast"),
        ("", "add --name my_project"),
        ("été", "add --name t"),
        ("_x", "add --name x"),
        ("a__b", "add --name a_b"),
        ("a b", "add --name a_b"),
        ("a.b", "add --name a_b"),
        ("class", "is a keyword of Python: add --name my_class"),
        ("tests", "is that of another folder of the project"),
        ("runs", "is that of another folder of the project"),
        ("json", "is taken by the module"),
        ("sys", "is taken by Python's own module sys"),
        ("torch", "is taken by the module"),
        ("pipeline", "is taken by this program's own package pipeline"),
        ("components", "is taken by this program's own package"),
        ("pyyaml", "is taken by the installed package PyYAML"),
    ],
)
def test_a_name_that_cannot_be_is_refused_with_one_that_can(name: str, words: str) -> None:
    assert words in str(name_problem(name, "folder"))


def test_the_argument_that_a_name_comes_from_is_named() -> None:
    assert str(name_problem("My-Net", "name")).startswith("name='My-Net' is no name")
    assert str(name_problem("My-Net", "folder")).startswith("the folder's name 'My-Net' is no name")
