"""What AWS's own clients see of event source mappings: `sources.py CASE`.

Beside what `clients.py` needs: `SQS`, where queues of SQS's kind and tables of
DynamoDB's are.
"""

import datetime
import json
import os
import sys
import time

import boto3

from clients import ACCOUNT, REGION, arn, ask, client, create, refused, run_by, runtime, until
from logs import logs

# A runtime that writes down what it gets, and fails as messages tell it to:
# those that are {"fail": N} the first N times that they are received.
HANDLER = runtime(
    """
records = event["Records"]
counts = [int(record["attributes"]["ApproximateReceiveCount"]) for record in records]
print("batch", json.dumps([[record["body"], count] for record, count in zip(records, counts)]), flush=True)
print("record", json.dumps(records[0]), flush=True)
failed, total = [], False
for record, count in zip(records, counts):
    try:
        wish = json.loads(record["body"])
    except ValueError:
        continue
    if not isinstance(wish, dict):
        continue
    time.sleep(wish.get("sleep", 0))
    if count <= wish.get("fail", 0):
        failed.append({"itemIdentifier": record["messageId"]})
    total = total or count <= wish.get("raise", 0)
answer = {"batchItemFailures": failed}
if total:
    answer, way = {"errorType": "Failed", "errorMessage": "as told"}, "error"
answer = json.dumps(answer)
"""
)
# A runtime that outlives the server, and remembers all that it was given.
LASTING = """
import http.client, json, os, time
base = "/2018-06-01/runtime/invocation/"
def call(method, path, body=None):
    while True:
        try:
            api = http.client.HTTPConnection(os.environ["AWS_LAMBDA_RUNTIME_API"])
            api.request(method, base + path, body)
            reply = api.getresponse()
            return reply.headers["Lambda-Runtime-Aws-Request-Id"], reply.read()
        except (OSError, http.client.HTTPException):
            time.sleep(0.05)
seen = set()
while True:
    id, event = call("GET", "next")
    if id is None:
        continue
    records = json.loads(event).get("Records", [])
    bodies = [record["body"] if "body" in record else record["dynamodb"]["Keys"]["id"]["S"] for record in records]
    print("batch", json.dumps([[body, 0] for body in bodies]), flush=True)
    seen.update(bodies)
    call("POST", id + "/response", json.dumps(sorted(seen)))
"""
IMAGE = run_by(HANDLER)


# As the other one, of a stream: what has the attribute `fail` fails so often.
STREAM_HANDLER = runtime(
    """
records = event["Records"]
print("batch", json.dumps([[record["dynamodb"]["Keys"]["id"]["S"], record["eventName"]] for record in records]), flush=True)
print("record", json.dumps(records[0]), flush=True)
failed = []
for record in records:
    wish = int(record["dynamodb"].get("NewImage", {}).get("fail", {"N": "0"})["N"])
    seen[record["eventID"]] = seen.get(record["eventID"], 0) + 1
    if seen[record["eventID"]] <= wish:
        failed.append({"itemIdentifier": record["dynamodb"]["SequenceNumber"]})
answer = {"batchItemFailures": failed}
if failed and os.environ.get("STAGE") == "whole":
    answer, way = {"errorType": "Failed", "errorMessage": "as told"}, "error"
answer = json.dumps(answer)
"""
).replace("while True:", "seen = {}\nwhile True:", 1)


def service(name):
    """Of the project's account; who signs is not looked at there."""
    return boto3.client(
        name,
        region_name=REGION,
        endpoint_url=os.environ["SQS"],
        aws_access_key_id="any",
        aws_secret_access_key="any",
    )


def queue_arn(name):
    return f"arn:aws:sqs:{REGION}:{ACCOUNT}:{name}"


class Queue:
    """A queue whose messages come back after a minute."""

    def __init__(self, name, visibility=60, **attributes):
        self.store, self.name, self.arn = service("sqs"), name, queue_arn(name)
        attributes = {"VisibilityTimeout": str(visibility), **attributes}
        self.url = self.store.create_queue(QueueName=name, Attributes=attributes)["QueueUrl"]

    def send(self, *bodies, **more):
        for body in bodies:
            text = body if isinstance(body, str) else json.dumps(body)
            self.store.send_message(QueueUrl=self.url, MessageBody=text, **more)

    def left(self):
        """Messages that are there, and those that somebody has."""
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        told = self.store.get_queue_attributes(QueueUrl=self.url, AttributeNames=names)["Attributes"]
        return tuple(int(told[name]) for name in names)

    def received(self):
        """Messages, if there are any within a second."""
        return self.store.receive_message(QueueUrl=self.url, WaitTimeSeconds=1).get("Messages", [])

    def emptied(self):
        until(f"{self.name} is empty", lambda: self.left() == (0, 0))


def lines(name, kind):
    pages = logs().get_paginator("filter_log_events").paginate(logGroupName=f"/aws/lambda/{name}")
    told = [event["message"] for page in pages for event in page["events"]]
    return [json.loads(line.split(" ", 1)[1]) for line in told if line.startswith(kind + " ")]


def batches(name):
    """What the function was given: bodies, and how often each was received."""
    return lines(name, "batch")


def given(name):
    return [tuple(one) for batch in batches(name) for one in batch]


def saw(name, bodies):
    """Once the function has written that it was given all of them."""
    wanted = {body if isinstance(body, str) else json.dumps(body) for body in bodies}
    until(f"{name} was given {wanted}", lambda: wanted <= {body for body, _ in given(name)})


def mapped(aws, queue, function, **more):
    made = aws.create_event_source_mapping(EventSourceArn=queue.arn, FunctionName=function, **more)
    assert made["State"] == "Creating", made
    return made["UUID"]


def state(aws, id, wanted):
    until(f"{id} is {wanted}", lambda: aws.get_event_source_mapping(UUID=id)["State"] == wanted)


def mappings():
    """Made, looked at, listed, changed and deleted."""
    aws, jobs, others = client(), Queue("jobs"), Queue("others")
    create(aws, "Works_1", **IMAGE)
    pattern = json.dumps({"body": {"a": [{"numeric": [">", 5]}]}})
    made = aws.create_event_source_mapping(
        EventSourceArn=jobs.arn,
        FunctionName="Works_1",
        Enabled=False,
        BatchSize=100,
        MaximumBatchingWindowInSeconds=5,
        FilterCriteria={"Filters": [{"Pattern": pattern}]},
        FunctionResponseTypes=["ReportBatchItemFailures"],
        ScalingConfig={"MaximumConcurrency": 2},
    )
    id = made["UUID"]
    assert made["ResponseMetadata"]["HTTPStatusCode"] == 202 and made["State"] == "Creating", made
    got = aws.get_event_source_mapping(UUID=id)
    modified = got.pop("LastModified")
    assert abs((modified - datetime.datetime.now(datetime.timezone.utc)).total_seconds()) < 300, modified
    del got["ResponseMetadata"]
    assert got == {
        "UUID": id,
        "EventSourceMappingArn": f"arn:aws:lambda:{REGION}:{ACCOUNT}:event-source-mapping:{id}",
        "EventSourceArn": jobs.arn,
        "FunctionArn": arn("Works_1"),
        "BatchSize": 100,
        "MaximumBatchingWindowInSeconds": 5,
        "FilterCriteria": {"Filters": [{"Pattern": pattern}]},
        "FunctionResponseTypes": ["ReportBatchItemFailures"],
        "ScalingConfig": {"MaximumConcurrency": 2},
        "State": "Disabled",
        "StateTransitionReason": "USER_INITIATED",
    }, got
    with refused("ResourceConflictException", 409, id):
        aws.create_event_source_mapping(EventSourceArn=jobs.arn, FunctionName=arn("Works_1"))

    aws.publish_version(FunctionName="Works_1")
    aws.create_alias(FunctionName="Works_1", Name="live", FunctionVersion="1")
    second = mapped(aws, jobs, "Works_1:live", Enabled=False)
    third = mapped(aws, others, arn("Works_1", "1"), Enabled=False)
    listed(aws, jobs, [id, second, third])

    changed = aws.update_event_source_mapping(
        UUID=id, BatchSize=5, FilterCriteria={}, ScalingConfig={}, FunctionResponseTypes=[]
    )
    assert changed["State"] == "Updating" and changed["BatchSize"] == 5, changed
    got = aws.get_event_source_mapping(UUID=id)
    assert "FilterCriteria" not in got and "ScalingConfig" not in got and got["FunctionResponseTypes"] == [], got
    with refused("ResourceConflictException", 409, second):
        aws.update_event_source_mapping(UUID=id, FunctionName="Works_1:live")
    moved = aws.update_event_source_mapping(UUID=id, FunctionName="Works_1:1")
    assert moved["FunctionArn"] == arn("Works_1", "1"), moved
    again = mapped(aws, jobs, "Works_1", Enabled=False)
    for gone in [id, second, third, again]:
        assert aws.delete_event_source_mapping(UUID=gone)["State"] == "Deleting"
        with refused("ResourceNotFoundException", 404, "does not exist"):
            aws.get_event_source_mapping(UUID=gone)
    for function in ["Works_1", "Works_1:1", "Works_1:live"]:
        assert aws.list_event_source_mappings(FunctionName=function)["EventSourceMappings"] == []


def listed(aws, jobs, ids):
    def of(**more):
        pages = aws.get_paginator("list_event_source_mappings").paginate(PaginationConfig={"PageSize": 1}, **more)
        return [one["UUID"] for page in pages for one in page["EventSourceMappings"]]

    first, second, third = ids
    # There may be others.
    assert [id for id in of() if id in ids] == sorted(ids)
    assert of(EventSourceArn=jobs.arn) == sorted([first, second])
    assert of(FunctionName="Works_1") == [first]
    assert of(FunctionName=arn("Works_1", "live")) == [second]
    assert of(FunctionName="Works_1:1", EventSourceArn=jobs.arn) == []
    assert of(FunctionName="Works_1:1") == [third]
    assert of(FunctionName="nobody") == []


def refusals():
    """What cannot be is told in AWS's words."""
    aws, brief, fifo = client(), Queue("brief", visibility=30), Queue("strict.fifo", FifoQueue="true")
    create(aws, "slow", **IMAGE)

    def refuses(part, queue=brief, function="slow", **wanted):
        with refused("InvalidParameterValueException", 400, part):
            aws.create_event_source_mapping(EventSourceArn=getattr(queue, "arn", queue), FunctionName=function, **wanted)

    # The function may take 60 seconds.
    refuses("Queue visibility timeout: 30 seconds is less than Function timeout: 60 seconds")
    refuses("GetQueueAttributes", queue_arn("nobody"))
    refuses("of this region", f"arn:aws:sqs:{REGION}:000000000009:brief")
    refuses("of this region", f"arn:aws:sqs:eu-west-1:{ACCOUNT}:brief")
    refuses("not served", f"arn:aws:kinesis:{REGION}:{ACCOUNT}:stream/a")
    refuses("greater than 0", BatchSize=11)
    refuses("1 to 10 ", fifo, BatchSize=11)
    refuses("FIFO", fifo, MaximumBatchingWindowInSeconds=1)
    refuses("Invalid filter pattern definition", FilterCriteria={"Filters": [{"Pattern": "{"}]})
    refuses("StartingPosition", StartingPosition="LATEST")
    with refused("ResourceNotFoundException", 404, "Function not found"):
        aws.create_event_source_mapping(EventSourceArn=brief.arn, FunctionName="nobody")
    with refused("ResourceNotFoundException", 404, "alias"):
        aws.create_event_source_mapping(EventSourceArn=fifo.arn, FunctionName="slow:live")
    for ask_for in [aws.get_event_source_mapping, aws.delete_event_source_mapping, aws.update_event_source_mapping]:
        with refused("ResourceNotFoundException", 404):
            ask_for(UUID="00000000-0000-4000-8000-000000000000")


def no_queues():
    """A server that knows no queues says what it lacks."""
    aws = client()
    create(aws, "idle", **IMAGE)
    with refused("InvalidParameterValueException", 400, "sqs_endpoint = "):
        aws.create_event_source_mapping(EventSourceArn=queue_arn("jobs"), FunctionName="idle")
    stream = f"arn:aws:dynamodb:{REGION}:{ACCOUNT}:table/t/stream/2026-11-27T00:00:00.000"
    with refused("InvalidParameterValueException", 400, "dynamodb_endpoint = "):
        aws.create_event_source_mapping(EventSourceArn=stream, FunctionName="idle", StartingPosition="LATEST")


def events():
    """Messages are records of AWS's shape, and batches as large as they may be."""
    aws, full, single = client(), Queue("full"), Queue("single")
    create(aws, "gathers", **IMAGE)
    bodies = [f"m{number}" for number in range(30)]
    full.send(*bodies)
    mapped(aws, full, "gathers", BatchSize=30, MaximumBatchingWindowInSeconds=300)
    # They are there already: the batch is full long before its window ends.
    saw("gathers", bodies)
    full.emptied()
    assert max(len(batch) for batch in batches("gathers")) == 30, batches("gathers")

    create(aws, "takes", **IMAGE)
    aws.publish_version(FunctionName="takes")
    aws.create_alias(FunctionName="takes", Name="live", FunctionVersion="1")
    id = mapped(aws, single, "takes:live", BatchSize=1)
    attributes = {"n": {"DataType": "Number", "StringValue": "5"}, "b": {"DataType": "Binary", "BinaryValue": b"\x00"}}
    single.send("\u00e4 \"quoted\"", MessageAttributes=attributes)
    (record,) = until("a record", lambda: lines("takes", "record"))
    single.emptied()
    assert len(record.pop("messageId")) == 36 and record.pop("receiptHandle"), record
    own = record.pop("attributes")
    assert own["ApproximateReceiveCount"] == "1" and own["SentTimestamp"].isdigit(), own
    assert {"SenderId", "ApproximateFirstReceiveTimestamp"} <= set(own), own
    assert len(record.pop("md5OfBody")) == 32 and len(record.pop("md5OfMessageAttributes")) == 32, record
    empty = {"stringListValues": [], "binaryListValues": []}
    assert record == {
        "body": "\u00e4 \"quoted\"",
        "messageAttributes": {
            "n": {"stringValue": "5", "dataType": "Number", **empty},
            "b": {"binaryValue": "AA==", "dataType": "Binary", **empty},
        },
        "eventSource": "aws:sqs",
        "eventSourceARN": single.arn,
        "awsRegion": REGION,
    }, record
    until("the result", lambda: aws.get_event_source_mapping(UUID=id)["LastProcessingResult"] == "OK")


def filters():
    """Messages that no pattern takes are deleted unseen."""
    aws, queue = client(), Queue("mixed")
    create(aws, "picks", **IMAGE)
    patterns = [
        {"body": {"kind": [{"prefix": "or"}], "price": [{"numeric": [">=", 10]}]}},
        {"body": {"$or": [{"zone": [{"wildcard": "eu-*-1"}]}, {"zone": [{"exists": False}], "old": [True]}]}},
        {"body": [{"suffix": "!"}]},
    ]
    mapped(aws, queue, "picks", FilterCriteria={"Filters": [{"Pattern": json.dumps(one)} for one in patterns]})
    good = [{"kind": "order", "price": 10}, {"zone": "eu-west-1"}, {"old": True}, "now!"]
    bad = [{"kind": "order", "price": 9}, {"kind": "bill", "price": 10}, {"zone": "eu-west-2"}, {"zone": "x", "old": True}, "now"]
    queue.send(*[one for pair in zip(bad, good) for one in pair], bad[-1])
    saw("picks", good)
    queue.emptied()
    bodies = {body for body, _ in given("picks")}
    assert bodies == {one if isinstance(one, str) else json.dumps(one) for one in good}, bodies


def failures():
    """What failed comes again, and nothing else."""
    aws, partly, wholly = client(), Queue("partly", visibility=20), Queue("wholly", visibility=20)
    for name in ["tries", "raises"]:
        create(aws, name, **{**IMAGE, "Timeout": 20})
    again = {"fail": 1}
    partly.send("a", again, "b")
    id = mapped(aws, partly, "tries", FunctionResponseTypes=["ReportBatchItemFailures"])
    wholly.send("c", {"raise": 1})
    other = mapped(aws, wholly, "raises")
    until("a failure is told", lambda: "PROBLEM" in aws.get_event_source_mapping(UUID=other)["LastProcessingResult"])
    partly.emptied()
    wholly.emptied()
    saw("tries", ["a", "b", again])
    counts = {body: {count for other, count in given("tries") if other == body} for body, _ in given("tries")}
    # Once it has failed it is received again; the others were done.
    assert max(counts[json.dumps(again)]) >= 2 and counts["a"] == counts["b"] == {1}, counts
    failed = max(count for body, count in given("raises") if body != "c")
    assert failed >= 2 and max(count for body, count in given("raises") if body == "c") >= 2, given("raises")
    for gone in [id, other]:
        aws.delete_event_source_mapping(UUID=gone)


def throttles():
    """Batches that nothing takes wait for their turn, and are not received twice."""
    aws, queue = client(), Queue("narrow", visibility=600)
    create(aws, "narrow", **IMAGE)
    aws.put_function_concurrency(FunctionName="narrow", ReservedConcurrentExecutions=1)
    bodies = [{"sleep": 0.5, "n": number} for number in range(8)]
    queue.send(*bodies)
    id = mapped(aws, queue, "narrow", BatchSize=1)
    saw("narrow", bodies)
    queue.emptied()
    assert {count for _, count in given("narrow")} == {1}, given("narrow")

    # With a reservation of none, nothing is received.
    aws.put_function_concurrency(FunctionName="narrow", ReservedConcurrentExecutions=0)
    until("it is closed", lambda: "reserved" in aws.get_event_source_mapping(UUID=id)["LastProcessingResult"])
    queue.send("later")
    aws.delete_function_concurrency(FunctionName="narrow")
    saw("narrow", ["later"])
    queue.emptied()
    assert ("later", 1) in given("narrow"), given("narrow")


def order():
    """Messages of a group come one after the other, also when one fails."""
    aws, queue = client(), Queue("line.fifo", visibility=10, FifoQueue="true")
    create(aws, "follows", **{**IMAGE, "Timeout": 10})
    sent = {}
    for number in range(4):
        for group in ["a", "b"]:
            body = json.dumps({"group": group, "n": number, "raise": int((group, number) == ("a", 1))})
            sent.setdefault(group, []).append(body)
            queue.send(body, MessageGroupId=group, MessageDeduplicationId=f"{group}{number}")
    mapped(aws, queue, "follows", BatchSize=1)
    for bodies in sent.values():
        saw("follows", bodies)
    queue.emptied()
    for group, bodies in sent.items():
        firsts = list(dict.fromkeys(body for body, _ in given("follows") if json.loads(body)["group"] == group))
        assert firsts == bodies, given("follows")
    assert max(count for _, count in given("follows")) >= 2, given("follows")


def pauses():
    """A mapping that is disabled or deleted takes nothing more."""
    aws, queue = client(), Queue("paused")
    create(aws, "pauses", **IMAGE)
    id = mapped(aws, queue, "pauses")
    queue.send("first")
    saw("pauses", ["first"])
    told = aws.update_event_source_mapping(UUID=id, Enabled=False)
    assert told["State"] == "Disabling", told
    state(aws, id, "Disabled")
    queue.send("second")
    assert queue.left()[0] == 1, queue.left()
    assert aws.update_event_source_mapping(UUID=id, Enabled=True)["State"] == "Enabling"
    state(aws, id, "Enabled")
    saw("pauses", ["second"])
    queue.emptied()
    # The function may go before its mapping, and come back.
    aws.delete_function(FunctionName="pauses")
    queue.send("third")
    until("it is told", lambda: "Function" in aws.get_event_source_mapping(UUID=id)["LastProcessingResult"])
    create(aws, "pauses", **IMAGE)
    saw("pauses", ["third"])
    queue.emptied()
    aws.delete_event_source_mapping(UUID=id)
    with refused("ResourceNotFoundException", 404):
        aws.get_event_source_mapping(UUID=id)


class Table:
    """A table with a stream."""

    def __init__(self, name):
        self.store, self.name = service("dynamodb"), name
        made = self.store.create_table(
            TableName=name,
            KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
            BillingMode="PAY_PER_REQUEST",
            StreamSpecification={"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"},
        )
        self.arn = made["TableDescription"]["LatestStreamArn"]

    def put(self, *ids, **numbers):
        more = {name: {"N": str(value)} for name, value in numbers.items()}
        for id in ids:
            self.store.put_item(TableName=self.name, Item={"id": {"S": id}, **more})


def streams():
    """Records reach their function in order, from where it was asked for."""
    aws, table = client(), Table("orders")
    for name in ["follows-all", "follows-new"]:
        create(aws, name, **run_by(STREAM_HANDLER))
    ids = [f"r{number}" for number in range(25)]
    table.put(*ids)
    pattern = json.dumps({"eventName": ["INSERT"], "dynamodb": {"Keys": {"id": {"S": [{"prefix": "r"}]}}}})
    whole = mapped(
        aws,
        table,
        "follows-all",
        StartingPosition="TRIM_HORIZON",
        BatchSize=10,
        FilterCriteria={"Filters": [{"Pattern": pattern}]},
    )
    # Times are told in whole seconds.
    second = int(time.time())
    until("the next second", lambda: int(time.time()) > second)
    new = mapped(aws, table, "follows-new", StartingPosition="LATEST")
    got = aws.get_event_source_mapping(UUID=new)
    for field, value in {
        "StartingPosition": "LATEST",
        "BatchSize": 100,
        "BisectBatchOnFunctionError": False,
        "MaximumRetryAttempts": -1,
        "MaximumRecordAgeInSeconds": -1,
        "DestinationConfig": {"OnFailure": {}},
    }.items():
        assert got[field] == value, got
    with refused("ResourceConflictException", 409, new):
        aws.create_event_source_mapping(EventSourceArn=table.arn, FunctionName="follows-new", StartingPosition="LATEST")
    table.store.delete_item(TableName="orders", Key={"id": {"S": "r0"}})
    table.put("other", "r25")
    saw("follows-all", ids + ["r25"])
    assert [id for id, _ in given("follows-all")] == ids + ["r25"], given("follows-all")
    assert max(len(batch) for batch in batches("follows-all")) <= 10
    saw("follows-new", ["r25"])
    assert given("follows-new") == [("r0", "REMOVE"), ("other", "INSERT"), ("r25", "INSERT")], given("follows-new")
    record = lines("follows-all", "record")[0]
    assert record["eventSourceARN"] == table.arn and record["eventSource"] == "aws:dynamodb", record
    assert record["dynamodb"]["NewImage"] == {"id": {"S": "r0"}}, record
    # Where it was is kept while it is disabled.
    aws.update_event_source_mapping(UUID=whole, Enabled=False)
    state(aws, whole, "Disabled")
    table.put("r26")
    aws.update_event_source_mapping(UUID=whole, Enabled=True)
    saw("follows-all", ["r26"])
    assert [id for id, _ in given("follows-all")] == ids + ["r25", "r26"], given("follows-all")
    for gone in [whole, new]:
        aws.delete_event_source_mapping(UUID=gone)

    def refuses(part, arn=table.arn, **wanted):
        with refused("InvalidParameterValueException", 400, part):
            aws.create_event_source_mapping(EventSourceArn=arn, FunctionName="follows-all", **wanted)

    refuses("StartingPosition")
    refuses("StartingPosition", StartingPosition="AT_TIMESTAMP")
    refuses("ParallelizationFactor", StartingPosition="LATEST", ParallelizationFactor=2)
    refuses("DescribeStream", table.arn.replace("orders", "nobody"), StartingPosition="LATEST")
    refuses("of this region", table.arn.replace(ACCOUNT, "000000000009"), StartingPosition="LATEST")
    function = {"OnFailure": {"Destination": arn("follows-all")}}
    refuses("DestinationConfig", StartingPosition="LATEST", DestinationConfig=function)


def stream_failures():
    """What fails is tried, in halves or from where it failed, and given up."""
    aws, dead = client(), Queue("given-up")
    for name, stage in [("halves", "whole"), ("resumes", "partial")]:
        create(aws, name, Environment={"Variables": {"STAGE": stage}}, **run_by(STREAM_HANDLER))
    ids = [f"r{number}" for number in range(8)]
    table = Table("halved")
    table.put(*ids[:5])
    table.put("bad", fail=1000)
    table.put(*ids[5:])
    mapped(
        aws,
        table,
        "halves",
        StartingPosition="TRIM_HORIZON",
        BisectBatchOnFunctionError=True,
        MaximumRetryAttempts=1,
        DestinationConfig={"OnFailure": {"Destination": dead.arn}},
    )
    saw("halves", ids)

    (message,) = until("it is told", dead.received)
    told = json.loads(message["Body"])
    context, batch = told["requestContext"], told["DDBStreamBatchInfo"]
    assert context["condition"] == "RetryAttemptsExhausted" and context["approximateInvokeCount"] == 2, told
    assert context["functionArn"] == arn("halves"), told
    assert batch["batchSize"] == 1 and batch["streamArn"] == table.arn, told
    assert batch["startSequenceNumber"] == batch["endSequenceNumber"] and batch["shardId"], told

    def all_tried():
        return len(batches("halves")) > 6 and [id for id, _ in given("halves")][-2:] == ids[-2:]

    until("what comes behind it is tried", all_tried)
    tries = [id for id, _ in given("halves")]
    # By itself it was tried twice, and what came before it, before it.
    assert [len(batch) for batch in batches("halves") if ["bad", "INSERT"] in batch].count(1) == 2, batches("halves")
    lasts = {id: len(tries) - 1 - tries[::-1].index(id) for id in tries}
    assert sorted(lasts, key=lasts.get) == ids[:5] + ["bad"] + ids[5:], tries

    table = Table("resumed")
    table.put("a", "b")
    table.put("again", fail=1)
    table.put("c")
    mapped(
        aws,
        table,
        "resumes",
        StartingPosition="TRIM_HORIZON",
        FunctionResponseTypes=["ReportBatchItemFailures"],
        MaximumRetryAttempts=5,
    )
    saw("resumes", ["a", "b", "again", "c"])
    until("it is tried from there", lambda: len(batches("resumes")) >= 2)
    tried = [[id for id, _ in batch] for batch in batches("resumes")]
    assert tried == [["a", "b", "again", "c"], ["again", "c"]], tried

    # Where the answer says from where, that is where a batch is cut.
    table = Table("cut")
    table.put("a", "b")
    table.put("again", fail=1)
    table.put("c")
    create(aws, "cuts", Environment={"Variables": {"STAGE": "partial"}}, **run_by(STREAM_HANDLER))
    mapped(
        aws,
        table,
        "cuts",
        StartingPosition="TRIM_HORIZON",
        FunctionResponseTypes=["ReportBatchItemFailures"],
        BisectBatchOnFunctionError=True,
        MaximumRetryAttempts=0,
    )
    until("it is tried from there", lambda: len(batches("cuts")) >= 2)
    tried = [[id for id, _ in batch] for batch in batches("cuts")]
    assert tried == [["a", "b", "again", "c"], ["again", "c"]], tried


def shards():
    """Of `shards.py`'s stream."""
    aws, dead = client(), Queue("given-up-of-shards")
    create(aws, "by-shards", Environment={"Variables": {"STAGE": "whole"}}, **run_by(STREAM_HANDLER))
    stream = f"arn:aws:dynamodb:{REGION}:{ACCOUNT}:table/sharded/stream/2026-01-01T00:00:00.000"
    made = aws.create_event_source_mapping(
        EventSourceArn=stream,
        FunctionName="by-shards",
        StartingPosition="TRIM_HORIZON",
        BatchSize=1,
        MaximumRecordAgeInSeconds=1800,
        DestinationConfig={"OnFailure": {"Destination": dead.arn}},
    )
    told = {}

    def arrived(condition):
        for message in dead.received():
            body = json.loads(message["Body"])
            told[body["requestContext"]["condition"]] = body
        return told.get(condition)

    # What is over its age is not tried once.
    aged = until("the old one is given up", lambda: arrived("RecordAgeExceeded"))
    assert aged["requestContext"]["approximateInvokeCount"] == 0, aged
    assert aged["DDBStreamBatchInfo"]["shardId"] == "shardId-aged", aged
    # One shard goes on while another one's record fails, whose child waits.
    saw("by-shards", ["o1", "o2", "o3"])
    until("it fails again", lambda: [id for id, _ in given("by-shards")].count("f2") >= 2)
    assert not {"s1", "s2", "old"} & {id for id, _ in given("by-shards")}, given("by-shards")
    # Its record is not kept for the next try, but read again.
    keys = [record["dynamodb"]["Keys"] for record in lines("by-shards", "record")]
    assert len({key["reads"]["N"] for key in keys if key["id"]["S"] == "f2"}) > 1, keys
    aws.update_event_source_mapping(UUID=made["UUID"], MaximumRetryAttempts=1)
    ended = until("it is given up", lambda: arrived("RetryAttemptsExhausted"))
    assert ended["DDBStreamBatchInfo"]["shardId"] == "shardId-first", ended
    saw("by-shards", ["s1", "s2"])
    order = [id for id, _ in given("by-shards")]
    last = len(order) - 1 - order[::-1].index("f2")
    assert order.index("f1") < order.index("f2") and last < order.index("s1") < order.index("s2"), order
    assert "old" not in order, order
    aws.delete_event_source_mapping(UUID=made["UUID"])

    # AWS's own filter of what DynamoDB has deleted.
    create(aws, "by-owner", Environment={"Variables": {"STAGE": "whole"}}, **run_by(STREAM_HANDLER))
    aws.create_event_source_mapping(
        EventSourceArn=stream,
        FunctionName="by-owner",
        StartingPosition="TRIM_HORIZON",
        FilterCriteria={"Filters": [{"Pattern": json.dumps({"userIdentity": {"type": ["Service"]}})}]},
    )
    saw("by-owner", ["ttl"])
    assert given("by-owner") == [("ttl", "REMOVE")], given("by-owner")
    identity = lines("by-owner", "record")[0]["userIdentity"]
    assert identity == {"principalId": "dynamodb.amazonaws.com", "type": "Service"}, identity


def before_the_tries_crashes():
    """A record that its function never takes."""
    aws, table, dead = client(), Table("hopeless"), Queue("hopeless")
    create(aws, "hopeless", Environment={"Variables": {"STAGE": "whole"}}, **run_by(STREAM_HANDLER))
    table.put("bad", fail=1000)
    mapped(
        aws,
        table,
        "hopeless",
        StartingPosition="TRIM_HORIZON",
        MaximumRetryAttempts=6,
        DestinationConfig={"OnFailure": {"Destination": dead.arn}},
    )


def after_the_tries_crashes():
    """It was tried as often as it may be, in all."""
    dead = Queue("hopeless")

    told = json.loads(until("it is told", dead.received)[0]["Body"])
    context = told["requestContext"]
    assert context["condition"] == "RetryAttemptsExhausted" and context["approximateInvokeCount"] == 7, told
    assert 1 <= len(batches("hopeless")) <= 7, batches("hopeless")


def before_the_streams_crashes():
    """A function that remembers what it was given, of a stream with much in it."""
    aws, table = client(), Table("lasting")
    create(aws, "lasting", **run_by(LASTING))
    table.put(*[f"r{number}" for number in range(60)])
    mapped(aws, table, "lasting", StartingPosition="TRIM_HORIZON", BatchSize=1)


def after_the_streams_crashes():
    """Every record was given to the function: it wrote that down, or remembers it."""
    aws = client()
    (found,) = aws.list_event_source_mappings(FunctionName="lasting")["EventSourceMappings"]
    saw("lasting", ["r59"])
    until("it is done", lambda: aws.get_event_source_mapping(UUID=found["UUID"])["LastProcessingResult"] == "OK")
    remembered = ask(aws, "lasting", {})[1]
    seen = {body for body, _ in given("lasting")} | set(remembered)
    assert {f"r{number}" for number in range(60)} <= seen, seen


def before_the_crashes():
    """A function that remembers what it was given, of a queue with much in it."""
    aws, queue = client(), Queue("lasting", visibility=15)
    create(aws, "lasting", **{**run_by(LASTING), "Timeout": 10})
    # One instance remembers all.
    aws.put_function_concurrency(FunctionName="lasting", ReservedConcurrentExecutions=1)
    queue.send(*[f"m{number}" for number in range(200)])
    mapped(aws, queue, "lasting", BatchSize=3)


def after_the_crashes():
    """Nothing was deleted that the function was not given.

    It wrote that down, and its instance remembers it: either may be lost to a
    crash, but not both.
    """
    aws, queue = client(), Queue("lasting", visibility=15)
    (found,) = aws.list_event_source_mappings(FunctionName="lasting")["EventSourceMappings"]
    assert found["State"] == "Enabled" and found["BatchSize"] == 3, found
    queue.emptied()
    aws.delete_event_source_mapping(UUID=found["UUID"])
    aws.delete_function_concurrency(FunctionName="lasting")
    remembered = ask(aws, "lasting", {})[1]
    seen = {body for body, _ in given("lasting")} | set(remembered)
    assert {f"m{number}" for number in range(200)} <= seen, seen


if __name__ == "__main__":
    globals()[sys.argv[1]]()
