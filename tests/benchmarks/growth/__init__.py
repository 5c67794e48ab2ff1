"""How the cost of a promise grows: with the nodes, the data, the state, and the length of a run.

What is compared here is this pipeline with itself at other sizes; `tests.benchmarks` compares it with others.
"""
