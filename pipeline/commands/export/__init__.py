"""`python -m pipeline export`: the module of a checkpoint as a file for other programs, compared with the module.

May import: config and all below it, commands/inspection for what a user's own code raises.
"""
