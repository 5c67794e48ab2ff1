"""What needs no model: runs, verify, prune, probe, explain_resume, preflight, drill; and what only looks at one: inspection.

May import: config and all below it; torch only where a command cannot do without.
"""
