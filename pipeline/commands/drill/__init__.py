"""`python -m pipeline drill`: the promise "kill anything, lose nothing", tested on a user's own configuration.

A training runs straight, and once more under a seeded plan of faults, in a job that is restarted as a launcher does it;
then both are compared. May import: everything below commands.
"""
