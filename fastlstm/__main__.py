"""python -m fastlstm: what is installed here, and which backend serves which device and dtype."""

import argparse
import json

from .backends import report


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m fastlstm", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the same as JSON")
    args = parser.parse_args(argv)
    found = report.collect()
    if args.json:
        print(json.dumps(found, indent=2))
    else:
        report.show(found)


if __name__ == "__main__":
    main()
