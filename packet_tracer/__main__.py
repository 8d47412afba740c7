"""``python -m packet_tracer`` is ``ptrace``."""

import sys

from packet_tracer.cli import main

if __name__ == "__main__":
    sys.exit(main())
