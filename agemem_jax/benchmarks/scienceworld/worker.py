"""Plays ScienceWorld for envs/supervisor.py: a script for the Python that has `scienceworld`; nothing of this project.

It speaks with the engine directly. The package's own `step` also lists every valid action after each one, which takes
22 times as long.

One JVM plays several episodes, each in an interface of its own. They share its random numbers and its count of objects,
which `_play` sets anew before each action: an episode is a function of its game and its actions, whatever else the JVM
plays and has played. That takes -XX:hashCode=2 (pool.py) too: the engine's sets go by the places of objects in memory.

Requests: "start" {"episode", "game": [task, variation, simplifications], "commands": those taken at once, or none},
"step" {"episode", "text"}, "sight" {"episode"}, "close", and without an episode "splits" {"task"}, "goal" {"game"} and
"gold" {"game"}.
"""

import ctypes
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading

# What the engine says to what it does not take; to "Ambiguous request: ..." the number of a meaning is an answer.
NOT_TAKEN = re.compile(
    r"No known action matches that input\.|Unknown action\.|Ambiguous request:|It'?s not clear how to |I'm not sure |"
    r"(?:You|That|Something) can't |That (?:object )?(?:is )?already |The door doesn't |"
    r"[^.\n]*(?: is not | isn't | is already |,? can't be )[^\n]*\Z"
)
SET_PDEATHSIG = 1


def say(**message):
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def is_refusal(text):
    """Whether an answer says that an action could not be taken."""
    return bool(NOT_TAKEN.match(text.strip()))


class Episode:
    """A world, and what is its own of what worlds share."""

    def __init__(self, world, ids):
        self.world, self.turn, self.ids = world, 0, ids


class Engine:
    """A JVM with the simulator; it dies with this process, whoever else holds its pipes."""

    def __init__(self, java, options):
        from py4j.java_gateway import GatewayParameters, JavaGateway, find_jar_path
        from scienceworld.constants import BASEPATH, JAR_PATH

        logging.disable(logging.CRITICAL)  # what py4j says of a JVM that died
        libc, parent = ctypes.CDLL(None), os.getpid()

        def die_with_parent():
            if hasattr(libc, "prctl"):
                libc.prctl(SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)

        path = os.pathsep.join([find_jar_path(), JAR_PATH])
        self.process = subprocess.Popen(
            [java, *options, "-classpath", path, "py4j.GatewayServer", "--die-on-broken-pipe", "--enable-auth", "0"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=BASEPATH, close_fds=True,
            preexec_fn=die_with_parent,
        )  # fmt: skip
        port, token = self.process.stdout.readline(), self.process.stdout.readline()
        if not token:
            raise RuntimeError(f"{java} {' '.join(options)} ends with exit code {self.process.wait()}")
        # The engine prints a lot; a full pipe would stop it.
        threading.Thread(target=self._drain, daemon=True).start()
        self.gateway = JavaGateway(
            gateway_parameters=GatewayParameters(port=int(port), auth_token=token.decode().strip(), auto_field=True)
        )
        jvm = self.gateway.jvm
        self.new = jvm.scienceworld.runtime.pythonapi.PythonInterface
        self.random = getattr(getattr(jvm.scala.util, "Random$"), "MODULE$")
        self.ids = getattr(getattr(jvm.util, "UniqueIdentifier$"), "MODULE$")
        self.set_count = getattr(self.ids, "count_$eq")
        self.episodes = {}
        self.idle = self.new()  # for questions about tasks; starting the classes takes a second

    def _drain(self):
        while self.process.stdout.read(1 << 16):
            pass

    def answer(self, request):
        return getattr(self, request["do"])(request)

    def start(self, request):
        world = self.new()
        self._load(world, request["game"])
        episode = self.episodes[request["episode"]] = Episode(world, self.ids.count())
        text = self._play(episode, "look around")  # as the package's own reset does
        commands = request.get("commands", ())
        for command in commands:
            self._play(episode, command)
        return {"text": world.freeActionLook() if commands else text}

    def step(self, request):
        episode = self.episodes[request["episode"]]
        text = self._play(episode, request["text"])
        score, done = episode.world.getScore(), episode.world.getCompleted()
        return {
            "text": text,
            "progress": max(0.0, score),
            "success": score >= 1,
            "terminated": done or score < 0,  # a wrong focus fails the task
            "truncated": False,
            "understood": not is_refusal(text),
        }

    def sight(self, request):
        """What is seen and held now; it takes no time in the world."""
        world = self.episodes[request["episode"]].world
        return {"text": world.freeActionLook(), "held": world.freeActionInventory()}

    def close(self, request):
        episode = self.episodes.pop(request["episode"], None)
        if episode is not None:
            self.gateway.detach(episode.world)  # else the JVM keeps it
        return {}

    def _play(self, episode, text):
        self.random.setSeed(episode.turn)
        self.set_count(episode.ids)
        text = episode.world.step(text)
        episode.turn, episode.ids = episode.turn + 1, self.ids.count()
        return text

    def splits(self, request):
        self._load(self.idle, [request["task"], 0, ""])
        get = self.idle
        return {
            "train": list(get.getVariationsTrain()), "dev": list(get.getVariationsDev()),
            "test": list(get.getVariationsTest()),
        }  # fmt: skip

    def goal(self, request):
        self._load(self.idle, request["game"])
        return {"text": self.idle.getTaskDescription()}

    def gold(self, request):
        self._load(self.idle, request["game"], gold=True)
        return {"actions": list(self.idle.getGoldActionSequence())}

    def _load(self, world, game, gold=False):
        task, variation, simplifications = game
        problem = world.load(task, variation, simplifications, gold)
        if problem:
            raise ValueError(problem)


def main():
    java, *options = sys.argv[1:]
    try:
        import scienceworld
        from py4j.protocol import Py4JJavaError
    except ImportError as error:
        remedy = "in it, pip install scienceworld==1.2.3, which this project's extra 'scienceworld' does"
        say(refused=f"{sys.executable} has no ScienceWorld ({error}); {remedy}")
        return
    from scienceworld.constants import ID2TASK

    try:
        engine = Engine(java, options)
    except (OSError, RuntimeError) as error:
        say(refused=f"Java does not start ({error}); install a Java 17 runtime")
        return
    say(ready={"version": scienceworld.__version__, "tasks": list(ID2TASK.values()), "jvm": engine.process.pid})
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = engine.answer(request)
        except (Py4JJavaError, ValueError) as error:  # of this episode alone; all else ends the process
            answer = {"failed": f"the engine failed: {str(error).splitlines()[0]}"}
        say(id=request["id"], **answer)


if __name__ == "__main__":
    main()
