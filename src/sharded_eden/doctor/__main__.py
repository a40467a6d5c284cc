"""`python -m sharded_eden.doctor [FOLDER] [--json]`: as `sharded-eden doctor`, also where a needed package is broken."""

import sys

from sharded_eden.doctor.report import examine
from sharded_eden.errors import EdenError


def main(arguments: list[str]) -> int:
    """Write the report to stdout and return the exit status: 0, 1 where something needed is broken, 2 after wrong arguments."""
    folders = [each for each in arguments if each != "--json"]
    if len(folders) > 1 or any(each.startswith("-") for each in folders):
        sys.stderr.write("usage: python -m sharded_eden.doctor [FOLDER] [--json]\n")
        return 2
    try:
        report = examine(folders[0] if folders else None)
    except (EdenError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write(report.json() if "--json" in arguments else report.text())
    return 0 if report.is_ok else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
