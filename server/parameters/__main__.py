"""`python -m server.parameters` prints the README's table."""

import sys

from server.parameters.table import parameter_table

if __name__ == "__main__":
    sys.stdout.write(f"{parameter_table()}\n")
