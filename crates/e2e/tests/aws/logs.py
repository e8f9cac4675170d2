"""What AWS's own clients read of functions' logs: `logs.py CASE`.

It needs what `clients.py` needs.
"""

import json
import os
import subprocess
import sys
import time

from clients import ACCOUNT, ENDPOINT, REGION, ask, client, create, refused, run_by, runtime, until

# A runtime that writes the lines of its event, and says what its stream is called.
HANDLER = runtime(
    """
for line in event:
    print(line, flush=True)
answer = json.dumps([os.environ["AWS_LAMBDA_LOG_GROUP_NAME"], os.environ["AWS_LAMBDA_LOG_STREAM_NAME"]])
"""
)
FUNCTION = run_by(HANDLER)
SPEAKS = "/aws/lambda/speaks"


def logs(key=None, secret=None, region=REGION):
    return client(key, secret, "logs", "cloudwatch-logs", region, ENDPOINT)


def filtered(aws, **more):
    pages = aws.get_paginator("filter_log_events").paginate(logGroupName=SPEAKS, **more)
    return [event for page in pages for event in page["events"]]


def texts(events):
    return [event["message"] for event in events]


def said(aws, last):
    """Once the line is there, which a function wrote last."""
    until(f"the line {last}", lambda: filtered(aws, filterPattern=f'"{last}"'))


def told(aws, stream, token, limit, way):
    """All events from a token on, page by page until it comes again."""
    events = []
    while True:
        page = aws.get_log_events(logGroupName=SPEAKS, logStreamName=stream, nextToken=token, limit=limit)
        assert len(page["events"]) <= limit
        events = events + page["events"] if way == "nextForwardToken" else page["events"] + events
        if page[way] == token:
            assert not page["events"], page
            return events
        token = page[way]


def reads():
    """Groups, streams, pages both ways, filters and errors."""
    functions, aws = client(), logs()
    create(functions, "speaks", **FUNCTION)
    lines = [f"line {number:02}" for number in range(20)] + ["ERROR it broke", "WARN it \"may\" break"]
    group, stream = ask(functions, "speaks", lines)[1]
    said(aws, "may\\\" break")
    groups(aws, functions)
    streams(aws, group, stream)
    pages(aws, stream, lines)
    filters(aws, stream, lines)
    follows(aws, functions)
    errors(aws, stream)
    typed()
    functions.delete_function(FunctionName="speaks")
    with refused("ResourceNotFoundException", 400):
        aws.describe_log_streams(logGroupName=SPEAKS)


def groups(aws, functions):
    for name in ["spoken", "mute"]:
        create(functions, name, **FUNCTION)
    pages = aws.get_paginator("describe_log_groups").paginate(
        logGroupNamePrefix="/aws/lambda/sp", PaginationConfig={"PageSize": 1}
    )
    shown = [group for page in pages for group in page["logGroups"]]
    assert [group["logGroupName"] for group in shown] == [SPEAKS, "/aws/lambda/spoken"], shown
    arn = f"arn:aws:logs:{REGION}:{ACCOUNT}:log-group:{SPEAKS}"
    assert shown[0]["logGroupArn"] == arn and shown[0]["arn"] == f"{arn}:*", shown
    assert abs(shown[0]["creationTime"] / 1000 - time.time()) < 3600, shown
    shown = aws.describe_log_groups(logGroupNamePattern="mut")["logGroups"]
    assert [group["logGroupName"] for group in shown] == ["/aws/lambda/mute"], shown
    for name in ["spoken", "mute"]:
        functions.delete_function(FunctionName=name)
    other = logs(os.environ["OTHER_ACCESS_KEY_ID"], os.environ["OTHER_SECRET_ACCESS_KEY"])
    assert SPEAKS not in [group["logGroupName"] for group in other.describe_log_groups()["logGroups"]]
    for wanted in [{"logGroupName": SPEAKS}, {"logGroupIdentifier": arn}]:
        with refused("ResourceNotFoundException", 400, "log group"):
            other.describe_log_streams(**wanted)


def streams(aws, group, stream):
    assert group == SPEAKS
    arn = f"arn:aws:logs:{REGION}:{ACCOUNT}:log-group:{SPEAKS}"
    shown = aws.describe_log_streams(logGroupIdentifier=arn, orderBy="LastEventTime", descending=True)["logStreams"]
    # One instance came up with the deployment, and another may have served.
    of = {one["logStreamName"]: one for one in shown}
    assert stream in of and "/[$LATEST]" in stream, (stream, shown)
    assert of[stream]["firstEventTimestamp"] <= of[stream]["lastEventTimestamp"], shown
    assert of[stream]["arn"] == f"{arn}:log-stream:{stream}", shown
    pages = aws.get_paginator("describe_log_streams").paginate(
        logGroupName=SPEAKS, logStreamNamePrefix=stream[:11], PaginationConfig={"PageSize": 1}
    )
    assert stream in [one["logStreamName"] for page in pages for one in page["logStreams"]]


def pages(aws, stream, lines):
    newest = aws.get_log_events(logGroupName=SPEAKS, logStreamName=stream)
    everything = texts(newest["events"])
    assert [text for text in everything if text in lines] == lines, everything
    first = aws.get_log_events(logGroupName=SPEAKS, logStreamName=stream, limit=3, startFromHead=True)
    assert texts(first["events"]) == everything[:3], first
    rest = told(aws, stream, first["nextForwardToken"], 4, "nextForwardToken")
    assert texts(rest)[: len(everything) - 3] == everything[3:], rest
    assert told(aws, stream, first["nextBackwardToken"], 4, "nextBackwardToken") == []
    last = aws.get_log_events(logGroupName=SPEAKS, logStreamName=stream, limit=2)
    older = told(aws, stream, last["nextBackwardToken"], 5, "nextBackwardToken")
    assert texts(older + last["events"])[: len(everything)] == everything, older
    # What was read backwards can be read forwards.
    again = aws.get_log_events(
        logGroupName=SPEAKS, logStreamName=stream, nextToken=first["nextForwardToken"].replace("f/", "b/"), limit=3
    )
    assert again["events"] == first["events"], again
    at = newest["events"][-1]["timestamp"]
    window = {"logGroupName": SPEAKS, "logStreamName": stream, "endTime": at}
    assert all(event["timestamp"] < at for event in aws.get_log_events(**window)["events"])
    late = aws.get_log_events(logGroupName=SPEAKS, logStreamName=stream, startTime=at)["events"]
    assert late and all(event["timestamp"] >= at for event in late), late


def filters(aws, stream, lines):
    for pattern, expected in [
        ("ERROR", lines[20:21]),
        ("line 07", lines[7:8]),
        ('"it \\"may\\" break"', lines[21:]),
        ("?ERROR ?WARN", lines[20:]),
        ('line -"line 0" -"line 1"', []),
        ("error", []),
    ]:
        assert texts(filtered(aws, filterPattern=pattern)) == expected, pattern
    small = filtered(aws, filterPattern="line", PaginationConfig={"PageSize": 3})
    assert texts(small) == lines[:20], small
    assert len({event["eventId"] for event in small}) == 20, small
    assert all(event["logStreamName"] == stream for event in small), small
    one = aws.filter_log_events(logGroupName=SPEAKS, filterPattern="line", limit=7)
    assert len(one["events"]) == 7 and one["nextToken"], one
    whole = aws.filter_log_events(logGroupName=SPEAKS, filterPattern="line", limit=20)
    assert len(whole["events"]) == 20 and "nextToken" not in whole, whole
    first, last = small[0]["timestamp"], small[-1]["timestamp"]
    window = texts(filtered(aws, filterPattern="line", startTime=first, endTime=last))
    assert window == lines[:20], window
    assert filtered(aws, startTime=last + 3600_000) == []
    assert texts(filtered(aws, filterPattern="line", logStreamNames=[stream])) == lines[:20]
    assert texts(filtered(aws, filterPattern="line", logStreamNamePrefix=stream[:11])) == lines[:20]
    assert filtered(aws, logStreamNamePrefix="1999") == []


def follows(aws, functions):
    """As `aws logs tail --follow` does: from the newest timestamp again, each event id once."""
    wanted = {"logGroupName": SPEAKS, "filterPattern": "follow", "limit": 2}
    ids, seen = set(), []

    def look():
        page = aws.filter_log_events(**wanted)
        for event in page["events"]:
            if event["eventId"] not in ids:
                ids.add(event["eventId"])
                seen.append(event["message"])
                wanted["startTime"] = event["timestamp"]
        wanted.pop("nextToken", None)
        if "nextToken" in page:
            wanted["nextToken"] = page["nextToken"]
        return seen == expected

    expected = []
    for turn in range(3):
        more = [f"follow {turn} {number}" for number in range(5)]
        expected = expected + more
        ask(functions, "speaks", more)
        until(f"turn {turn}", look)


def errors(aws, stream):
    with refused("ResourceNotFoundException", 400, "log group"):
        aws.get_log_events(logGroupName="/aws/lambda/nothing", logStreamName=stream)
    with refused("ResourceNotFoundException", 400, "log group"):
        aws.filter_log_events(logGroupName="/other/group")
    for missing in [stream[:-1] + ("0" if stream[-1] != "0" else "1"), "any"]:
        with refused("ResourceNotFoundException", 400, "log stream"):
            aws.get_log_events(logGroupName=SPEAKS, logStreamName=missing)
    for pattern in ["{ $.a = 1 }", "[a, b]", "%a%", '"a', "a ?b"]:
        with refused("InvalidParameterException", 400, "pattern"):
            aws.filter_log_events(logGroupName=SPEAKS, filterPattern=pattern)
    for call in [aws.filter_log_events, lambda **more: aws.get_log_events(logStreamName=stream, **more)]:
        with refused("InvalidParameterException", 400, "nextToken"):
            call(logGroupName=SPEAKS, nextToken="x")
        with refused("InvalidParameterException", 400, "logGroupName"):
            call()
    with refused("InvalidParameterException", 400, "accountIdentifiers"):
        aws.describe_log_groups(accountIdentifiers=[ACCOUNT])
    with refused("UnknownOperationException", 400, "FilterLogEvents"):
        aws.put_log_events(logGroupName=SPEAKS, logStreamName=stream, logEvents=[{"timestamp": 1, "message": "a"}])
    with refused("InvalidSignatureException", 400):
        logs(secret=os.environ["OTHER_SECRET_ACCESS_KEY"]).describe_log_groups()
    with refused("InvalidSignatureException", 400):
        logs(region="eu-west-1").describe_log_groups()


def typed():
    """The AWS CLI, as a person uses it."""
    program = os.path.join(os.path.dirname(sys.executable), "aws")
    env = {**os.environ, "AWS_ENDPOINT_URL_CLOUDWATCH_LOGS": os.environ["AWS_ENDPOINT_URL_LAMBDA"]}
    words = ["filter-log-events", "--log-group-name", SPEAKS, "--filter-pattern", "ERROR"]
    done = subprocess.run([program, "logs", *words], capture_output=True, text=True, timeout=300, env=env)
    assert done.returncode == 0, done.stderr
    assert texts(json.loads(done.stdout)["events"]) == ["ERROR it broke"], done.stdout


if __name__ == "__main__":
    globals()[sys.argv[1]]()
