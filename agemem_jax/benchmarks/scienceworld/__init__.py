"""ScienceWorld: 30 kinds of elementary-school experiments in a house, played by the authors' own engine.

The engine is a JVM. Neither it nor the package `scienceworld` (Apache-2.0) is ever loaded into this process: worker.py
runs in processes of its own, with the Python that has the package.
"""
