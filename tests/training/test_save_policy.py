"""When a checkpoint is due."""

from typing import Any

import pytest

from pipeline.training.save_policy import Boundary, SavePolicy

WITHIN = Boundary(step=6, epoch=1, batches=2)
BETWEEN = Boundary(step=6, epoch=2, batches=0, kind="epoch")


@pytest.mark.parametrize(
    ("policy", "at", "before", "happened", "reasons"),
    [
        (SavePolicy(), WITHIN, 5, {}, []),
        (SavePolicy(), BETWEEN, 5, {}, ["epoch"]),
        (SavePolicy(every_n_epochs=3), BETWEEN, 5, {}, []),
        (SavePolicy(every_n_epochs=2), BETWEEN, 5, {}, ["epoch"]),
        (SavePolicy(every_n_steps=3), WITHIN, 5, {}, ["steps"]),
        (SavePolicy(every_n_steps=3), WITHIN, 6, {}, []),
        (SavePolicy(every_n_steps=4), WITHIN, 5, {}, []),
        (SavePolicy(every_n_steps=4), WITHIN, 3, {}, ["steps"]),
        (SavePolicy(every_n_steps=6), BETWEEN, 5, {}, ["steps", "epoch"]),
        (SavePolicy(every_minutes=1.0), WITHIN, 5, {"minutes": True}, ["minutes"]),
        (SavePolicy(after_validation=True), WITHIN, 5, {"validated": True}, ["validation"]),
        (SavePolicy(), WITHIN, 5, {"validated": True}, []),
        (SavePolicy(), WITHIN, 5, {"stop": True}, ["preemption"]),
        (SavePolicy(every_n_steps=2), BETWEEN, 5, {"stop": True}, ["steps", "epoch", "preemption"]),
        (SavePolicy(), Boundary(6, 1, 2, "validation"), 5, {"stop": True}, ["preemption"]),
        (SavePolicy(), Boundary(6, 1, 2, "end"), 6, {}, ["end"]),
        (SavePolicy(every_n_epochs=3), Boundary(6, 2, 0, "end"), 6, {}, ["epoch", "end"]),
    ],
)
def test_what_is_due_follows_from_where_training_stands_alone(
    policy: SavePolicy, at: Boundary, before: int, happened: dict[str, Any], reasons: list[str]
) -> None:
    assert policy.due(at, before, **happened) == reasons


@pytest.mark.parametrize("kind", ["batch", "epoch", "end"])
def test_nothing_is_due_before_the_first_step(kind: Any) -> None:
    policy = SavePolicy(every_n_steps=1, every_minutes=1.0, after_validation=True)
    assert policy.due(Boundary(0, 0, 0, kind), 0, minutes=True, validated=True, stop=True) == []


def test_a_batch_of_several_steps_does_not_jump_over_a_multiple() -> None:
    assert SavePolicy(every_n_steps=4).due(Boundary(9, 0, 3), 7) == ["steps"]
