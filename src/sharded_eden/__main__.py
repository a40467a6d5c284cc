"""`python -m sharded_eden`: the command line."""

import sys

from sharded_eden.cli import main

if __name__ == "__main__":
    sys.exit(main(prog_name="python -m sharded_eden"))
