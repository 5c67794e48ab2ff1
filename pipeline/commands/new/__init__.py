"""`python -m pipeline new <folder>`: a small project of a user's own, which trains and builds its image at once.

template/ is that project, as it is written but for three words; names.py says what a project may be called, project.py
writes it. May import: run and all below it; never torch.
"""
