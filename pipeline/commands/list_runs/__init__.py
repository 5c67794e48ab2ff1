"""`python -m pipeline runs`: the runs beneath a folder or bucket, and `runs rm`, which deletes some.

fields.py names what is known of a run, selection.py filters and sorts by it, columns.py makes a table that fits a
terminal, remove.py deletes. May import: everything below commands; never torch.
"""
