"""What one training step takes, and what data consist of, before anything is trained for good.

May import: compat, data, errors. Nothing here writes a file.
"""
