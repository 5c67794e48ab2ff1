"""What was asked for, validated; the resume point; compatibility with the run that is resumed.

flags.py adds this project's flags, messages.py rewords the parser's errors, validate.py checks what was parsed,
saved_config.py reads and writes a run's fit.yaml, resume_point.py chooses the checkpoint, compatibility.py compares
this start with it, mistakes.py tells which exceptions only the user can fix. May import: training and all below it.
"""
