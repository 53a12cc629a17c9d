"""Files that are nearly right. `pytest tests/fuzz --hypothesis-profile thousands` tries 10,000 cases."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

SLOW = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture)

settings.register_profile("hundreds", max_examples=60, deadline=None, derandomize=True, suppress_health_check=SLOW)
settings.register_profile("thousands", max_examples=1500, deadline=None, suppress_health_check=SLOW, print_blob=True)
settings.load_profile("hundreds")
