"""What AWS's own clients see of event invocations: `events.py CASE`.

Beside what `clients.py` needs: `SINK`, a URL that keeps what it is sent as
lines of `SINK_FILE`, and `SQS`, where queues of SQS's kind are.
"""

import datetime
import json
import os
import subprocess
import sys
import time
import uuid

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from clients import ACCOUNT, AS_TOLD, ENDPOINT, REGION, arn, client, create, refused, run_by, runtime, until, updated

SINK = os.environ["SINK"]
# As the other runtime, but it says of each try whose it is.
HANDLER = runtime(
    """
answer = {"event": event, "told": told}
if isinstance(event, dict) and "id" in event:
    print("try", event["id"], flush=True)
""",
    AS_TOLD,
    """
answer = json.dumps(answer)
""",
)
IMAGE = run_by(HANDLER)


def sqs():
    """Of the project's account; who signs is not looked at there."""
    return boto3.client(
        "sqs",
        region_name=REGION,
        endpoint_url=os.environ["SQS"],
        aws_access_key_id="any",
        aws_secret_access_key="any",
    )


def send(aws, name, event=None, **more):
    """An event; its request id."""
    reply = aws.invoke(FunctionName=name, InvocationType="Event", Payload=json.dumps(event), **more)
    assert reply["StatusCode"] == 202 and not reply["Payload"].read(), reply
    return reply["ResponseMetadata"]["RequestId"]


def sunk(place):
    """What that path of the sink was sent."""
    try:
        with open(os.environ["SINK_FILE"]) as file:
            told = [json.loads(line) for line in file if line.endswith("\n")]
    except FileNotFoundError:
        return []
    return [one for one in told if one["path"] == f"/{place}"]


def record(place):
    """The first record at a path of the sink, with its headers."""
    return until(f"a record at {place}", lambda: sunk(place))[0]


def configurations():
    """Made, changed, looked at, listed and deleted, by qualifier."""
    aws = client()
    create(aws, "rules", **IMAGE)
    with refused("ResourceNotFoundException", 404, "EventInvokeConfig"):
        aws.get_function_event_invoke_config(FunctionName="rules")
    made = aws.put_function_event_invoke_config(
        FunctionName="rules",
        MaximumRetryAttempts=1,
        MaximumEventAgeInSeconds=60,
        DestinationConfig={"OnFailure": {"Destination": arn("rules")}},
    )
    assert made["FunctionArn"] == arn("rules", "$LATEST") and made["MaximumRetryAttempts"] == 1, made
    changed = aws.update_function_event_invoke_config(
        FunctionName="rules", DestinationConfig={"OnSuccess": {"Destination": SINK + "/rules"}}
    )
    destinations = {"OnSuccess": {"Destination": SINK + "/rules"}, "OnFailure": {"Destination": arn("rules")}}
    assert changed["DestinationConfig"] == destinations and changed["MaximumEventAgeInSeconds"] == 60, changed
    got = aws.get_function_event_invoke_config(FunctionName="rules", Qualifier="$LATEST")
    assert got["LastModified"] >= made["LastModified"] and got["DestinationConfig"] == destinations, got
    anew = aws.put_function_event_invoke_config(FunctionName="rules", MaximumRetryAttempts=0)
    assert anew["DestinationConfig"] == {"OnSuccess": {}, "OnFailure": {}}, anew
    assert anew["MaximumEventAgeInSeconds"] == 21600, anew

    aws.publish_version(FunctionName="rules")
    aws.create_alias(FunctionName="rules", Name="live", FunctionVersion="1")
    for qualifier in ["1", "live"]:
        aws.put_function_event_invoke_config(FunctionName="rules", Qualifier=qualifier, MaximumRetryAttempts=2)
    pages = aws.get_paginator("list_function_event_invoke_configs").paginate(
        FunctionName="rules", PaginationConfig={"PageSize": 1}
    )
    arns = [one["FunctionArn"] for page in pages for one in page["FunctionEventInvokeConfigs"]]
    assert sorted(arns) == sorted(arn("rules", q) for q in ["$LATEST", "1", "live"]), arns
    aws.delete_function_event_invoke_config(FunctionName="rules", Qualifier="1")
    with refused("ResourceNotFoundException", 404):
        aws.delete_function_event_invoke_config(FunctionName="rules", Qualifier="1")
    aws.delete_alias(FunctionName="rules", Name="live")
    with refused("ResourceNotFoundException", 404):
        aws.get_function_event_invoke_config(FunctionName="rules", Qualifier="live")

    def refuses(part, **wanted):
        with refused("InvalidParameterValueException", 400, part):
            aws.put_function_event_invoke_config(FunctionName="rules", **wanted)

    def to(address):
        return {"DestinationConfig": {"OnFailure": {"Destination": address}}}

    refuses("allowed", **to("http://127.0.0.1:1/"))
    refuses("allowed", **to(SINK + "0/"))
    refuses("project", **to(f"arn:aws:lambda:{REGION}:000000000009:function:rules"))
    refuses("project", **to(f"arn:aws:sqs:{REGION}:000000000009:dead"))
    refuses("not a destination", **to(f"arn:aws:sns:{REGION}:{ACCOUNT}:topic"))
    with refused("ResourceNotFoundException", 404):
        aws.put_function_event_invoke_config(FunctionName="rules", Qualifier="9", MaximumRetryAttempts=0)
    # botocore itself refuses what is out of AWS's range.
    with refused("ResourceNotFoundException", 404):
        aws.put_function_event_invoke_config(FunctionName="nobody", MaximumRetryAttempts=0)


def outcomes():
    """Events that succeed, and that fail as often as they may, and who is told."""
    aws = client()
    create(aws, "later", **IMAGE)
    to = {"OnSuccess": {"Destination": SINK + "/good"}, "OnFailure": {"Destination": SINK + "/bad"}}
    aws.put_function_event_invoke_config(FunctionName="later", DestinationConfig=to)
    request = send(aws, "later", {"a": "ä"}, ClientContext="e30=")
    told = record("good")
    assert told["headers"]["ce-id"] == request and told["headers"]["ce-source"] == arn("later"), told
    assert told["headers"]["ce-specversion"] == "1.0" and told["headers"]["ce-type"] == "skiff.event.Success", told
    body = json.loads(told["body"])
    answer = body.pop("responsePayload")
    assert answer["told"]["lambda-runtime-aws-request-id"] == request, answer
    assert answer["told"]["lambda-runtime-client-context"] == "{}", answer
    assert answer["told"]["lambda-runtime-invoked-function-arn"] == arn("later"), answer
    assert body.pop("timestamp").endswith("Z")
    assert body == {
        "version": "1.0",
        "requestContext": {
            "requestId": request,
            "functionArn": arn("later", "$LATEST"),
            "condition": "Success",
            "approximateInvokeCount": 1,
        },
        "requestPayload": {"a": "ä"},
        "responseContext": {"statusCode": 200, "executedVersion": "$LATEST"},
    }, body
    request = send(aws, "later", {"fail": "no", "id": "thrice"})
    told = json.loads(record("bad")["body"])
    assert told["requestContext"]["condition"] == "RetriesExhausted", told
    assert told["requestContext"]["approximateInvokeCount"] == 3, told
    assert told["requestContext"]["requestId"] == request, told
    assert told["responseContext"]["functionError"] == "Unhandled", told
    assert told["responsePayload"] == {"errorType": "Failed", "errorMessage": "no"}, told

    # A version has rules of its own; what exits has failed, too.
    aws.publish_version(FunctionName="later")
    once = {"OnFailure": {"Destination": SINK + "/once"}}
    aws.put_function_event_invoke_config(
        FunctionName="later", Qualifier="1", MaximumRetryAttempts=0, DestinationConfig=once
    )
    send(aws, "later", {"exit": 3}, Qualifier="1")
    told = json.loads(record("once")["body"])
    assert told["requestContext"]["approximateInvokeCount"] == 1, told
    assert told["requestContext"]["functionArn"] == arn("later", "1"), told
    assert told["responsePayload"]["errorType"] == "Runtime.ExitError", told

    # A destination that refuses at first is told again.
    flaky = {"OnSuccess": {"Destination": SINK + "/flaky"}}
    aws.put_function_event_invoke_config(FunctionName="later", DestinationConfig=flaky)
    request = send(aws, "later", 1)
    until("it is told twice", lambda: len(sunk("flaky")) == 2)
    assert {one["headers"]["ce-id"] for one in sunk("flaky")} == {request}

    # With a reservation of none, nothing is tried.
    aws.put_function_event_invoke_config(
        FunctionName="later", DestinationConfig={"OnFailure": {"Destination": SINK + "/closed"}}
    )
    aws.put_function_concurrency(FunctionName="later", ReservedConcurrentExecutions=0)
    send(aws, "later", {"id": "never"})
    told = json.loads(record("closed")["body"])
    assert told["requestContext"]["approximateInvokeCount"] == 0 and "responseContext" not in told, told


def destinations():
    """Functions as each other's destinations, and a loop that ends."""
    aws = client()
    create(aws, "first", **IMAGE)
    create(aws, "second", **IMAGE)
    aws.put_function_event_invoke_config(
        FunctionName="first", MaximumRetryAttempts=0, DestinationConfig={"OnFailure": {"Destination": arn("second")}}
    )
    aws.put_function_event_invoke_config(
        FunctionName="second", DestinationConfig={"OnSuccess": {"Destination": SINK + "/second"}}
    )
    request = send(aws, "first", {"fail": "on"})
    told = json.loads(record("second")["body"])
    inner = told["requestPayload"]
    assert inner["requestContext"]["requestId"] == request, told
    assert inner["requestContext"]["condition"] == "RetriesExhausted", told
    assert told["requestContext"]["functionArn"] == arn("second", "$LATEST"), told

    # It is its own destination: that ends by itself.
    aws.update_function_event_invoke_config(
        FunctionName="second", DestinationConfig={"OnSuccess": {"Destination": arn("second")}}
    )
    send(aws, "second", {"id": "around"})


def queues():
    """Records and dead letters in queues."""
    aws, store = client(), sqs()
    urls = {name: store.create_queue(QueueName=name)["QueueUrl"] for name in ["records", "dead"]}

    def arrived(name):
        found = store.receive_message(
            QueueUrl=urls[name], MessageAttributeNames=["All"], WaitTimeSeconds=0, MaxNumberOfMessages=10
        )
        return found.get("Messages")

    dead = f"arn:aws:sqs:{REGION}:{ACCOUNT}:dead"
    made = create(aws, "queued", DeadLetterConfig={"TargetArn": dead}, **IMAGE)
    assert made["DeadLetterConfig"] == {"TargetArn": dead}, made
    aws.put_function_event_invoke_config(
        FunctionName="queued",
        MaximumRetryAttempts=0,
        DestinationConfig={"OnFailure": {"Destination": f"arn:aws:sqs:{REGION}:{ACCOUNT}:records"}},
    )
    request = send(aws, "queued", {"fail": "no"})
    (message,) = until("a record", lambda: arrived("records"))
    told = json.loads(message["Body"])
    assert told["requestContext"]["requestId"] == request, told
    (message,) = until("a dead letter", lambda: arrived("dead"))
    assert json.loads(message["Body"]) == {"fail": "no"}, message
    values = {name: value["StringValue"] for name, value in message["MessageAttributes"].items()}
    assert values == {"RequestID": request, "ErrorCode": "200", "ErrorMessage": "no"}, values
    aws.update_function_configuration(FunctionName="queued", DeadLetterConfig={"TargetArn": ""})
    updated(aws, "queued")
    assert "DeadLetterConfig" not in aws.get_function_configuration(FunctionName="queued")
    with refused("InvalidParameterValueException", 400, "project"):
        foreign = {"TargetArn": f"arn:aws:sqs:{REGION}:000000000009:dead"}
        aws.update_function_configuration(FunctionName="queued", DeadLetterConfig=foreign)


def limits():
    """What is too large, malformed or too much is refused."""
    aws = client()
    create(aws, "narrow", **IMAGE)
    with refused("RequestTooLargeException", 413):
        send(aws, "narrow", "x" * (1 << 20))
    with refused("InvalidRequestContentException", 400, "json"):
        aws.invoke(FunctionName="narrow", InvocationType="Event", Payload=b"{")
    with refused("ResourceNotFoundException", 404):
        send(aws, "narrow", 1, Qualifier="live")
    with refused("ResourceNotFoundException", 404):
        send(aws, "nobody")
    to = {"OnSuccess": {"Destination": SINK + "/large"}}
    aws.put_function_event_invoke_config(FunctionName="narrow", DestinationConfig=to)
    large = "x" * ((1 << 20) - 2)
    send(aws, "narrow", large)
    told = json.loads(record("large")["body"])
    # The answer is too large to be kept.
    assert told["requestPayload"] == large and told["responsePayload"] is None, len(told)

    # Others wait while as many are under way as are reserved, up to a bound.
    aws.put_function_concurrency(FunctionName="narrow", ReservedConcurrentExecutions=1)
    taken = 0
    with refused("TooManyRequestsException", 429, "wait already"):
        for _ in range(64):
            send(aws, "narrow", {"sleep": 45})
            taken += 1
    assert taken >= 16, taken
    aws.delete_function(FunctionName="narrow")


def cli():
    """The AWS CLI, as a person uses it."""

    def run(*words):
        program = os.path.join(os.path.dirname(sys.executable), "aws")
        told = subprocess.run([program, "lambda", *words], capture_output=True, text=True, timeout=300)
        assert told.returncode == 0, (words, told.stderr)
        return json.loads(told.stdout) if told.stdout.strip() else None

    create(client(), "typed", **IMAGE)
    config = json.dumps({"OnSuccess": {"Destination": SINK + "/typed"}})
    told = run("put-function-event-invoke-config", "--function-name", "typed", "--destination-config", config)
    assert told["DestinationConfig"]["OnSuccess"] == {"Destination": SINK + "/typed"}, told
    out = os.path.join(os.environ["SCRATCH"], "event.json")
    told = run("invoke", "--function-name", "typed", "--invocation-type", "Event", "--payload", '{"a": 1}', out)
    assert told == {"StatusCode": 202}, told
    assert json.loads(record("typed")["body"])["requestPayload"] == {"a": 1}


def takes():
    """A function that is sent events by `skiff invoke`."""
    create(client(), "takes", **IMAGE)
    to = {"OnSuccess": {"Destination": SINK + "/takes"}}
    client().put_function_event_invoke_config(FunctionName="takes", DestinationConfig=to)


def before_the_crashes():
    """A function whose events go to the sink, however they end."""
    aws = client()
    create(aws, "lasting", **IMAGE)
    to = {"OnSuccess": {"Destination": SINK + "/lasting"}, "OnFailure": {"Destination": SINK + "/lasting"}}
    aws.put_function_event_invoke_config(FunctionName="lasting", DestinationConfig=to)


def load():
    """Sends events until `STOP` is there; what is acknowledged goes to `ACKNOWLEDGED`.

    The server may end at any moment; where the next one is stands in
    `ENDPOINT_FILE`.
    """
    count = 0
    with open(os.environ["ACKNOWLEDGED"], "w", buffering=1) as acknowledged:
        while not os.path.exists(os.environ["STOP"]):
            with open(os.environ["ENDPOINT_FILE"]) as file:
                os.environ["AWS_ENDPOINT_URL_LAMBDA"] = file.read()
            try:
                aws = client()
                while not os.path.exists(os.environ["STOP"]):
                    count += 1
                    event = {"id": str(uuid.uuid4())}
                    if count % 5 == 0:
                        event["fail"] = "as it should"
                    send(aws, "lasting", event)
                    acknowledged.write(event["id"] + "\n")
                    time.sleep(0.01)
            except (BotoCoreError, ClientError) as error:
                if isinstance(error, ClientError):
                    status = error.response["ResponseMetadata"]["HTTPStatusCode"]
                    assert status in (429, 500), error.response
                    time.sleep(0.1)


OFF = {"Mode": "OFF"}


def scheduler():
    return client(service="scheduler", hooks="scheduler", endpoint=ENDPOINT)


def target(function, **more):
    return {"Arn": function, "RoleArn": f"arn:aws:iam::{ACCOUNT}:role/nobody", **more}


def at(seconds):
    """A time so many seconds from now, and the expression of it."""
    time = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=seconds)
    text = time.strftime("%Y-%m-%dT%H:%M:%S")
    return text, f"at({text})"


def schedules():
    """Made, looked at, changed, listed and deleted; and they fire."""
    aws, times = client(), scheduler()
    create(aws, "timed", **IMAGE)
    to = {"OnSuccess": {"Destination": SINK + "/timed"}}
    aws.put_function_event_invoke_config(FunctionName="timed", DestinationConfig=to)
    when, once = at(3)
    input = json.dumps({"id": "once", "at": "<aws.scheduler.scheduled-time>"})
    made = times.create_schedule(
        Name="once",
        ScheduleExpression=once,
        Target=target(arn("timed"), Input=input),
        FlexibleTimeWindow=OFF,
        ActionAfterCompletion="DELETE",
    )
    assert made["ScheduleArn"] == f"arn:aws:scheduler:{REGION}:{ACCOUNT}:schedule/default/once", made
    told = json.loads(record("timed")["body"])
    assert told["requestPayload"] == {"id": "once", "at": when + "Z"}, told

    def is_gone():
        try:
            times.get_schedule(Name="once")
        except ClientError as error:
            assert error.response["Error"]["Code"] == "ResourceNotFoundException", error
            return True

    until("it is deleted", is_gone)

    # Without an input, the event says what fired.
    when, once = at(3)
    plain = {"ScheduleExpression": once, "Target": target(arn("timed")), "FlexibleTimeWindow": OFF}
    times.create_schedule(Name="plain", **plain)
    told = until("it fires", lambda: sunk("timed")[1:])[0]
    event = json.loads(told["body"])["requestPayload"]
    assert event["time"] == when + "Z" and event["detail-type"] == "Scheduled Event", event
    assert event["resources"] == [f"arn:aws:scheduler:{REGION}:{ACCOUNT}:schedule/default/plain"], event
    assert times.get_schedule(Name="plain")["State"] == "ENABLED"

    noon = {
        "ScheduleExpression": "cron(0 12 ? * MON-FRI *)",
        "ScheduleExpressionTimezone": "Europe/Berlin",
        "FlexibleTimeWindow": OFF,
        "Description": "at noon",
        "EndDate": datetime.datetime(2099, 1, 1, tzinfo=datetime.timezone.utc),
    }
    policy = {"MaximumEventAgeInSeconds": 60, "MaximumRetryAttempts": 3}
    wanted = {"Name": "noon", "Target": target(arn("timed", "$LATEST"), RetryPolicy=policy), **noon}
    made = times.create_schedule(ClientToken="once", **wanted)["ScheduleArn"]
    # A call that is sent again is the same one.
    assert times.create_schedule(ClientToken="once", **wanted)["ScheduleArn"] == made
    with refused("ConflictException", 409):
        times.create_schedule(ClientToken="once", **{**wanted, "Description": "another"})
    got = times.get_schedule(Name="noon", GroupName="default")
    assert {name: got[name] for name in noon} == noon, got
    assert got["Target"]["Arn"] == arn("timed", "$LATEST") and got["Target"]["RetryPolicy"] == policy, got
    with refused("ConflictException", 409):
        times.create_schedule(Name="noon", Target=target(arn("timed")), **noon)
    times.update_schedule(Name="noon", Target=target(arn("timed")), **{**noon, "State": "DISABLED"})
    got = times.get_schedule(Name="noon")
    assert got["State"] == "DISABLED" and got["Target"]["Arn"] == arn("timed"), got
    pages = times.get_paginator("list_schedules").paginate(PaginationConfig={"PageSize": 1})
    assert {"noon", "plain"} <= {one["Name"] for page in pages for one in page["Schedules"]}
    listed = times.list_schedules(NamePrefix="no", State="DISABLED")["Schedules"]
    assert [one["Name"] for one in listed] == ["noon"], listed
    assert times.get_schedule_group(Name="default")["State"] == "ACTIVE"
    assert [one["Name"] for one in times.list_schedule_groups()["ScheduleGroups"]] == ["default"]
    times.delete_schedule(Name="noon")
    with refused("ResourceNotFoundException", 404):
        times.delete_schedule(Name="noon")
    with refused("ResourceNotFoundException", 404):
        times.update_schedule(Name="noon", Target=target(arn("timed")), **noon)
    with refused("ResourceNotFoundException", 404, "group"):
        times.create_schedule(Name="noon", GroupName="others", Target=target(arn("timed")), **noon)

    # A rate begins at once.
    daily = {"ScheduleExpression": "rate(1 day)", "Target": target(arn("timed"), Input=json.dumps({"id": "daily"}))}
    times.create_schedule(Name="daily", FlexibleTimeWindow=OFF, **daily)
    payloads = lambda: [json.loads(one["body"])["requestPayload"] for one in sunk("timed")]
    until("it fires", lambda: {"id": "daily"} in payloads())

    def refuses(part, **wanted):
        with refused("ValidationException", 400, part):
            times.create_schedule(**{"Name": "bad", **plain, **wanted})

    old = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(minutes=6)
    refuses("5 minutes", ScheduleExpression="cron(0 12 * * ? *)", StartDate=old)
    refuses("time zone", ScheduleExpressionTimezone="Europe/Nowhere")
    refuses("does not say when", ScheduleExpression="tomorrow")
    refuses("six fields", ScheduleExpression="cron(* * * * *)")
    refuses("project", Target=target(f"arn:aws:lambda:{REGION}:000000000009:function:timed"))
    refuses("no function", Target=target(arn("nobody")))
    refuses("JSON", Target=target(arn("timed"), Input="{"))
    refuses("OFF", FlexibleTimeWindow={"Mode": "FLEXIBLE"})
    refuses("MaximumWindowInMinutes", FlexibleTimeWindow={"Mode": "OFF", "MaximumWindowInMinutes": 5})
    refuses("SqsParameters", Target=target(arn("timed"), SqsParameters={"MessageGroupId": "a"}))
    with refused("NotImplementedException", 501, "CreateSchedule"):
        times.create_schedule_group(Name="others")


def by_s3(aws, name, sid, bucket=None, **more):
    """Lets events of a bucket in."""
    source = {"SourceArn": f"arn:aws:s3:::{bucket}"} if bucket else {}
    aws.add_permission(
        FunctionName=name,
        StatementId=sid,
        Action="lambda:InvokeFunction",
        Principal="s3.amazonaws.com",
        **source,
        **more,
    )


def objects():
    """A function that events of some buckets may be handed in for."""
    aws = client()
    create(aws, "objects", **IMAGE)
    to = {"OnSuccess": {"Destination": SINK + "/objects"}}
    aws.put_function_event_invoke_config(FunctionName="objects", DestinationConfig=to)
    aws.publish_version(FunctionName="objects")
    aws.create_alias(FunctionName="objects", Name="live", FunctionVersion="1")
    by_s3(aws, "objects", "images", "images-*", SourceAccount=ACCOUNT)
    by_s3(aws, "objects", "theirs", "theirs", SourceAccount="000000000009")
    by_s3(aws, "objects", "any")
    policy = json.loads(aws.get_policy(FunctionName="objects")["Policy"])
    sources = {one["Sid"]: one.get("Condition") for one in policy["Statement"]}
    assert sources["images"] == {
        "ArnLike": {"AWS:SourceArn": "arn:aws:s3:::images-*"},
        "StringEquals": {"AWS:SourceAccount": ACCOUNT},
    }, policy


def no_objects():
    """The same function, for which none may be."""
    client().remove_permission(FunctionName="objects", StatementId="images")


def before_the_objects():
    """A function that a crash finds with events."""
    aws = client()
    create(aws, "kept", **IMAGE)
    to = {"OnSuccess": {"Destination": SINK + "/kept"}}
    aws.put_function_event_invoke_config(FunctionName="kept", DestinationConfig=to)
    by_s3(aws, "kept", "images", "images")


def before_the_hour():
    """Schedules that fire within seconds, whatever happens to the server."""
    aws, times = client(), scheduler()
    create(aws, "hourly", **IMAGE)
    to = {"OnSuccess": {"Destination": SINK + "/hourly"}, "OnFailure": {"Destination": SINK + "/hourly"}}
    aws.put_function_event_invoke_config(FunctionName="hourly", DestinationConfig=to)
    for number in range(12):
        times.create_schedule(
            Name=f"soon-{number}",
            ScheduleExpression=at(3 + number // 3)[1],
            Target=target(arn("hourly"), Input=json.dumps({"id": f"soon-{number}"})),
            FlexibleTimeWindow=OFF,
        )


if __name__ == "__main__":
    globals()[sys.argv[1]]()
