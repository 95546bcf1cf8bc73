"""BEAM (Tavakoli et al. 2026)."""
