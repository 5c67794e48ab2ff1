"""What needs no model: new, runs, report, verify, prune, probe, explain_resume, tensorboard, preflight, drill.

What looks at a model or data is in inspection/.

May import: config and all below it; torch only where a command cannot do without.
"""
