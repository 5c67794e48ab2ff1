"""Check the nodes of a job before it trains on them: `python -m pipeline preflight`, or by the agents.

node.py checks one node, network.py all of them together and the network between them; command.py is the command line.
"""
