"""Where this program and the user's own modules are looked for."""

import os
import sys


def look_for_users_modules_last() -> None:
    """Find modules in the current folder also where Python was told not to look there first (-P, PYTHONSAFEPATH).

    That is how this program runs beside a module of the user's own that is called `pipeline`. Children do so, too.
    """
    if sys.flags.safe_path:
        os.environ["PYTHONSAFEPATH"] = "1"
        sys.path.append(os.getcwd())
