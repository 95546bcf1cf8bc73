"""A worker that answers as ScienceWorld's does, without Java: a house of few things, for errands and plain tasks."""

import json
import sys

DOORS = {
    "hallway": ["art studio", "bedroom", "greenhouse", "kitchen", "living room", "workshop"],
    "kitchen": ["bathroom", "hallway", "outside"],
    "outside": ["foundry", "greenhouse", "kitchen"],
    "greenhouse": ["hallway", "outside"],
    "art studio": ["hallway"], "bedroom": ["hallway"], "living room": ["hallway"], "workshop": ["hallway"],
    "bathroom": ["kitchen"], "foundry": ["outside"],
}  # fmt: skip
FIND = (
    "Your task is to find a(n) {}. First, focus on the thing. Then, move it to the red box in the {}."
)
MEASURE = (
    "Your task is to measure the temperature of unknown substance B, which is located around the living room. First, "
    "focus on the thermometer. Next, focus on the unknown substance B. If the unknown substance B temperature is above "
    "{}.0 degrees celsius, place it in the red box. If the unknown substance B temperature is below {}.0 degrees "
    "celsius, place it in the green box. The boxes are located around the {}."
)
KINDS = {"find-plant": "plant", "find-animal": "animal", "find-living-thing": "living thing"}
DEGREES = 40


def goal_of(task: str, variation: int) -> str:
    room = ["kitchen", "bedroom", "bathroom"][variation % 3]
    if task in KINDS:
        return FIND.format(KINDS[task], room)
    if task == "use-thermometer":
        limit = 50 if variation % 2 else 0
        return MEASURE.format(limit, limit, room)
    return f"Your task is {task}, {variation}."


class House:
    def __init__(self, task: str, variation: int):
        self.task, self.variation, self.goal = task, variation, goal_of(task, variation)
        self.room, self.held, self.focus = sorted(DOORS)[variation % len(DOORS)], [], []
        self.things = {room: [] for room in DOORS}
        self.things["greenhouse"] = [
            f"a flower pot {variation % 9 + 1} (containing a lemon tree in the adult stage, soil)",
            "a flower pot 10 (containing a substance called water)", "a jug (containing nothing)",
        ]  # fmt: skip
        self.things["outside"] = ["a dove egg", "a adult bee", "a fountain (containing a substance called water)"]
        self.things["kitchen"] = [
            "a thermometer, currently reading a temperature of 10 degrees celsius",
            "a counter. On the counter is: a bowl (containing a red apple, a banana), a drawer.",
        ]
        self.things["living room"] = ["unknown substance B", "a chair. On the chair is: nothing."]
        self.score = 0.0

    def look(self) -> str:
        lines = [f"This room is called the {self.room}. In it, you see: ", "\tthe agent", "\ta substance called air"]
        lines += [f"\t{thing}" for thing in self.things[self.room]] + ["You also see:"]
        return "\n".join([*lines, *(f"\tA door to the {room} (that is open)" for room in DOORS[self.room])])

    def step(self, text: str) -> str:
        """What is said; `score` is 1 when the goal is reached, below 0 when it cannot be any more."""
        here = self.things[self.room]

        def find(name: str) -> str | None:
            return next((thing for thing in here + self.held if name in thing), None)

        if text == "look around":
            return self.look()
        if text == "open door":
            self.score = 0.25
        elif text.startswith("open door"):
            return "The door is already open."
        elif text in ("focus on water", "focus on agent"):
            self.score = 1.0 if text == "focus on water" else -1.0
        elif text.startswith("go to "):
            if text[6:] not in DOORS[self.room]:
                return "It's not clear how to get there from here."
            self.room = text[6:]
            return f"You move to the {self.room}."
        elif text.startswith("pick up ") and (thing := find(text[8:])) in here:
            here.remove(thing)
            self.held.append(thing)
            return f"You move the {text[8:]} to the inventory."
        elif text.startswith("put down ") and (thing := find(text[9:])) in self.held:
            self.held.remove(thing)
            here.append(thing)
        elif text.startswith("use thermometer on ") and find("thermometer") and find(text[19:]):
            return f"the thermometer measures a temperature of {DEGREES} degrees celsius"
        elif text.startswith("focus on ") and find(text[9:]):
            self.focus.append(text[9:])
            self.score = 0.5
        elif text.startswith("move ") and " to " in text:
            name, box = text[5:].rsplit(" to ", 1)
            wanted = "green box" if "above 50" in self.goal else "red box"
            if find(name) in self.held and self.focus and self.goal.endswith(f"{self.room}."):
                self.score = 1.0 if box == wanted else -1.0
        else:
            return "No known action matches that input."
        return f"You {text}."


def main() -> None:
    if not any(option.startswith("-Xmx") for option in sys.argv):
        print(json.dumps({"refused": "no -Xmx among the options"}), flush=True)
        return
    tasks = json.loads(open(sys.argv[0] + ".tasks").read())
    print(json.dumps({"ready": {"version": "9.9", "tasks": tasks, "jvm": 0}}), flush=True)
    houses: dict[int, House] = {}
    for line in sys.stdin:
        request = json.loads(line)
        do, answer = request["do"], {"id": request["id"]}
        if do == "splits":
            answer |= {"train": [0, 1], "dev": [2], "test": [3, 4]}
        elif do == "goal":
            answer["text"] = goal_of(*request["game"][:2])
        elif do == "gold":
            known = request["game"][1] < 2
            answer["actions"] = ["open door to kitchen", "focus on water", "wait1"] if known else ["ERROR: no path"]
        elif do == "start":
            house = houses[request["episode"]] = House(*request["game"][:2])
            for command in request["commands"]:
                house.step(command)
            answer["text"] = house.look()
        elif do == "sight":
            answer["text"] = houses[request["episode"]].look()
        elif do == "step":
            house = houses[request["episode"]]
            text = house.step(request["text"])
            answer |= {
                "text": text, "progress": max(0.0, house.score), "success": house.score >= 1,
                "terminated": house.score >= 1 or house.score < 0, "truncated": False,
                "understood": not text.startswith(("No known", "It's not clear")),
            }  # fmt: skip
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
