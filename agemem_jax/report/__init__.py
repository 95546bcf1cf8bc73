"""The report of a run: one page made from the files in its workdir. Host only; imports no JAX."""
