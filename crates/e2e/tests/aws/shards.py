"""A stream of DynamoDB's kind with several shards, which moto's have not:
`shards.py`, until its standard input ends. Signatures are not looked at.

    first ─▶ second     ended, and its child
    other               beside them
    aged                its first record is an hour old, its second a deletion
                        by DynamoDB itself

Each record says how often it was read.
"""

import http.server
import json
import os
import sys
import threading
import time

AN_HOUR = 3600


def record(number, id, age=0, **more):
    image = {"id": {"S": id}, **{name: {"N": str(value)} for name, value in more.items()}}
    return {
        "eventID": f"event-{number}",
        "eventName": "INSERT",
        "eventSource": "aws:dynamodb",
        "eventVersion": "1.1",
        "awsRegion": "us-east-1",
        "dynamodb": {
            "ApproximateCreationDateTime": time.time() - age,
            "Keys": {"id": {"S": id}},
            "NewImage": image,
            "SequenceNumber": f"{number:021}",
            "SizeBytes": 26,
            "StreamViewType": "NEW_AND_OLD_IMAGES",
        },
    }


def expired(number, id):
    """What DynamoDB tells of an item whose time to live is over."""
    told = record(number, id)
    del told["dynamodb"]["NewImage"]
    identity = {"PrincipalId": "dynamodb.amazonaws.com", "Type": "Service"}
    return {**told, "eventName": "REMOVE", "userIdentity": identity}


SHARDS = {
    "shardId-first": [record(1, "f1"), record(2, "f2", fail=1_000_000)],
    "shardId-second": [record(3, "s1"), record(4, "s2")],
    "shardId-other": [record(5, "o1"), record(6, "o2"), record(7, "o3")],
    "shardId-aged": [record(8, "old", age=AN_HOUR), expired(9, "ttl")],
}
PARENTS = {"shardId-second": "shardId-first"}
ENDED = {"shardId-first"}


def describe(asked):
    # A page has one shard: whoever wants all has to ask for more.
    names = list(SHARDS)
    start = names.index(asked["ExclusiveStartShardId"]) + 1 if "ExclusiveStartShardId" in asked else 0
    shard = {"ShardId": names[start], "SequenceNumberRange": {"StartingSequenceNumber": "1"}}
    if names[start] in PARENTS:
        shard["ParentShardId"] = PARENTS[names[start]]
    told = {"StreamArn": asked["StreamArn"], "StreamStatus": "ENABLED", "Shards": [shard]}
    if start + 1 < len(names):
        told["LastEvaluatedShardId"] = names[start]
    return {"StreamDescription": told}


def iterator(asked):
    shard, after = SHARDS[asked["ShardId"]], asked.get("SequenceNumber")
    numbers = [one["dynamodb"]["SequenceNumber"] for one in shard]
    start = numbers.index(after) + 1 if after else 0
    return {"ShardIterator": json.dumps([asked["ShardId"], start])}


def records(asked):
    name, start = json.loads(asked["ShardIterator"])
    found = SHARDS[name][start : start + asked["Limit"]]
    for one in found:
        reads = one["dynamodb"]["Keys"].setdefault("reads", {"N": "0"})
        reads["N"] = str(int(reads["N"]) + 1)
    told = {"Records": found}
    end = start + len(found)
    if name not in ENDED or end < len(SHARDS[name]):
        told["NextShardIterator"] = json.dumps([name, end])
    return told


OPERATIONS = {"DescribeStream": describe, "GetShardIterator": iterator, "GetRecords": records}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        operation = self.headers["X-Amz-Target"].rsplit(".", 1)[1]
        told = json.dumps(OPERATIONS[operation](asked)).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/x-amz-json-1.0")
        self.send_header("Content-Length", str(len(told)))
        self.end_headers()
        self.wfile.write(told)

    def log_message(self, *_words):
        pass


def watch():
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    threading.Thread(target=watch, daemon=True).start()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(f"Running on http://127.0.0.1:{server.server_port}", file=sys.stderr, flush=True)
    server.serve_forever()
