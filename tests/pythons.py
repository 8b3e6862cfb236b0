"""What releases of Python say differently."""

import sys

TOO_DEEP = "Stack overflow" if sys.version_info >= (3, 14) else "maximum recursion"
"""How the error begins of JSON that is nested too deeply to be read."""
