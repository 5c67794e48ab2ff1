"""`python -m pipeline summary` and `data`: a model and data, looked at before anything is trained.

They build what a fit would build, so they come through the same command line. May import: everything below commands.
"""
