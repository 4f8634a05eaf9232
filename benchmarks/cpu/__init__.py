"""The benchmark on the CPU: ``python -m benchmarks``.

Files: ``cli``, ``options``; ``sweep`` (measures cell by cell), ``floor`` (the least possible time),
``rates`` (the cores' peak rates), ``busy`` (other processes on the cores); other kinds of run:
``products``, ``engines`` and ``engine_rounds`` (other engines), ``memory``, ``errors``,
``features``; ``report``, ``tables``, ``plots``.
"""
