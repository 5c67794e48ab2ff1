"""What was asked for, validated; the resume point; compatibility with the run that is resumed.

May import: training and all below it.
"""
