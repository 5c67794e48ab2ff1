"""The agent of a node: starts its processes, watches them and the other nodes, and exits as the job does.

A job runs in rounds, each from one rendezvous to the next. `node.py` runs them, `rendezvous.py` brings the nodes
together, `supervisor.py` carries out what `policy.py` decides from the events that the agents share (`event_log.py`),
`standby.py` forks processes that need no imports, `workers.py` watches and ends them. `compat.py` holds every private
member of torch that is used.

May import: errors, process.
"""
