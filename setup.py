"""Packaging: what is promised is what the suite has run on; see the Makefile for the usual way in.

Lower bounds: Python 3.11 with jax 0.10.2, the newest that installs there. Upper ones: Python 3.13 with jax 0.12.0.1.
"""

from setuptools import find_packages, setup

JAX = ">=0.10.2,<0.13"
MINIGRID = "minigrid>=3.2,<3.3"

setup(
    name="agemem_jax",
    version="0.1.0",
    description="Agents that learn to manage their own memory, with the whole loop on the accelerator",
    python_requires=">=3.11,<3.14",
    packages=find_packages(include=["agemem_jax*", "configs*", "experiments*"]),
    package_data={
        "agemem_jax": ["assets/**/*", "benchmarks/**/*.pddl", "report/*.html", "report/*.css", "report/*.js"],
    },
    install_requires=[
        f"jax{JAX}",
        "flax>=0.12.8,<0.13",
        "optax>=0.2.8,<0.3",
        "orbax-checkpoint>=0.12.8,<0.13",
        "ml-collections>=1.1,<2",
        "absl-py>=2.5,<3",
        "numpy>=2.4,<3",
        "transformers>=5.24,<6",
        "tokenizers>=0.23,<1",  # transformers narrows it
        "sentencepiece>=0.2.3,<0.3",
        "safetensors>=0.8,<1",
        "gguf>=0.19,<1",
        "tensorflow-datasets>=4.9.10,<5",
        "tensorboardX>=2.6.5,<3",
        "tqdm>=4.70,<5",
        "jinja2>=3.1,<4",
        "matplotlib>=3.11,<4",
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
            MINIGRID,
        ],
        "babyai": [MINIGRID],  # makes the levels
        "scienceworld": ["scienceworld==1.2.3"],  # Apache-2.0; runs in processes of its own, with a Java 17 runtime
        "tpu": [f"jax[tpu]{JAX}"],
        "cuda": [f"jax[cuda13]{JAX}"],
    },
)
