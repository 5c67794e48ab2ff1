"""Configurations of several runs are compared by the names of fit's flags."""

from pipeline.checkpoint.run_summary import differing_keys

FIRST = {"seed_everything": 1, "model.learning_rate": 0.1, "model.layers": [8, 8], "optimizer": None}


def test_only_what_differs_is_named_in_the_order_of_the_configuration() -> None:
    first = FIRST
    second = {**first, "model.learning_rate": 0.2, "seed_everything": 2}
    third = {key: value for key, value in first.items() if key != "optimizer"}
    assert differing_keys([first, first]) == []
    assert differing_keys([first, second]) == ["seed_everything", "model.learning_rate"]
    assert differing_keys([first, third]) == ["optimizer"], "absent is not the same as None"
    assert differing_keys([{"a": 1}, {"a": True}]) == ["a"], "nor is 1 the same as true"
    assert differing_keys([first, {}]) == [], "a run without a configuration differs in nothing"
    assert differing_keys([second]) == []
