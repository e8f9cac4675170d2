"""External extensions from layers, as AWS's own clients see them: `extensions.py CASE`."""

import base64
import os
import sys

from clients import ACCOUNT, ask, client, until
from zips import PYTHON, active, zipped

# It notes what is there when the runtime begins.
HANDLER = """
import json, os, time
def read(file):
    try:
        with open(f"/tmp/{file}") as lines:
            return [json.loads(line) for line in lines]
    except FileNotFoundError:
        return []
BEFORE = read("found")
def handler(event, context):
    if event == "slow":
        time.sleep(100)
    if event == "leave":
        os._exit(4)
    print("the function gets", event)
    return {"before": BEFORE, "told": read("told"), "user": os.getuid()}
"""


def layer(aws, name, mode=0o755):
    """A layer with one extension, and a folder that is none."""
    with open(os.path.join(os.path.dirname(__file__), "watcher.py"), "rb") as file:
        files = [(f"extensions/{name}", file.read(), mode), ("extensions/folder/file", "", 0o755)]
    made = aws.publish_layer_version(LayerName=name, Content={"ZipFile": zipped(*files)})
    return made["LayerVersionArn"]


def create(aws, name, *layers, **environment):
    code = {"ZipFile": zipped(("mine.py", HANDLER))}
    aws.create_function(
        FunctionName=name, Code=code, Layers=layers, Environment={"Variables": environment}, **PYTHON
    )


def failed(aws, name, *parts):
    """It cannot become active, for a reason that has these parts."""
    got = until(
        f"{name} fails", lambda: (got := aws.get_function_configuration(FunctionName=name))["State"] != "Pending" and got
    )
    assert got["State"] == "Failed", got
    for part in parts:
        assert part in got["StateReason"], got
    aws.delete_function(FunctionName=name)


def watches():
    """One of them, with telemetry."""
    aws = client()
    create(aws, "watched", layer(aws, "watcher"), MINE="1")
    active(aws, "watched")
    answer = ask(aws, "watched", 1)[1]
    (found,) = answer["before"]
    assert (found["cwd"], found["name"], found["function"]) == ("/", "watcher", "watched"), found
    assert found["account"] == ACCOUNT and found["user"] == answer["user"], answer
    told = set(found["environment"])
    assert {"MINE", "AWS_LAMBDA_RUNTIME_API", "AWS_REGION", "AWS_LAMBDA_FUNCTION_NAME"} <= told, told
    withheld = {"_HANDLER", "LAMBDA_TASK_ROOT", "AWS_LAMBDA_LOG_STREAM_NAME", "AWS_EXECUTION_ENV"}
    assert not withheld & told, told

    def seen():
        told = ask(aws, "watched", 2)[1]["told"]
        records = {kind: [event["record"] for event in told if event["type"] == kind] for kind in ["extension", "function"]}
        return "watcher gets INVOKE " in records["extension"] and any(records["function"]) and records

    records = until("the telemetry of both", seen)
    assert "the function gets 1" in records["function"], records
    assert not any("watcher" in record for record in records["function"]), records
    assert not any("function" in record for record in records["extension"]), records


def again():
    """After another server has taken over."""
    aws = client()
    answer = ask(aws, "watched", 3)[1]
    assert len(answer["before"]) == 1, answer


def changed():
    """Its instance is replaced, and told of its end."""
    aws = client()
    aws.update_function_configuration(FunctionName="watched", Handler="mine.handler", Description="changed")
    aws.get_waiter("function_updated_v2").wait(FunctionName="watched", WaiterConfig={"Delay": 1})


def crashes():
    """One that ends takes its instance along, and the caller is told."""
    aws = client()
    create(aws, "leaves-late", layer(aws, "leaver"), LEAVE="INVOKE")
    active(aws, "leaves-late")
    for _ in range(2):
        reply, told = ask(aws, "leaves-late", "slow")
        assert reply["FunctionError"] == "Unhandled", reply
        assert told["errorType"] == "Extension.Crash", told
        request = reply["ResponseMetadata"]["RequestId"]
        assert told["errorMessage"] == f"RequestId: {request} Error: exit status 3", told
    aws.delete_function(FunctionName="leaves-late")
    create(aws, "leaves-early", layer(aws, "leaver"), LEAVE="START")
    failed(aws, "leaves-early", "Extension.Crash", "exit status 3")


def posts():
    """One that says that it cannot go on is believed."""
    aws = client()
    create(aws, "posts", layer(aws, "poster"), POST="INVOKE")
    active(aws, "posts")
    reply, told = ask(aws, "posts", "slow")
    assert reply["FunctionError"] == "Unhandled", reply
    assert told["errorType"] == "Extension.ExitError", told
    assert told["errorMessage"].endswith("Error: Its.Own"), told
    aws.delete_function(FunctionName="posts")


def outlasts():
    """After a timeout it has some time, and the runtime has none."""
    aws = client()
    create(aws, "outlasts", layer(aws, "outlaster"))
    active(aws, "outlasts")
    aws.update_function_configuration(FunctionName="outlasts", Timeout=2)
    aws.get_waiter("function_updated_v2").wait(FunctionName="outlasts", WaiterConfig={"Delay": 1})

    def told():
        reply = aws.invoke(FunctionName="outlasts", Payload='"slow"', LogType="Tail")
        assert "Sandbox.Timedout" in reply["Payload"].read().decode(), reply
        log = base64.b64decode(reply["LogResult"]).decode()
        ready = "EXTENSION\tName: outlaster\tState: Ready\tEvents: [INVOKE, SHUTDOWN]\nSTART RequestId: "
        assert ready in log and "\tStatus: timeout\n" in log, log
        return "outlaster gets SHUTDOWN timeout\n" in log

    # It has two seconds, which a busy machine may not give it.
    until("an extension is told of a timeout", told)
    aws.delete_function(FunctionName="outlasts")


def survives():
    """When the runtime ends by itself it has some time, and nobody waits for it."""
    aws = client()
    create(aws, "survives", layer(aws, "survivor"))
    active(aws, "survives")
    for _ in range(2):
        reply, told = ask(aws, "survives", "leave")
        request = reply["ResponseMetadata"]["RequestId"]
        words = f"RequestId: {request} Error: Runtime exited with error: exit status 4"
        assert (told["errorType"], told["errorMessage"]) == ("Runtime.ExitError", words), told
        assert "before" in ask(aws, "survives", 1)[1]


def refuses():
    """What cannot be executed ends the start."""
    aws = client()
    create(aws, "plain-file", layer(aws, "plain", 0o644))
    failed(aws, "plain-file", "Extension.LaunchError", "/opt/extensions/plain")


def several():
    """Each has a process of its own, and the runtime waits for all."""
    aws = client()
    create(aws, "several", layer(aws, "first"), layer(aws, "second"))
    active(aws, "several")
    answer = ask(aws, "several", 1)[1]
    assert sorted(found["name"] for found in answer["before"]) == ["first", "second"], answer
    aws.delete_function(FunctionName="several")


if __name__ == "__main__":
    globals()[sys.argv[1]]()
