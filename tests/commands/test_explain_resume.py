"""explain_resume has one flag of its own beside those of fit, and needs no Lightning to parse it."""

import sys

from tests.support.commands import command


def test_help_and_a_mistake_in_its_own_flag_need_no_lightning() -> None:
    program = (
        "import sys\n"
        "from pipeline.__main__ import run\n"
        "try:\n    status = run()\n"
        "except SystemExit as end:\n    status = end.code or 0\n"
        "assert 'torch' not in sys.modules and 'lightning' not in sys.modules\n"
        "sys.exit(status)"
    )
    helped = command(sys.executable, "-c", program, "explain_resume", "--help")
    assert helped.status == 0, helped.text
    assert "--world_size" in helped.out
    refused = command(sys.executable, "-c", program, "explain_resume", "--world_size=many")
    assert refused.status == 2, refused.text
    assert "world_size: invalid int value: 'many'" in refused.err
