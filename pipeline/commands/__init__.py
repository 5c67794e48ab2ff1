"""What needs no model: verify, prune, probe, explain_resume, tensorboard, preflight, drill.

May import: config and all below it; torch only where a command cannot do without.
"""
