"""The benchmarks: fastlstm and other implementations in one process, checked before they are timed.

Start with ``python -m benchmarks --help``, on a GPU ``python -m benchmarks.gpu --help``. Folders:
``common`` (shared by both), ``cpu``, ``gpu``; ``machines`` writes the documentation's tables from
``results``. Nothing in ``fastlstm`` imports this package.
"""
