"""Where training loaders of the user's own stand, so that an epoch resumes in its middle without an order of ours.

loader_position.py is the way in; loader_compat.py names the private members of Lightning's loops and loaders that it
relies on. May import what `training` may, and of it compat.py and state/.
"""
