"""The real TextWorld, playing ALFWorld's games for envs/supervisor.py; for the Python that has `alfworld`."""

import json
import sys


def main() -> None:
    talk, sys.stdout = sys.stdout, sys.stderr  # the engine prints
    say = lambda message: print(json.dumps(message), file=talk, flush=True)  # noqa: E731
    try:
        from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
        from textworld import EnvInfos
        from textworld.envs.pddl import PddlEnv
    except ImportError as error:
        say({"refused": f"{error}; pip install alfworld"})
        return
    say({"ready": {}})
    episodes = {}
    for line in sys.stdin:
        request = json.loads(line)
        do, episode, answer = request["do"], request.get("episode"), {"id": request["id"]}
        if do == "start":
            env = AlfredDemangler(PddlEnv(EnvInfos(won=True, admissible_commands=True)))
            env.load(request["game"])
            seen = env.reset()
            episodes[episode] = env
            answer |= {"text": seen.feedback, "commands": seen.admissible_commands}
        elif do == "step":
            seen, _, done = episodes[episode].step(request["text"])
            answer |= {
                "text": seen.feedback, "progress": float(seen.won), "success": seen.won, "terminated": done,
                "truncated": False, "understood": seen.feedback != "Nothing happens.",
                "commands": seen.admissible_commands,
            }  # fmt: skip
        elif do == "close":
            episodes.pop(episode).close()
        say(answer)


main()
