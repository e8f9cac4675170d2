"""What AWS's own clients see of a server: `clients.py CASE`.

Each reply is checked against the shapes of botocore's service model. The
environment says where the server is (`AWS_ENDPOINT_URL_LAMBDA`) and has a
key of the default project, and one of another (`OTHER_ACCESS_KEY_ID`,
`OTHER_SECRET_ACCESS_KEY`, `OTHER_ACCOUNT`).
"""

import base64
import concurrent.futures
import contextlib
import datetime
import http.client
import json
import os
import subprocess
import sys
import textwrap
import time
import urllib.parse

import boto3
import botocore.auth
import botocore.awsrequest
import botocore.credentials
from botocore.config import Config
from botocore.exceptions import ClientError, ReadTimeoutError, WaiterError
from botocore.validate import ParamValidator

ENDPOINT = os.environ["AWS_ENDPOINT_URL_LAMBDA"]
REGION = "us-east-1"
ACCOUNT = "000000000001"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/nobody"
# A runtime. Its steps make an answer of each event: what a request's body may
# be. They may also choose another way for it, and headers.
RUNTIME = """
import base64, contextlib, http.client, json, os, time
api = http.client.HTTPConnection(os.environ["AWS_LAMBDA_RUNTIME_API"])
base = "/2018-06-01/runtime/invocation/"
while True:
    api.request("GET", base + "next")
    next = api.getresponse()
    event = json.loads(next.read())
    told = dict((name.lower(), value) for name, value in next.headers.items())
    way, headers = "response", {}
STEPS
    place = base + told["lambda-runtime-aws-request-id"] + "/" + way
    api.request("POST", place, answer, headers, encode_chunked=bool(headers))
    api.getresponse().read()
"""
# Steps of a runtime that fails as its event tells it to.
AS_TOLD = """
if isinstance(event, dict) and "fail" in event:
    answer, way = {"errorType": "Failed", "errorMessage": event["fail"]}, "error"
if isinstance(event, dict) and "exit" in event:
    os._exit(event["exit"])
if isinstance(event, dict) and "sleep" in event:
    time.sleep(event["sleep"])
"""


def runtime(*steps):
    return RUNTIME.replace("STEPS", textwrap.indent("".join(steps), "    "))


def run_by(handler):
    return {"ImageConfig": {"EntryPoint": ["python3", "-c"], "Command": [handler]}}


# It does not come up.
UNABLE = {"EntryPoint": ["python3", "-c"], "Command": ["exit(3)"]}
# It answers its event and what came with it.
HANDLER = runtime(
    """
answer = {"event": event, "told": told, "stage": os.environ.get("STAGE", "")}
""",
    AS_TOLD,
    """
print("log", flush=True)
answer = json.dumps(answer)
""",
)
# It ends behind its answer to some, before it asks for the next event.
DYING = runtime(
    """
answer = str(len(event.get("text", "")))
if "dies" in event:
    api.request("POST", base + told["lambda-runtime-aws-request-id"] + "/response", answer)
    api.getresponse().read()
    time.sleep(0.5)
    os._exit(3)
"""
)
TYPE, BODY = "Lambda-Runtime-Function-Error-Type", "Lambda-Runtime-Function-Error-Body"
# It streams two pieces and, between or behind them, what its event says.
STREAMER = runtime(
    """
headers = {"Lambda-Runtime-Function-Response-Mode": "streaming", "Transfer-Encoding": "chunked",
           "Content-Type": "application/octet-stream"}
if "say" in event:
    print(event["say"], flush=True)
def chunk(piece):
    api.send(f"{len(piece):x}\\r\\n".encode() + piece + b"\\r\\n")
api.putrequest("POST", base + told["lambda-runtime-aws-request-id"] + "/response")
for field in headers.items():
    api.putheader(*field)
api.endheaders()
chunk(b"first")
if "exit" in event:
    time.sleep(0.3)
    os._exit(event["exit"])
time.sleep(event.get("sleep", 0))
chunk(b"second")
trailers = event.get("trailers", {}).items()
api.send(b"0\\r\\n" + "".join(f"{name}: {value}\\r\\n" for name, value in trailers).encode() + b"\\r\\n")
with contextlib.suppress(OSError, http.client.HTTPException):
    api.getresponse().read()
api.close()
continue
"""
)
FUNCTION = {
    "Role": ROLE,
    "PackageType": "Image",
    "Code": {"ImageUri": "hello-python:1"},
    **run_by(HANDLER),
    "Timeout": 60,
}


def check_shape(parsed, model, http_response, **_):
    """Fails when a reply has not the shape of its operation."""
    if http_response.status_code >= 300:
        return
    shape = model.output_shape
    if shape is None:
        return
    reply = {name: value for name, value in parsed.items() if name != "ResponseMetadata"}
    for name, member in shape.members.items():
        if member.type_name == "blob" or member.serialization.get("eventstream"):
            reply.pop(name, None)
        if getattr(member, "is_eventstream", False) or name == "EventStream":
            reply.pop(name, None)
    report = ParamValidator().validate(reply, shape)
    assert not report.has_errors(), f"{model.name}: {report.generate_report()}"
    payload = shape.serialization.get("payload")
    if payload is None and http_response.content:
        told = json.loads(http_response.content)
        known = {m.serialization.get("name", n) for n, m in shape.members.items()}
        assert set(told) - {"StatusCode"} <= known, f"{model.name}: {set(told) - known}"


def client(key=None, secret=None, service="lambda", hooks="lambda", region=REGION, endpoint=None, **config):
    """Without an endpoint it is the environment's, as for any program."""
    config = Config(**{"retries": {"max_attempts": 0}, "read_timeout": 120, **config})
    made = boto3.client(
        service,
        region_name=region,
        endpoint_url=endpoint,
        aws_access_key_id=key or os.environ["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=secret or os.environ["AWS_SECRET_ACCESS_KEY"],
        config=config,
    )
    made.meta.events.register(f"after-call.{hooks}", check_shape)
    return made


def other():
    return client(os.environ["OTHER_ACCESS_KEY_ID"], os.environ["OTHER_SECRET_ACCESS_KEY"])


@contextlib.contextmanager
def refused(code, status, part=""):
    try:
        yield
    except ClientError as error:
        told = error.response["Error"]
        assert told["Code"] == code, f"{told} is not {code}"
        assert error.response["ResponseMetadata"]["HTTPStatusCode"] == status, error.response
        assert part in told["Message"], told
    else:
        raise AssertionError(f"{code} was expected")


def until(what, look, seconds=300):
    """What is seen, once there is something."""
    end = time.monotonic() + seconds
    while not (seen := look()):
        assert time.monotonic() < end, f"{what}: not in time"
        time.sleep(0.05)
    return seen


def arn(name, qualifier=None):
    text = f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:{name}"
    return f"{text}:{qualifier}" if qualifier else text


def create(aws, name, **more):
    made = aws.create_function(FunctionName=name, **{**FUNCTION, **more})
    aws.get_waiter("function_active_v2").wait(FunctionName=name, WaiterConfig={"Delay": 1})
    return made


def updated(aws, name):
    aws.get_waiter("function_updated_v2").wait(FunctionName=name, WaiterConfig={"Delay": 1})


def waits_in_vain(aws, waiter, name):
    """What it waits for fails."""
    try:
        aws.get_waiter(waiter).wait(FunctionName=name, WaiterConfig={"Delay": 1})
    except WaiterError as error:
        assert "Failed" in str(error), error
    else:
        raise AssertionError(f"{waiter}: {name} cannot come to that")


def ask(aws, name, event=None, **more):
    reply = aws.invoke(FunctionName=name, Payload=json.dumps(event), **more)
    assert reply["StatusCode"] == 200, reply
    return reply, json.loads(reply["Payload"].read())


def functions():
    """Made, looked at, changed, tagged, listed and deleted."""
    aws = client()
    # What is asked for nothing, as Zappa and its like do.
    nothing = {"VpcConfig": {}, "KMSKeyArn": "", "FileSystemConfigs": [], "Layers": []}
    plain = {"TracingConfig": {"Mode": "PassThrough"}, "SnapStart": {"ApplyOn": "None"}}
    environment = {"Variables": {"STAGE": "x=1"}}
    made = create(aws, "first", Description="one", Tags={"a": "b"}, Environment=environment, **nothing, **plain)
    assert made["FunctionArn"] == arn("first") and made["Version"] == "$LATEST", made
    assert made["State"] == "Pending" and made["StateReasonCode"] == "Creating", made
    with refused("ResourceConflictException", 409):
        aws.create_function(FunctionName="first", **FUNCTION)
    got = aws.get_function(FunctionName=arn("first"))
    assert got["Configuration"]["State"] == "Active" and got["Tags"] == {"a": "b"}, got
    assert got["Configuration"]["MemorySize"] == 128 and len(got["Configuration"]["CodeSha256"]) == 64, got
    config = aws.get_function_configuration(FunctionName=f"{ACCOUNT}:function:first")
    assert config["Environment"]["Variables"] == {"STAGE": "x=1"}, config
    assert ask(aws, "first")[1]["stage"] == "x=1"

    changed = aws.update_function_configuration(
        FunctionName="first",
        MemorySize=256,
        Environment={"Variables": {"STAGE": "y"}},
        RevisionId=config["RevisionId"],
        **nothing,
        # What was told can be given back.
        **{field: config[field] for field in ["TracingConfig", "LoggingConfig", "EphemeralStorage"]},
    )
    assert changed["LastUpdateStatus"] == "InProgress" and changed["MemorySize"] == 256, changed
    assert changed["RevisionId"] != config["RevisionId"]
    updated(aws, "first")
    assert ask(aws, "first")[1]["stage"] == "y"
    with refused("PreconditionFailedException", 412):
        aws.update_function_code(FunctionName="first", ImageUri="hello-python:1", RevisionId=config["RevisionId"])
    aws.update_function_code(FunctionName="first", ImageUri="hello-python:1")
    updated(aws, "first")

    aws.tag_resource(Resource=arn("first"), Tags={"c": "d"})
    aws.untag_resource(Resource=arn("first"), TagKeys=["a"])
    assert aws.list_tags(Resource=arn("first"))["Tags"] == {"c": "d"}

    create(aws, "second")
    pages = aws.get_paginator("list_functions").paginate(PaginationConfig={"PageSize": 1})
    names = [f["FunctionName"] for page in pages for f in page["Functions"]]
    assert {"first", "second"} <= set(names) and names == sorted(names), names
    settings = aws.get_account_settings()
    assert settings["AccountUsage"]["FunctionCount"] >= 2, settings
    aws.delete_function(FunctionName="second")
    with refused("ResourceNotFoundException", 404):
        aws.get_function(FunctionName="second")
    with refused("ResourceNotFoundException", 404):
        ask(aws, "second")


def failures():
    """What is refused at once, and what fails later."""
    aws = client()
    with refused("InvalidParameterValueException", 400, "a.name"):
        aws.create_function(FunctionName="a.name", **FUNCTION)
    for reserved in ["AWS_REGION", "a-b"]:
        with refused("InvalidParameterValueException", 400, reserved):
            aws.create_function(FunctionName="told", Environment={"Variables": {reserved: "x"}}, **FUNCTION)
    with refused("InvalidParameterValueException", 400, "TracingConfig"):
        aws.create_function(FunctionName="traced", TracingConfig={"Mode": "Active"}, **FUNCTION)
    with refused("InvalidParameterValueException", 400, "VpcConfig"):
        aws.create_function(FunctionName="vpc", VpcConfig={"SubnetIds": ["a"]}, **FUNCTION)
    with refused("InvalidParameterValueException", 400, "Could not unzip"):
        code = {"Code": {"ZipFile": b"x"}, "Runtime": "python3.12", "Handler": "a.b", "PackageType": "Zip"}
        aws.create_function(FunctionName="zip", Role=ROLE, **code)
    with refused("InvalidParameterValueException", 400):
        aws.create_function(FunctionName="blank", **{**FUNCTION, "Code": {"ImageUri": "a b"}})
    with refused("ResourceNotFoundException", 404):
        aws.get_function(FunctionName="blank")
    with refused("NotImplementedException", 501, "CreateFunction"):
        aws.list_code_signing_configs()
    aws.create_function(FunctionName="broken", **{**FUNCTION, "ImageConfig": UNABLE})
    waits_in_vain(aws, "function_active_v2", "broken")
    got = aws.get_function_configuration(FunctionName="broken")
    assert got["State"] == "Failed" and got["StateReason"], got
    with refused("ResourceConflictException", 409):
        ask(aws, "broken")
    aws.delete_function(FunctionName="broken")


def invocations():
    """Events and answers, their logs, errors, streams and limits."""
    aws = client()
    create(aws, "events")
    context = base64.b64encode(b'{"client": {}}').decode()
    reply, told = ask(aws, "events", {"a": "ä"}, ClientContext=context, LogType="Tail")
    assert told["event"] == {"a": "ä"} and reply["ExecutedVersion"] == "$LATEST", told
    assert json.loads(told["told"]["lambda-runtime-client-context"]) == {"client": {}}, told
    assert told["told"]["lambda-runtime-invoked-function-arn"] == arn("events"), told
    assert told["told"]["lambda-runtime-aws-request-id"] == reply["ResponseMetadata"]["RequestId"], told
    assert b"log" in base64.b64decode(reply["LogResult"]) and "FunctionError" not in reply, reply
    for name in [arn("events"), arn("events", "$LATEST"), f"{ACCOUNT}:function:events", "events:$LATEST"]:
        assert ask(aws, name, [1])[1]["event"] == [1], name
    reply, told = ask(aws, "events", {"fail": "no"})
    assert reply["FunctionError"] == "Unhandled" and told["errorMessage"] == "no", reply
    reply, told = ask(aws, "events", {"exit": 3})
    assert reply["FunctionError"] == "Unhandled" and told["errorType"] == "Runtime.ExitError", told
    with refused("InvalidRequestContentException", 400):
        ask(aws, "events", {}, ClientContext="!!")
    assert json.loads(aws.invoke(FunctionName="events")["Payload"].read())["event"] == {}
    dry = aws.invoke(FunctionName="events", InvocationType="DryRun")
    assert dry["StatusCode"] == 204, dry
    assert aws.invoke(FunctionName="events", InvocationType="Event")["StatusCode"] == 202
    with refused("InvalidRequestContentException", 400, "json"):
        aws.invoke(FunctionName="events", Payload=b"{")
    with refused("RequestTooLargeException", 413):
        aws.invoke(FunctionName="events", Payload=json.dumps("x" * (6 << 20)))
    large = "x" * (3 << 20)
    assert ask(aws, "events", large)[1]["event"] == large

    stream = aws.invoke_with_response_stream(FunctionName="events", Payload=json.dumps(large))
    parts = list(stream["EventStream"])
    body = b"".join(part["PayloadChunk"]["Payload"] for part in parts[:-1])
    assert json.loads(body)["event"] == large and parts[-1] == {"InvokeComplete": {}}, parts[-1]
    stream = aws.invoke_with_response_stream(FunctionName="events", Payload=b'{"fail": "no"}')
    (end,) = list(stream["EventStream"])
    assert end["InvokeComplete"]["ErrorCode"] == "Unhandled" and "no" in end["InvokeComplete"]["ErrorDetails"], end

    aws.put_function_concurrency(FunctionName="events", ReservedConcurrentExecutions=0)
    assert aws.get_function_concurrency(FunctionName="events")["ReservedConcurrentExecutions"] == 0
    with refused("TooManyRequestsException", 429):
        ask(aws, "events")
    aws.delete_function_concurrency(FunctionName="events")
    assert "ReservedConcurrentExecutions" not in aws.get_function_concurrency(FunctionName="events")
    ask(aws, "events")


def unreached():
    """An event that its instance cannot take any more reaches another one, however large it is."""
    aws = client()
    create(aws, "dying", **run_by(DYING))
    for bytes in [2, 3 << 20]:
        event = {"text": "x" * bytes}
        for way in [ask, streamed]:
            assert ask(aws, "dying", {"dies": True})[1] == 0
            first, answer = way(aws, "dying", event)
            assert int(answer if way is ask else first) == bytes, (first, answer)
            assert way is streamed or "FunctionError" not in first, first


def streamed(aws, name, event, **more):
    """What came of a streamed answer, and how it ended."""
    stream = aws.invoke_with_response_stream(FunctionName=name, Payload=json.dumps(event), **more)
    *chunks, end = list(stream["EventStream"])
    return b"".join(chunk["PayloadChunk"]["Payload"] for chunk in chunks), end["InvokeComplete"]


def streams():
    """What is told at the end of a streamed answer: how it failed, and the end of its log."""
    aws = client()
    create(aws, "ending", **run_by(STREAMER), Timeout=3)
    own = {"errorType": "Its.Own", "errorMessage": "ä" * 100}
    fields = {TYPE: "Its.Own", BODY: base64.b64encode(json.dumps(own).encode()).decode()}
    body, end = streamed(aws, "ending", {"say": "a line"}, LogType="Tail")
    log = base64.b64decode(end.pop("LogResult")).decode()
    assert (body, end) == (b"firstsecond", {}), (body, end)
    for line in ["START RequestId: ", "a line\n", "END RequestId: ", "REPORT RequestId: ", "WARN no credentials"]:
        assert line in log, log
    assert streamed(aws, "ending", {"say": "a line"}) == (b"firstsecond", {})
    body, end = streamed(aws, "ending", {"say": "x" * 10000, "trailers": {}}, LogType="Tail")
    assert len(base64.b64decode(end["LogResult"])) == 4096, end

    body, end = streamed(aws, "ending", {"trailers": fields, "say": "oh"}, LogType="Tail")
    log = base64.b64decode(end.pop("LogResult")).decode()
    assert body == b"firstsecond" and json.loads(end.pop("ErrorDetails")) == own, end
    assert end == {"ErrorCode": "Its.Own"} and "oh\n" in log, (end, log)
    nothing = {"errorType": "Its.Own", "errorMessage": ""}
    for bad in [{TYPE: "Its.Own"}, {TYPE: "Its.Own", BODY: "no base64"}]:
        end = streamed(aws, "ending", {"trailers": bad})[1]
        assert end["ErrorCode"] == "Its.Own" and json.loads(end["ErrorDetails"]) == nothing, end
    long = base64.b64encode(b"x" * 11000).decode()
    end = streamed(aws, "ending", {"trailers": {BODY: long}})[1]
    assert end == {"ErrorCode": "Runtime.Unknown", "ErrorDetails": "x" * 6144}, end
    # More than is read of them: what is behind that is not known to be whole.
    end = streamed(aws, "ending", {"trailers": {BODY: 2 * long}})[1]
    assert end["ErrorCode"] == "Runtime.TruncatedResponse", end

    body, end = streamed(aws, "ending", {"exit": 3}, LogType="Tail")
    told = json.loads(end["ErrorDetails"])
    assert (body, end["ErrorCode"], told["errorType"]) == (b"first", "Runtime.ExitError", "Runtime.ExitError"), end
    assert told["errorMessage"].endswith("Runtime exited with error: exit status 3"), told
    assert b"Runtime.ExitError" in base64.b64decode(end["LogResult"]), end
    body, end = streamed(aws, "ending", {"sleep": 600}, LogType="Tail")
    told = json.loads(end["ErrorDetails"])
    assert (body, end["ErrorCode"], told["errorType"]) == (b"first", "Sandbox.Timedout", "Sandbox.Timedout"), end
    assert "Task timed out after 3.00 seconds" in told["errorMessage"], told
    assert b"Status: timeout" in base64.b64decode(end["LogResult"]), end

    # Whoever does not ask for a stream is told the same.
    reply = aws.invoke(FunctionName="ending", Payload=b'{"say": "a line"}', LogType="Tail")
    assert reply["Payload"].read() == b"firstsecond" and "FunctionError" not in reply, reply
    assert b"a line\n" in base64.b64decode(reply["LogResult"]), reply
    reply, told = ask(aws, "ending", {"trailers": fields})
    assert reply["FunctionError"] == "Unhandled" and told == own, (reply, told)


def reservations():
    """No more invocations at once than are reserved; the next one gets in."""
    aws = client()
    create(aws, "few")
    aws.put_function_concurrency(FunctionName="few", ReservedConcurrentExecutions=1)

    def once(_):
        try:
            ask(client(), "few", {"sleep": 1})
            return "answered"
        except ClientError as error:
            told = error.response
            assert told["ResponseMetadata"]["HTTPStatusCode"] == 429, told
            return told["Reason"]

    end, seen = time.monotonic() + 180, set()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        while len(seen) < 2:
            assert time.monotonic() < end, seen
            seen |= set(pool.map(once, range(4)))
    assert seen == {"answered", "ReservedFunctionConcurrentInvocationLimitExceeded"}, seen
    ask(aws, "few", 1)


def hung_up():
    """An invocation whose caller has hung up goes on, and counts until it is over."""
    aws, hasty = client(), client(read_timeout=2)
    create(aws, "left")
    aws.put_function_concurrency(FunctionName="left", ReservedConcurrentExecutions=1)

    def is_free():
        with contextlib.suppress(aws.exceptions.TooManyRequestsException):
            return ask(aws, "left", 1)

    for invoke in [hasty.invoke, hasty.invoke_with_response_stream]:
        until("the last one's end", is_free)
        try:
            invoke(FunctionName="left", Payload=b'{"sleep": 8}')
        except ReadTimeoutError:
            pass
        else:
            raise AssertionError("it was answered in time")
        with refused("TooManyRequestsException", 429, "reserved"):
            ask(aws, "left", 1)
    until("the last one's end", is_free)


def timeouts():
    """An invocation ends at its function's timeout, in AWS's words."""
    aws = client()
    create(aws, "slow", Timeout=1)
    reply, told = ask(aws, "slow", {"sleep": 600})
    assert reply["FunctionError"] == "Unhandled" and "timed out after 1.00 seconds" in told["errorMessage"], told


def versions():
    """Versions stay as they were; aliases lead to them, by weight."""
    aws = client()

    def stage(value):
        variables = {"Variables": {"STAGE": value}}
        aws.update_function_configuration(FunctionName="staged", Environment=variables)
        updated(aws, "staged")

    create(aws, "staged", Environment={"Variables": {"STAGE": "one"}})
    one = aws.publish_version(FunctionName="staged", Description="first")
    assert one["Version"] == "1" and one["FunctionArn"] == arn("staged", "1"), one
    assert aws.publish_version(FunctionName="staged")["Version"] == "1"
    stage("two")
    assert aws.publish_version(FunctionName="staged")["Version"] == "2"
    stage("three")
    for qualifier, expected in [("1", "one"), ("2", "two"), ("$LATEST", "three")]:
        reply, told = ask(aws, "staged", Qualifier=qualifier)
        assert told["stage"] == expected and reply["ExecutedVersion"] == qualifier, (qualifier, told)
        assert told["told"]["lambda-runtime-invoked-function-arn"] == arn("staged", qualifier), told
    pages = aws.get_paginator("list_versions_by_function").paginate(
        FunctionName="staged", PaginationConfig={"PageSize": 1}
    )
    versions = [(v["Version"], v["FunctionArn"]) for page in pages for v in page["Versions"]]
    assert [version for version, _ in versions] == ["$LATEST", "1", "2"], versions
    pages = aws.get_paginator("list_functions").paginate(FunctionVersion="ALL", PaginationConfig={"PageSize": 2})
    listed = [one for page in pages for one in page["Functions"]]
    assert versions == [(v["Version"], v["FunctionArn"]) for v in listed if v["FunctionName"] == "staged"], listed
    assert aws.get_function(FunctionName="staged", Qualifier="1")["Configuration"]["Description"] == "first"

    live = aws.create_alias(FunctionName="staged", Name="live", FunctionVersion="1")
    assert live["AliasArn"] == arn("staged", "live"), live
    assert ask(aws, "staged:live")[1]["stage"] == "one"
    weights = {"AdditionalVersionWeights": {"2": 0.5}}
    live = aws.update_alias(FunctionName="staged", Name="live", RoutingConfig=weights)
    assert live["RoutingConfig"] == weights, live
    seen = {ask(aws, "staged", Qualifier="live")[1]["stage"] for _ in range(64)}
    assert seen == {"one", "two"}, seen
    with refused("PreconditionFailedException", 412):
        aws.update_alias(FunctionName="staged", Name="live", RevisionId="x")
    with refused("ResourceConflictException", 409):
        aws.delete_function(FunctionName="staged", Qualifier="2")
    aws.update_alias(FunctionName="staged", Name="live", FunctionVersion="1", RoutingConfig={"AdditionalVersionWeights": {}})
    aws.delete_function(FunctionName="staged", Qualifier="2")
    with refused("ResourceNotFoundException", 404):
        ask(aws, "staged", Qualifier="2")
    assert [a["Name"] for a in aws.list_aliases(FunctionName="staged")["Aliases"]] == ["live"]
    assert aws.get_alias(FunctionName="staged", Name="live")["FunctionVersion"] == "1"
    with refused("ResourceNotFoundException", 404):
        aws.create_alias(FunctionName="staged", Name="bad", FunctionVersion="9")
    aws.delete_alias(FunctionName="staged", Name="live")
    with refused("ResourceNotFoundException", 404):
        aws.get_alias(FunctionName="staged", Name="live")

    # What changes nothing of how it runs is a change, too.
    assert aws.publish_version(FunctionName="staged")["Version"] == "3"
    aws.update_function_configuration(FunctionName="staged", Description="other")
    updated(aws, "staged")
    fourth = aws.publish_version(FunctionName="staged")
    assert (fourth["Version"], fourth["Description"]) == ("4", "other"), fourth
    assert aws.publish_version(FunctionName="staged")["Version"] == "4"
    # What has failed is not what serves.
    aws.update_function_configuration(FunctionName="staged", ImageConfig=UNABLE)
    waits_in_vain(aws, "function_updated", "staged")
    with refused("ResourceConflictException", 409, "has failed"):
        aws.publish_version(FunctionName="staged")
    aws.delete_function(FunctionName="staged")


def waiters():
    """Each waiter of the client's ends as it does at AWS."""
    aws = client()

    def wait(name, **of):
        aws.get_waiter(name).wait(WaiterConfig={"Delay": 1}, **of)

    made = aws.create_function(FunctionName="awaited", Publish=True, **FUNCTION)
    assert (made["Version"], made["State"], made["FunctionArn"]) == ("1", "Pending", arn("awaited", "1")), made
    wait("function_exists", FunctionName="awaited")
    wait("published_version_active", FunctionName="awaited", Qualifier="1")
    wait("function_active", FunctionName="awaited")
    assert ask(aws, "awaited", 5, Qualifier="1")[0]["ExecutedVersion"] == "1"
    aws.update_function_configuration(FunctionName="awaited", Timeout=50)
    wait("function_updated", FunctionName="awaited")
    published = aws.update_function_code(FunctionName="awaited", ImageUri="hello-python:1", Publish=True)
    assert published["Version"] == "2" and published["Timeout"] == 50, published
    with refused("ResourceConflictException", 409):
        aws.update_function_code(FunctionName="awaited", ImageUri="hello-python:1", Publish=True)
    wait("published_version_active", FunctionName="awaited", Qualifier="2")
    listed = aws.list_versions_by_function(FunctionName="awaited")["Versions"]
    assert [version["Version"] for version in listed] == ["$LATEST", "1", "2"], listed

    # A version that cannot be made is none, and its number is not given again.
    aws.create_function(FunctionName="unable", Publish=True, **{**FUNCTION, "ImageConfig": UNABLE})
    for name, of in [("function_active", {}), ("published_version_active", {"Qualifier": "1"})]:
        try:
            wait(name, FunctionName="unable", **of)
        except WaiterError:
            pass
        else:
            raise AssertionError(f"{name}: it cannot come up")
    with refused("ResourceNotFoundException", 404):
        aws.get_function(FunctionName="unable", Qualifier="1")
    assert "exit" in aws.get_function_configuration(FunctionName="unable")["StateReason"]
    aws.delete_function(FunctionName="unable")
    aws.delete_function(FunctionName="awaited")


def hasty_ends():
    """A function is deleted while it is deployed, and made anew at once."""
    aws = client()
    never = run_by("import time\ntime.sleep(9999)")
    aws.create_function(FunctionName="brief", **{**FUNCTION, **never})
    aws.delete_function(FunctionName="brief")
    with refused("ResourceNotFoundException", 404):
        aws.get_function(FunctionName="brief")
    create(aws, "brief")
    aws.update_function_configuration(FunctionName="brief", **never)
    begun = time.monotonic()
    aws.delete_function(FunctionName="brief")
    # Its init would have had ten seconds.
    assert time.monotonic() - begun < 8, "it was waited for"
    create(aws, "brief")
    assert ask(aws, "brief", 3)[1]["event"] == 3
    aws.delete_function(FunctionName="brief")


# It answers why it was initialized.
WARM = runtime(
    """
time.sleep(1)
answer = json.dumps(os.environ["AWS_LAMBDA_INITIALIZATION_TYPE"])
"""
)
# It comes up for an event only.
UNWARMABLE = (
    """
import os, sys
if os.environ["AWS_LAMBDA_INITIALIZATION_TYPE"] == "provisioned-concurrency":
    sys.exit(1)
"""
    + HANDLER
)


def provisioned():
    """Versions and aliases are kept warm, as far as that can be."""
    aws = client()
    put, get = aws.put_provisioned_concurrency_config, aws.get_provisioned_concurrency_config
    delete = aws.delete_provisioned_concurrency_config

    def reached(status, name, qualifier, available=None):
        def look():
            told = get(FunctionName=name, Qualifier=qualifier)
            there = told["AvailableProvisionedConcurrentExecutions"]
            return told["Status"] == status and available in (None, there) and told

        return until(f"{name}:{qualifier} {status}", look)

    create(aws, "warm", **run_by(WARM))
    aws.publish_version(FunctionName="warm")
    aws.update_function_configuration(FunctionName="warm", Environment={"Variables": {"STAGE": "two"}})
    updated(aws, "warm")
    assert aws.publish_version(FunctionName="warm")["Version"] == "2"
    for name, qualifier, code, status, part in [
        ("warm", "$LATEST", "InvalidParameterValueException", 400, "unpublished"),
        ("warm", "9", "ResourceNotFoundException", 404, "Function not found"),
        ("warm", "live", "ResourceNotFoundException", 404, "Cannot find alias"),
        ("nobody", "1", "ResourceNotFoundException", 404, "Function not found"),
    ]:
        with refused(code, status, part):
            put(FunctionName=name, Qualifier=qualifier, ProvisionedConcurrentExecutions=1)
    with refused("InvalidParameterValueException", 400, "at most"):
        put(FunctionName="warm", Qualifier="1", ProvisionedConcurrentExecutions=1_000_000)
    with refused("InvalidParameterValueException", 400, "alias or a published version"):
        get(FunctionName="warm", Qualifier="$LATEST")
    with refused("ProvisionedConcurrencyConfigNotFoundException", 404):
        get(FunctionName="warm", Qualifier="1")

    made = put(FunctionName="warm", Qualifier="1", ProvisionedConcurrentExecutions=2)
    assert made["ResponseMetadata"]["HTTPStatusCode"] == 202, made
    assert made["Status"] == "IN_PROGRESS" and made["RequestedProvisionedConcurrentExecutions"] == 2, made
    ready = reached("READY", "warm", "1", 2)
    assert ready["AllocatedProvisionedConcurrentExecutions"] == 2 and "StatusReason" not in ready, ready
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        # One of the two may be there since the version was deployed.
        def why(_):
            return ask(client(), "warm", Qualifier="1")[1]

        until("a warm instance", lambda: "provisioned-concurrency" in set(pool.map(why, range(2))))

    # An alias takes what it has along; a version has one configuration.
    aws.create_alias(FunctionName="warm", Name="live", FunctionVersion="1")
    with refused("ResourceConflictException", 409, "already Provisioned"):
        put(FunctionName="warm", Qualifier="live", ProvisionedConcurrentExecutions=1)
    for _ in range(2):
        delete(FunctionName="warm", Qualifier="1")
    put(FunctionName="warm:live", Qualifier="live", ProvisionedConcurrentExecutions=2)
    reached("READY", "warm", "live", 2)
    aws.update_alias(FunctionName="warm", Name="live", FunctionVersion="2")
    reached("READY", "warm", "live", 2)
    with refused("InvalidParameterValueException", 400, "unpublished"):
        aws.update_alias(FunctionName="warm", Name="live", FunctionVersion="$LATEST")
    weights = {"AdditionalVersionWeights": {"1": 0.5}}
    aws.update_alias(FunctionName="warm", Name="live", RoutingConfig=weights)
    with refused("InvalidParameterValueException", 400, "Invalid alias configuration"):
        put(FunctionName="warm", Qualifier="live", ProvisionedConcurrentExecutions=1)
    reached("READY", "warm", "live", 2)
    aws.update_alias(FunctionName="warm", Name="live", RoutingConfig={"AdditionalVersionWeights": {}})

    # All of them are within what is reserved.
    with refused("InvalidParameterValueException", 400, "should not be lower"):
        aws.put_function_concurrency(FunctionName="warm", ReservedConcurrentExecutions=1)
    aws.put_function_concurrency(FunctionName="warm", ReservedConcurrentExecutions=3)
    with refused("InvalidParameterValueException", 400, "reservedConcurrentExecution"):
        put(FunctionName="warm", Qualifier="1", ProvisionedConcurrentExecutions=2)
    put(FunctionName="warm", Qualifier="1", ProvisionedConcurrentExecutions=1)
    pages = aws.get_paginator("list_provisioned_concurrency_configs").paginate(
        FunctionName="warm", PaginationConfig={"PageSize": 1}
    )
    listed = [c["FunctionArn"] for page in pages for c in page["ProvisionedConcurrencyConfigs"]]
    assert listed == [arn("warm", "1"), arn("warm", "live")], listed
    with refused("ResourceConflictException", 409, "already Provisioned"):
        aws.update_alias(FunctionName="warm", Name="live", FunctionVersion="1")
    aws.delete_function(FunctionName="warm", Qualifier="1")
    with refused("ResourceNotFoundException", 404):
        get(FunctionName="warm", Qualifier="1")
    aws.delete_alias(FunctionName="warm", Name="live")
    listed = aws.list_provisioned_concurrency_configs(FunctionName="warm")
    assert listed["ProvisionedConcurrencyConfigs"] == [], listed

    create(aws, "unwarmable", **run_by(UNWARMABLE))
    aws.publish_version(FunctionName="unwarmable")
    put(FunctionName="unwarmable", Qualifier="1", ProvisionedConcurrentExecutions=2)
    failed = reached("FAILED", "unwarmable", "1")
    assert "FUNCTION_ERROR_INIT_FAILURE" in failed["StatusReason"], failed
    for name in ["warm", "unwarmable"]:
        aws.delete_function(FunctionName=name)


def permissions():
    """Another project's key gets in where a policy says so, and nowhere else."""
    aws, stranger = client(), other()
    create(aws, "shared")
    with refused("AccessDeniedException", 403):
        ask(stranger, arn("shared"))
    with refused("AccessDeniedException", 403):
        stranger.get_function(FunctionName=arn("shared"))
    with refused("ResourceNotFoundException", 404):
        ask(stranger, "shared")
    wanted = {"StatementId": "them", "Action": "lambda:InvokeFunction", "Principal": os.environ["OTHER_ACCOUNT"]}
    added = json.loads(aws.add_permission(FunctionName="shared", **wanted)["Statement"])
    assert added["Resource"] == arn("shared") and added["Sid"] == "them", added
    with refused("ResourceConflictException", 409):
        aws.add_permission(FunctionName="shared", **wanted)
    policy = aws.get_policy(FunctionName="shared")
    assert json.loads(policy["Policy"])["Statement"] == [added], policy
    assert ask(stranger, arn("shared"), 7)[1]["event"] == 7
    with refused("AccessDeniedException", 403):
        stranger.delete_function(FunctionName=arn("shared"))
    with refused("AccessDeniedException", 403):
        ask(stranger, arn("shared", "$LATEST"))
    with refused("PreconditionFailedException", 412):
        aws.remove_permission(FunctionName="shared", StatementId="them", RevisionId="x")
    aws.remove_permission(FunctionName="shared", StatementId="them", RevisionId=policy["RevisionId"])
    with refused("AccessDeniedException", 403):
        ask(stranger, arn("shared"))
    with refused("ResourceNotFoundException", 404):
        aws.get_policy(FunctionName="shared")


def send(request):
    """A signed request over a plain connection: its status and error."""
    url = urllib.parse.urlsplit(request.url)
    connection = http.client.HTTPConnection(url.netloc, timeout=60)
    target = url.path + ("?" + url.query if url.query else "")
    connection.request(request.method, target, body=request.body, headers=dict(request.headers.items()))
    reply = connection.getresponse()
    reply.read()
    return reply.status, reply.headers.get("x-amzn-errortype")


def signed(method, path, body=b"", signer=botocore.auth.SigV4Auth, key=None, secret=None, region=REGION):
    key = key or os.environ["AWS_ACCESS_KEY_ID"]
    secret = secret or os.environ["AWS_SECRET_ACCESS_KEY"]
    request = botocore.awsrequest.AWSRequest(method, ENDPOINT + path, data=body)
    credentials = botocore.credentials.Credentials(key, secret)
    signer(credentials, "lambda", region).add_auth(request)
    return request.prepare()


def signatures():
    """Only what is signed by a key of ours, now, and not again later."""
    listing = "/2015-03-31/functions/"
    assert send(signed("GET", listing)) == (200, None)
    assert send(signed("GET", listing, signer=botocore.auth.SigV4QueryAuth)) == (200, None)
    unsigned = botocore.awsrequest.AWSRequest("GET", ENDPOINT + listing).prepare()
    assert send(unsigned) == (403, "MissingAuthenticationTokenException")
    wrong = signed("GET", listing, key="AKIAIOSFODNN7EXAMPLE")
    assert send(wrong) == (403, "UnrecognizedClientException")
    wrong = signed("GET", listing, secret="x" * 40)
    assert send(wrong) == (403, "InvalidSignatureException")
    wrong = signed("GET", listing, region="eu-west-1")
    assert send(wrong) == (403, "InvalidSignatureException")

    changed = signed("GET", listing)
    changed.url += "?MaxItems=1"
    assert send(changed) == (403, "InvalidSignatureException")
    alias = json.dumps({"Tags": {"a": "b"}}).encode()
    tagging = "/2017-03-31/tags/" + urllib.parse.quote(arn("nothing"), safe="")
    changed = signed("POST", tagging, alias)
    changed.body = alias.replace(b"a", b"c")
    assert send(changed) == (403, "InvalidSignatureException")
    once = signed("POST", tagging, alias)
    assert send(once) == (404, "ResourceNotFoundException")
    # Equal calls of one second are signed alike: it is taken again for a moment.
    end = time.monotonic() + 120
    while send(once)[0] == 404:
        assert time.monotonic() < end, "a signature is taken for ever"
    assert send(once) == (403, "InvalidSignatureException")
    again = signed("GET", listing)
    assert send(again) == send(again) == (200, None)

    real = botocore.auth.get_current_datetime
    for minutes, expected in [(-14, 200), (14, 200), (-16, 403), (16, 403)]:
        skew = datetime.timedelta(minutes=minutes)
        botocore.auth.get_current_datetime = lambda *a, **k: real(*a, **k) + skew
        try:
            assert send(signed("GET", listing))[0] == expected, minutes
        finally:
            botocore.auth.get_current_datetime = real


def cli():
    """The AWS CLI, as a person uses it."""

    def run(*words, **more):
        program = os.path.join(os.path.dirname(sys.executable), "aws")
        told = subprocess.run([program, "lambda", *words], capture_output=True, text=True, timeout=300, **more)
        assert told.returncode == 0, (words, told.stderr)
        return json.loads(told.stdout) if told.stdout.strip() else None

    image = json.dumps(run_by(HANDLER)["ImageConfig"])
    run("create-function", "--function-name", "typed", "--package-type", "Image", "--role", ROLE,
        "--code", "ImageUri=hello-python:1", "--image-config", image, "--timeout", "60")
    run("wait", "function-active-v2", "--function-name", "typed")
    out = os.path.join(os.environ["SCRATCH"], "typed.json")
    told = run("invoke", "--function-name", "typed", "--payload", '{"a": 1}', out)
    assert told["StatusCode"] == 200, told
    with open(out) as file:
        assert json.load(file)["event"] == {"a": 1}
    assert run("get-function", "--function-name", arn("typed"))["Configuration"]["State"] == "Active"
    run("delete-function", "--function-name", "typed")


def before_the_crash():
    """A version that serves, and a function that never comes up."""
    aws = client()
    create(aws, "kept", Environment={"Variables": {"STAGE": "one"}})
    aws.publish_version(FunctionName="kept")
    aws.update_function_configuration(FunctionName="kept", Environment={"Variables": {"STAGE": "two"}})
    updated(aws, "kept")
    aws.create_alias(FunctionName="kept", Name="live", FunctionVersion="1")
    aws.put_provisioned_concurrency_config(
        FunctionName="kept", Qualifier="live", ProvisionedConcurrentExecutions=2
    )
    hangs = {"ImageConfig": {"EntryPoint": ["python3", "-c"], "Command": ["import time; time.sleep(99999)"]}}
    made = aws.create_function(FunctionName="cut", **{**FUNCTION, **hangs})
    assert made["State"] == "Pending", made
    with refused("ResourceConflictException", 409):
        aws.update_function_configuration(FunctionName="cut", Timeout=5)


def after_the_crash():
    """What was acknowledged is there; what was under way is told as it ended."""
    aws = client()
    for qualifier, expected in [("live", "one"), ("1", "one"), ("$LATEST", "two")]:
        assert ask(aws, "kept", Qualifier=qualifier)[1]["stage"] == expected, qualifier

    def is_warm():
        told = aws.get_provisioned_concurrency_config(FunctionName="kept", Qualifier="live")
        assert told["RequestedProvisionedConcurrentExecutions"] == 2, told
        return told["AvailableProvisionedConcurrentExecutions"] == 2

    until("what was provisioned", is_warm)
    cut = aws.get_function_configuration(FunctionName="cut")
    # Interrupted, or at its end before the server was.
    assert cut["State"] == "Failed" and cut["StateReason"], cut
    aws.update_function_configuration(FunctionName="cut", **run_by(HANDLER))
    updated(aws, "cut")
    assert ask(aws, "cut", 1)[1]["event"] == 1


def after_its_service():
    """`skiff rm` has ended the function with its service."""
    with refused("ResourceNotFoundException", 404):
        client().get_function(FunctionName="kept")
    create(client(), "kept")


def known():
    """A key that is known."""
    client().get_account_settings()


def unknown():
    """A key that is not known any more."""
    with refused("UnrecognizedClientException", 403):
        client().get_account_settings()


if __name__ == "__main__":
    globals()[sys.argv[1]]()
