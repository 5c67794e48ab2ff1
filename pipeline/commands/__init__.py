"""What needs no model: runs, verify, prune, probe, explain_resume, preflight, drill.

May import: config and all below it; torch only where a command cannot do without.
"""
