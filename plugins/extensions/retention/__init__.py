"""The `retention` extension: deletes what is older than its table's policy, and tells how much the database holds.

    extensions:
      retention:
        days: 90

Needs `database`. Policies are rows of the table `retention_policies`; only tables that have one are ever cleaned up.
"""

from __future__ import annotations

from pipeline import Declaration, hookimpl
from plugins.extensions.retention.extension import RetentionConfig, RetentionExtension


@hookimpl
def declare_components() -> list[Declaration]:
    return [Declaration("retention", RetentionExtension, RetentionConfig)]
