"""What a sweep tries follows from its flags alone."""

import math

import pytest

from components.sweep.space import SweepSpace, flags_of
from pipeline.errors import UserError


def space(grid: str = "", random: str = "", optuna: str = "", trials: int | None = None, seed: int = 0) -> SweepSpace:
    return SweepSpace.parse(grid.split(), random.split(), optuna.split(), trials, seed)


def test_a_grid_is_every_combination_in_the_order_of_its_flags() -> None:
    found = space("a=1,2 b=x,y,z")
    assert found.trials == 6
    assert [tuple(found.values(trial).values()) for trial in range(1, 7)] == [
        *(("1", "x"), ("1", "y"), ("1", "z")),
        *(("2", "x"), ("2", "y"), ("2", "z")),
    ]


def test_values_are_passed_on_as_they_were_written() -> None:
    found = space("a=1e-3,[1,2],{x: 1},'p,q'".replace(" ", ""), "")
    assert [flags_of(found.values(trial)) for trial in range(1, 5)] == [
        *(["--a=1e-3"], ["--a=[1,2]"], ["--a={x:1}"], ["--a='p,q'"])
    ]


def test_random_draws_depend_on_seed_and_number_and_on_no_other_key() -> None:
    one, more = space(random="a=uniform:0:1", trials=20), space(random="b=int:1:9 a=uniform:0:1", trials=30)
    drawn = [one.values(trial)["a"] for trial in range(1, 21)]
    assert drawn == [more.values(trial)["a"] for trial in range(1, 21)]
    assert drawn == [one.values(trial)["a"] for trial in range(1, 21)], "each time"
    assert len(set(drawn)) == 20
    assert drawn != [space(random="a=uniform:0:1", trials=20, seed=1).values(trial)["a"] for trial in range(1, 21)]


@pytest.mark.parametrize(
    ("text", "low", "high", "kind"),
    [
        ("uniform:-1:2", -1, 2, float),
        ("log:1e-4:1e-1", 1e-4, 0.1, float),
        ("int:1:3", 1, 3, int),
        ("intlog:1:64", 1, 64, int),
    ],
)
def test_what_is_drawn_fills_its_range_and_never_leaves_it(text: str, low: float, high: float, kind: type) -> None:
    found = space(random=f"a={text}", trials=400)
    drawn = [found.values(trial)["a"] for trial in range(1, 401)]
    assert all(type(each) is kind and low <= each <= high for each in drawn)  # type: ignore[operator]
    if text == "int:1:3":
        assert all(90 < drawn.count(each) < 180 for each in (1, 2, 3)), "each whole number as often"
    if "log" in text:
        middle = math.sqrt(low * high)
        assert 0.35 < sum(float(each) < middle for each in drawn) / 400 < 0.65, "each factor as often"


def test_a_choice_and_a_grid_beside_random_draws_come_in_turn() -> None:
    found = space("a=1,2", "b=choice:x,y", trials=6)
    assert [found.values(trial)["a"] for trial in range(1, 7)] == ["1", "2"] * 3
    assert {found.values(trial)["b"] for trial in range(1, 7)} == {"x", "y"}


def test_every_value_that_a_trial_may_have_is_shown_to_fit_beforehand() -> None:
    found = space("a=1,2", "b=log:0.1:1 c=choice:x,y", trials=2)
    assert list(found.extremes()) == [("a", "1"), ("a", "2"), ("b", 0.1), ("b", 1.0), ("c", "x"), ("c", "y")]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({}, "nothing to try"),
        ({"grid": "a"}, "grid='a': expected key=..."),
        ({"grid": "--a=1"}, "with a key that fit has as a flag"),
        ({"grid": "a=1,,2"}, "a value is empty"),
        ({"grid": "a="}, "a value is empty"),
        ({"grid": "a=1,2,1"}, "1 is there more than once"),
        ({"grid": "a=[1,2"}, "is not closed"),
        ({"grid": "a=1 a=2"}, "a is given 2 times"),
        ({"grid": "a=1", "random": "a=int:1:2", "trials": 1}, "a is given 2 times"),
        ({"grid": "a=1,2", "trials": 5}, "trials=5: the grid has 2"),
        ({"random": "a=int:1:2"}, "--random has no end of its own"),
        ({"optuna": "a=int:1:2"}, "--optuna has no end of its own"),
        ({"optuna": "a=int:1:2", "grid": "b=1", "trials": 2}, "--optuna chooses the values of all keys"),
        ({"random": "a=int:1:2", "trials": 0}, "trials=0 must be >= 1"),
        ({"random": "a=unifom:1:2", "trials": 1}, "did you mean 'uniform'?"),
        ({"random": "a=0.5", "trials": 1}, "expected uniform:0:0.5"),
        ({"random": "a=uniform:1", "trials": 1}, "uniform takes two numbers, such as uniform:0:0.5"),
        ({"random": "a=int:1.5:2", "trials": 1}, "int takes two whole numbers, such as int:1:8"),
        ({"random": "a=uniform:2:1", "trials": 1}, "2.0 must be less than 1.0"),
        ({"random": "a=uniform:0:nan", "trials": 1}, "must be less than nan"),
        ({"random": "a=log:0:1", "trials": 1}, "must be > 0"),
    ],
)
def test_a_mistake_is_named_with_what_to_write(flags: dict[str, object], words: str) -> None:
    with pytest.raises(UserError) as caught:
        space(**flags)  # type: ignore[arg-type]
    assert words in str(caught.value)


def test_all_mistakes_are_said_at_once() -> None:
    with pytest.raises(UserError) as caught:
        space("a b=1,1", "c=log:0:1")
    assert len(caught.value.problems) == 4
