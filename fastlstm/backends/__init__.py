"""The backends: which there are, which serves a call, and what registers their kernels."""

from .table import DTYPES, NAMES, Call, check_name, select

__all__ = ["DTYPES", "NAMES", "Call", "check_name", "select"]
