"""A torch without what the agent needs of its private members is named in one sentence, before anything starts."""

import re

import pytest
import torch
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.rendezvous import dynamic_rendezvous
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import DynamicRendezvousHandler

from pipeline.agent import arguments, compat
from pipeline.errors import UserError


def without_parameters(self: object) -> None:
    """Stand for a method that has lost its parameters and its attributes."""


@pytest.mark.parametrize(
    ("owner", "name", "value", "missing"),
    [
        (DynamicRendezvousHandler, "_stop_heartbeats", None, "DynamicRendezvousHandler._stop_heartbeats(self)"),
        (LocalElasticAgent, "_rendezvous", without_parameters, "LocalElasticAgent._rendezvous(self, worker_group)"),
        (LocalElasticAgent, "_start_workers", without_parameters, "LocalElasticAgent._remaining_restarts"),
        (dynamic_rendezvous, "_RendezvousState", None, "dynamic_rendezvous.redundancy_list"),
    ],
)
def test_a_missing_member_is_named_with_torchs_version(
    monkeypatch: pytest.MonkeyPatch, owner: object, name: str, value: object, missing: str
) -> None:
    monkeypatch.setattr(owner, name, value)
    with pytest.raises(UserError) as raised:
        compat.check_torch()
    (problem,) = raised.value.problems
    assert missing in problem
    assert f"torch {torch.__version__} does not have what pipeline.agent needs" in problem


def test_an_option_that_this_torch_does_not_know_is_refused_only_where_it_is_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    older = compat.get_args_parser()
    older._option_string_actions["--virtual-local-rank"].dest = "other"
    monkeypatch.setattr(compat, "get_args_parser", lambda: older)
    defaults = arguments.parser().parse_args(["script"])
    compat.launch_config(arguments.parser().parse_args(["script"]), defaults)
    with pytest.raises(UserError, match=re.escape(f"virtual_local_rank: torch {torch.__version__} has no such option")):
        compat.launch_config(arguments.parser().parse_args(["--virtual-local-rank", "script"]), defaults)
