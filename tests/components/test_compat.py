"""The names of TorchX that this project relies on."""

from components.compat import missing, types


def test_a_name_that_torchx_lacks_is_reported_with_its_module() -> None:
    required = {types: ("to_dict", "no_such_name", "Missing.method")}
    assert missing(required) == ["torchx.util.types.no_such_name", "torchx.util.types.Missing.method"]
