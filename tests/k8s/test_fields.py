"""Fields of Kubernetes objects that may be absent."""

from k8s.fields import annotation, condition, label, phase_of


def test_absent_fields_are_empty() -> None:
    bare = {"metadata": {"name": "one"}}
    assert (label(bare, "a"), annotation(bare, "a"), condition(bare, "Complete")) == ("", "", {})
    assert condition({"status": {"conditions": None}}, "Complete") == {}
    assert phase_of({"status": {}}) == "Pending"


def test_a_condition_has_one_of_some_types_and_the_status() -> None:
    failed = {"type": "Failed", "status": "True"}
    thing = {"status": {"conditions": [{"type": "Complete", "status": "False"}, failed]}}
    assert condition(thing, "Complete", "Failed") == failed
    assert condition(thing, "Complete") == {}
    assert condition(thing, "Complete", status="False")["type"] == "Complete"
