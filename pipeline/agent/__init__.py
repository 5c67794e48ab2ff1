"""The agent of a node: starts its processes, watches them and the other nodes, and ends as the job does.

A job goes in rounds, from one meeting of its nodes to the next. `node.py` runs them, `meeting.py` brings the nodes
together, `round.py` does what `policy.py` decides from the news (`news.py`) that the agents tell each other, and
`workers.py` starts and ends processes.
"""
