"""AgeMem in JAX: agents that learn to manage their own memory, with the whole loop on the accelerator."""
