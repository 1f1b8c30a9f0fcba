"""`python -m tests.faults.fuzz --seed 0 --only 4711` tries one case again and shows it with its answers; without
`--only`, `--cases` of them from number `--first` on."""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.faults.fuzz.campaign import run_campaign
from tests.faults.fuzz.cases import Cases
from tests.faults.fuzz.served import fuzzed_server, target_of
from tests.server.forked import Forker
from tests.server.harness import tiny_folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--only", type=int)
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, Forker() as forker:
        folder = Path(name)
        with fuzzed_server(forker, tiny_folder(folder), folder) as server:
            target = target_of(server.port, server.client, given.seed)
            first, num_cases = (given.first, given.cases) if given.only is None else (given.only, 1)
            if given.only is not None:
                for piece in Cases(target.document, target.seed, target.snapshot).case(first).pieces:
                    sys.stdout.write(f"{piece!r}\n")
            started = time.monotonic()
            report = run_campaign(target, range(first, first + num_cases), given.processes)
            seconds = time.monotonic() - started
            sys.stdout.writelines(f"{finding}\n" for finding in report.findings)
            sys.stdout.write(f"{num_cases} cases in {seconds:.1f} s, the slowest {report.slowest_seconds:.2f} s\n")
            complaints = [line for line in server.log.splitlines() if "Invalid HTTP request" not in line]
            sys.stdout.write("\n".join([str(report.num_by_status), *complaints, ""]))
    return 1 if report.findings else 0


if __name__ == "__main__":
    sys.exit(main())
