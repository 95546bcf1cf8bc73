"""A worker of agemem_jax/benchmarks/scienceworld with a clock: python scienceworld_clock.py WORKER JAVA OPTION ...

WORKER is worker.py, whose requests it answers; also "spent", with the seconds that calls of the engine have taken in
steps since it was last asked.
"""

import importlib.util
import sys
import time


def worker(path: str):
    """worker.py as a module; it imports nothing of the project."""
    spec = importlib.util.spec_from_file_location("worker", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    module = worker(sys.argv.pop(1))

    class Timed(module.Engine):
        spent_s = 0.0

        def step(self, request):
            began = time.perf_counter()
            answer = super().step(request)
            self.spent_s += time.perf_counter() - began
            return answer

        def spent(self, _):
            spent, self.spent_s = self.spent_s, 0.0
            return {"seconds": spent}

    module.Engine = Timed
    module.main()


if __name__ == "__main__":
    main()
