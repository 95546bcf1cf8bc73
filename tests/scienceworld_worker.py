"""A worker that answers as ScienceWorld's does, without Java: worlds drift from episode to episode of a process."""

import json
import sys


def main() -> None:
    if "-Xmx1g" not in sys.argv:
        print(json.dumps({"refused": "no -Xmx among the options"}), flush=True)
        return
    tasks = json.loads(sys.argv[0] and open(sys.argv[0] + ".tasks").read())
    print(json.dumps({"ready": {"version": "9.9", "tasks": tasks, "jvm": 0}}), flush=True)
    begun, at = 0, {}
    for line in sys.stdin:
        request = json.loads(line)
        do, answer = request["do"], {"id": request["id"]}
        if do == "splits":
            answer |= {"train": [0, 1], "dev": [2], "test": [3, 4]}
        elif do == "goal":
            answer["text"] = f"Your task is {request['game'][0]}, {request['game'][1]}."
        elif do == "gold":
            answer["actions"] = ["open door", "focus on water"] if request["game"][1] < 2 else ["ERROR: no path"]
        elif do == "start":
            begun += 1
            at[request["episode"]] = 0
            answer["text"] = f"This room is the hallway. The cup holds {begun} drops."
        elif do == "step":
            at[request["episode"]] += 1
            won, lost = request["text"] == "focus on water", request["text"] == "focus on agent"
            answer |= {
                "text": f"You {request['text']}.", "progress": 1.0 if won else 0.0 if lost else 0.25, "success": won,
                "terminated": won or lost, "truncated": False, "understood": True,
            }  # fmt: skip
        print(json.dumps(answer), flush=True)


main()
