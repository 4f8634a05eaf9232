import sys

from benchmarks.cpu.cli import main

sys.exit(main())
