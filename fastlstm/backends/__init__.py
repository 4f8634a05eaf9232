"""The backends: which there are, which serves a call, and what registers their kernels."""

from .table import DTYPES, NAMES, TABLE, Call, check_name, select

__all__ = ["DTYPES", "NAMES", "TABLE", "Call", "check_name", "select"]
