"""A worker program (agemem_jax/envs/supervisor.py) on the standard library alone: counts what is said to it.

Its world depends on how many episodes the process has begun, as a used JVM's does. It fails in the way it is told to.
"""

import json
import os
import subprocess
import sys
import time


def main() -> None:
    how = sys.argv[1] if len(sys.argv) > 1 else ""
    if how == "refuse":
        print(json.dumps({"refused": "no engine; install it"}), flush=True)
        return
    if how == "stillborn":
        return
    if how == "mute":
        time.sleep(1000)
    child = subprocess.Popen(["sleep", "1000"])  # as a JVM would be
    print(json.dumps({"ready": {"pid": os.getpid(), "child": child.pid}}), flush=True)
    begun, said = 0, {}
    for line in sys.stdin:
        request = json.loads(line)
        do, answer = request["do"], {"id": request["id"]}
        if do == "start":
            begun += 1
            said[request["episode"]] = 0
            answer["text"] = f"world {begun} of {request['game']}"
        elif do == "step":
            text = request["text"]
            if text == "hang":
                time.sleep(1000)
            if text == "die":
                os._exit(1)
            if text == "garbage":
                print("}{ no JSON", flush=True)
                continue
            if text == "endless":
                sys.stdout.write("x" * (3 << 20))
                sys.stdout.flush()
            if text == "stranger":
                answer["id"] = -1
            said[request["episode"]] += 1
            count = said[request["episode"]]
            answer |= {
                "text": f"{text}, {count}", "progress": min(count, 4) / 4, "success": count == 4,
                "terminated": count == 4, "truncated": False, "understood": text != "mumble",
            }  # fmt: skip
        elif do == "close":
            del said[request["episode"]]
        elif do == "who":
            answer |= {"pid": os.getpid(), "child": child.pid, "begun": begun}
        print(json.dumps(answer), flush=True)


main()
