"""`python -m pipeline report`: one page on a run, or on several beside each other, that needs no network to be read.

`run_facts` reads the run directory; curves, telemetry, scores and times become figures; `page` renders them. Runs on
the submitter too: neither torch nor Lightning is imported. May import: everything below commands.
"""
