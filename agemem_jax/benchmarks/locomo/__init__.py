"""LoCoMo (Maharana et al. 2024)."""
