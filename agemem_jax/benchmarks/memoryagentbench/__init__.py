"""MemoryAgentBench (Hu et al. 2026)."""
