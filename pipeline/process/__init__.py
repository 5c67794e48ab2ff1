"""This process and its peers: rank, signals, timeouts, memory, error files.

May import: errors. Never Lightning.
"""
