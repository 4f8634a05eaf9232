"""The benchmark on the CPU: ``python -m benchmarks``.

Rooms: ``cli``, ``options``; ``sweep`` (all of it, cell by cell), ``floor`` (how long it must take),
``rates`` (what the cores can do at most), ``busy`` (beside other processes); ``products``,
``engines`` and ``engine_rounds`` (other engines), ``memory``, ``errors`` and ``features`` (other
kinds of run); ``report``, ``tables``, ``plots``.
"""
