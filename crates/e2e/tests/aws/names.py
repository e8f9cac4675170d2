"""Functions by names that no service can have, as CDK's and SAM's are:
`names.py CASE`. It needs what `events.py` needs.
"""

import json
import os
import sys

from clients import ACCOUNT, FUNCTION, arn, ask, client, create, other, refused, run_by, runtime, until, updated
from events import OFF, at, scheduler, target
from logs import logs
from urls import OPEN
from urls import ask as ask_url

# They differ in case alone.
NAMES = ["MyStack-Handler_1A2B", "mystack-handler_1a2b"]
GROUPS = [f"/aws/lambda/{name}" for name in NAMES]
# It answers and writes what it knows of itself, and the event.
HANDLER = runtime(
    """
names = ["AWS_LAMBDA_FUNCTION_NAME", "AWS_LAMBDA_LOG_GROUP_NAME", "STAGE"]
answer = [os.environ.get(name) for name in names]
answer.append(told["lambda-runtime-invoked-function-arn"])
print("seen", json.dumps([*answer, event]), flush=True)
answer = json.dumps(answer)
"""
)


def seen(name):
    """What the function has written."""
    pages = logs().get_paginator("filter_log_events").paginate(logGroupName=f"/aws/lambda/{name}")
    lines = [event["message"] for page in pages for event in page["events"]]
    return [json.loads(line.split(" ", 1)[1]) for line in lines if line.startswith("seen ")]


def made():
    """Two of them, invoked, versioned, aliased, changed, told and listed."""
    aws = client()
    for stage, name in enumerate(NAMES):
        new = create(aws, name, **run_by(HANDLER), Environment={"Variables": {"STAGE": str(stage)}})
        assert (new["FunctionName"], new["FunctionArn"]) == (name, arn(name)), new
        assert new["LoggingConfig"]["LogGroup"] == GROUPS[stage], new
    with refused("ResourceConflictException", 409, NAMES[0]):
        aws.create_function(FunctionName=NAMES[0], **FUNCTION)
    for stage, name in enumerate(NAMES):
        called(aws, name, str(stage))
    pages = aws.get_paginator("list_functions").paginate(PaginationConfig={"PageSize": 1})
    listed = [(one["FunctionName"], one["FunctionArn"]) for page in pages for one in page["Functions"]]
    assert {(name, arn(name)) for name in NAMES} <= set(listed), listed
    pages = logs().get_paginator("describe_log_groups").paginate(PaginationConfig={"PageSize": 1})
    groups = [group["logGroupName"] for page in pages for group in page["logGroups"]]
    assert set(GROUPS) <= set(groups), groups
    groups = logs().describe_log_groups(logGroupNamePrefix="/aws/lambda/My")["logGroups"]
    assert [group["logGroupName"] for group in groups] == GROUPS[:1], groups
    with refused("ResourceNotFoundException", 404, NAMES[0].upper()):
        aws.get_function(FunctionName=NAMES[0].upper())
    for wrong in ["my.function", "a" * 65]:
        with refused("InvalidParameterValueException", 400, wrong):
            aws.create_function(FunctionName=wrong, **FUNCTION)


def called(aws, name, stage):
    own = [name, f"/aws/lambda/{name}", stage]
    assert ask(aws, name)[1] == [*own, arn(name)]
    assert ask(aws, arn(name))[1] == [*own, arn(name)]
    version = aws.publish_version(FunctionName=name)
    assert (version["FunctionArn"], version["Version"]) == (arn(name, "1"), "1"), version
    alias = aws.create_alias(FunctionName=name, Name="live", FunctionVersion="1")
    assert alias["AliasArn"] == arn(name, "live"), alias
    assert ask(aws, name, Qualifier="live")[1] == [*own, arn(name, "live")]
    got = aws.get_function(FunctionName=f"{ACCOUNT}:function:{name}:live")["Configuration"]
    assert (got["FunctionName"], got["FunctionArn"], got["Version"]) == (name, arn(name, "live"), "1"), got
    aws.update_function_configuration(FunctionName=name, Description="changed")
    updated(aws, name)
    assert ask(aws, name)[1] == [*own, arn(name)]

    to = {"OnSuccess": {"Destination": arn(name, "live")}}
    config = aws.put_function_event_invoke_config(FunctionName=name, DestinationConfig=to)
    assert config["FunctionArn"] == arn(name, "$LATEST"), config
    aws.invoke(FunctionName=name, InvocationType="Event", Payload=json.dumps("an event"))
    until("the event", lambda: [*own, arn(name), "an event"] in seen(name))
    reported = [arn(name, "live"), arn(name) + ":$LATEST"]
    until("its record", lambda: [
        line for line in seen(name)
        if line[3] == reported[0] and line[4] and line[4]["requestContext"]["functionArn"] == reported[1]
    ])
    aws.delete_function_event_invoke_config(FunctionName=name)

    when, once = at(2)
    plan = f"plan-{stage}"
    scheduler().create_schedule(
        Name=plan, ScheduleExpression=once, Target=target(arn(name), Input='"on time"'), FlexibleTimeWindow=OFF
    )
    assert scheduler().get_schedule(Name=plan)["Target"]["Arn"] == arn(name)
    until("it fires", lambda: [*own, arn(name), "on time"] in seen(name))

    permission = aws.add_permission(
        FunctionName=name, StatementId="other", Action="lambda:InvokeFunction", Principal=os.environ["OTHER_ACCOUNT"]
    )
    assert json.loads(permission["Statement"])["Resource"] == arn(name), permission
    assert ask(other(), arn(name))[1] == [*own, arn(name)]
    aws.add_permission(FunctionName=name, **OPEN)
    url = aws.create_function_url_config(FunctionName=name, AuthType="NONE")
    assert url["FunctionArn"] == arn(name), url
    reply, body = ask_url(url["FunctionUrl"])
    assert reply.status == 200 and json.loads(body) == [*own, arn(name)], body
    aws.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=7)
    assert aws.get_function_concurrency(FunctionName=name)["ReservedConcurrentExecutions"] == 7


def kept():
    """The same after a restart."""
    aws = client()
    for stage, name in enumerate(NAMES):
        assert ask(aws, name, Qualifier="live")[1][:3] == [name, GROUPS[stage], str(stage)]
        assert scheduler().get_schedule(Name=f"plan-{stage}")["Target"]["Arn"] == arn(name)


def service():
    """Skiff's commands take a service's name, which is not its function's, and is taken."""
    aws, taken = client(), os.environ["SERVICE"]
    until("it is typed", lambda: [NAMES[0], GROUPS[0], "0", arn(NAMES[0]), "typed"] in seen(NAMES[0]))
    plans = scheduler().list_schedules(NamePrefix="typed")["Schedules"]
    assert [plan["Target"]["Arn"] for plan in plans] == [arn(NAMES[0])], plans
    for call in [aws.get_function, aws.delete_function, aws.invoke]:
        with refused("ResourceNotFoundException", 404, taken):
            call(FunctionName=taken)
    with refused("ResourceConflictException", 409, taken):
        aws.create_function(FunctionName=taken, **FUNCTION)


def gone():
    """Deleted, one after the other; and a service that is somebody's is left alone."""
    aws = client()
    aws.delete_function(FunctionName=NAMES[0])
    with refused("ResourceNotFoundException", 404, NAMES[0]):
        aws.get_function(FunctionName=NAMES[0])
    assert ask(aws, NAMES[1])[1][0] == NAMES[1]
    with refused("ResourceNotFoundException", 400, "log group"):
        logs().describe_log_streams(logGroupName=GROUPS[0])
    aws.delete_function(FunctionName=NAMES[1])


def taken():
    """Somebody has made a service of the name that the first would have."""
    aws = client()
    with refused("ResourceConflictException", 409, NAMES[0]):
        aws.create_function(FunctionName=NAMES[0], **FUNCTION)
    for call in [aws.get_function, aws.delete_function]:
        with refused("ResourceNotFoundException", 404, NAMES[0]):
            call(FunctionName=NAMES[0])


if __name__ == "__main__":
    globals()[sys.argv[1]]()
