"""Imports `sdar.functional` with its shapes checked, of every call and what it returns, by the names in its annotations.

Before anything else of the package: what is imported already stays as it is. A run has no such checks.
"""

from jaxtyping import install_import_hook

with install_import_hook("sdar.functional", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"):
    import sdar.functional  # noqa: F401
