"""Reports of a store: pages that need neither the store nor another host to be read."""

from __future__ import annotations
