"""Packaging. The lower bounds are the versions that the tests run on; see the Makefile for the usual way in."""

from setuptools import find_packages, setup

JAX = ">=0.10,<0.13"

setup(
    name="agemem_jax",
    version="0.1.0",
    description="Agents that learn to manage their own memory, with the whole loop on the accelerator",
    python_requires=">=3.11",
    packages=find_packages(include=["agemem_jax*", "configs*", "experiments*"]),
    package_data={"agemem_jax": ["assets/**/*", "report/*.html", "report/*.css", "report/*.js"]},
    install_requires=[
        f"jax{JAX}",
        "flax>=0.12.8,<0.14",
        "optax>=0.2.8,<0.4",
        "orbax-checkpoint>=0.12.8,<0.14",
        "ml-collections>=1.1,<2",
        "absl-py>=2.3,<3",
        "numpy>=2.1,<3",
        "transformers>=5.23,<6",
        "sentencepiece>=0.2.1,<0.3",
        "safetensors>=0.6,<1",
        "gguf>=0.17,<1",
        "tensorflow-datasets>=4.9.9,<5",
        "tensorboardX>=2.6.4,<3",
        "tqdm>=4.67,<5",
        "jinja2>=3.1,<4",
        "matplotlib>=3.10,<4",
    ],
    extras_require={
        # The parity tests compare with transformers' torch models, the planner's compile for TPUs.
        "test": [
            f"jax[tpu]{JAX}",
            "pytest>=8.4",
            "pytest-timeout>=2.4",
            "pytest-xdist>=3.6",
            "hypothesis>=6.140",
            "ruff>=0.13",
            "torch==2.13.0",
        ],
        "tpu": [f"jax[tpu]{JAX}"],
        "cuda": [f"jax[cuda13]{JAX}"],
    },
)
