"""A configuration is flattened to the names of fit's flags."""

import json

from pipeline.run.flat_config import flatten

SAVED = {
    "seed_everything": 1,
    "model": {"class_path": "m.Model", "init_args": {"learning_rate": 0.1, "layers": [8, 8]}},
    "data": {"class_path": "m.Data", "init_args": {"train": {"class_path": "m.Rows", "init_args": {"split": "a"}}}},
    "optimizer": None,
    "trainer": {},
}


def test_keys_are_the_flags_of_fit() -> None:
    assert flatten(SAVED) == {
        "seed_everything": 1,
        "model.class_path": "m.Model",
        "model.learning_rate": 0.1,
        "model.layers": [8, 8],
        "data.class_path": "m.Data",
        "data.train.class_path": "m.Rows",
        "data.train.split": "a",
        "optimizer": None,
        "trainer": {},
    }


def test_whatever_yaml_knows_becomes_json() -> None:
    import yaml

    text = "a: .nan\nb: [.inf, 2026-01-01]\n3: {4: !!set {x}}\nc: !!binary aGk=\nd: {e: {}}\n"
    found = flatten(yaml.safe_load(text))
    assert json.loads(json.dumps(found, allow_nan=False)) == {
        "a": "nan",
        "b": ["inf", "2026-01-01"],
        "3.4": ["x"],
        "c": "b'hi'",
        "d.e": {},
    }
