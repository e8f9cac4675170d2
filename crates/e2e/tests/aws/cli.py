"""Every operation that is served, by the AWS CLI: `cli.py CASE`.

Beside what `clients.py` needs: `SQS`, where queues of SQS's kind are. The
commands are the program's own, run in this process, which takes a second less
each time.
"""

import contextlib
import io
import json
import os
import re
import sys

import boto3
from awscli.clidriver import create_clidriver
from botocore import xform_name
from botocore.session import Session

from clients import ACCOUNT, ENDPOINT, HANDLER, REGION, ROLE, arn, run_by, until
from zips import zipped

for service in ["SCHEDULER", "CLOUDWATCH_LOGS"]:
    os.environ[f"AWS_ENDPOINT_URL_{service}"] = ENDPOINT
DRIVER = create_clidriver()
MODELS = {name: Session().get_service_model(name) for name in ["lambda", "scheduler", "logs"]}
NAMES = {
    name: {xform_name(operation, "-"): operation for operation in model.operation_names}
    for name, model in MODELS.items()
}
called = set()


def tell(service, *words, **options):
    """A command's exit code, what it says and what it complains of."""
    words = [service, *words]
    for name, value in options.items():
        words.append("--" + name.replace("_", "-"))
        if value is not True:
            words.append(value if isinstance(value, str) else json.dumps(value))
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = DRIVER.main(words)
    return code, out.getvalue(), err.getvalue()


def run(service, command, *words, **options):
    """Runs a command that succeeds: its reply."""
    code, out, err = tell(service, command, *words, **options)
    assert code == 0, (command, words, options, err)
    called.add(NAMES[service].get(command))
    return json.loads(out) if out.strip() else None


def served():
    """What the server itself names to who asks for another operation."""
    code, _, err = tell("lambda", "list-code-signing-configs")
    assert code != 0 and "NotImplemented" in err, err
    known = {operation for model in MODELS.values() for operation in model.operation_names}
    return set(re.findall(r"\w+", err.partition("served here:")[2])) & known


def functions(name):
    own = {"function_name": name}
    image = run_by(HANDLER)["ImageConfig"]
    run("lambda", "create-function", package_type="Image", role=ROLE, code="ImageUri=hello-python:1",
        image_config=image, timeout="60", **own)
    run("lambda", "wait", "function-active-v2", **own)
    assert run("lambda", "get-function", function_name=arn(name))["Configuration"]["State"] == "Active"
    assert run("lambda", "get-function-configuration", **own)["Timeout"] == 60
    listed = run("lambda", "list-functions")["Functions"]
    assert name in [one["FunctionName"] for one in listed], listed
    out = os.path.join(os.environ["SCRATCH"], "out.json")
    told = run("lambda", "invoke", out, payload='{"a": 1}', **own)
    assert told["StatusCode"] == 200, told
    with open(out) as file:
        assert json.load(file)["event"] == {"a": 1}
    run("lambda", "update-function-configuration", environment={"Variables": {"STAGE": "two"}}, **own)
    run("lambda", "wait", "function-updated-v2", **own)
    assert run("lambda", "publish-version", **own)["Version"] == "1"
    run("lambda", "update-function-code", image_uri="hello-python:1", **own)
    run("lambda", "wait", "function-updated-v2", **own)
    versions = run("lambda", "list-versions-by-function", **own)["Versions"]
    assert [one["Version"] for one in versions] == ["$LATEST", "1"], versions
    run("lambda", "create-alias", name="live", function_version="1", **own)
    run("lambda", "update-alias", name="live", description="what counts", **own)
    assert run("lambda", "get-alias", name="live", **own)["Description"] == "what counts"
    assert len(run("lambda", "list-aliases", **own)["Aliases"]) == 1


def settings(name):
    """What is set of a function and its alias, read and taken back."""
    own, alias = {"function_name": name}, {"function_name": name, "qualifier": "live"}
    run("lambda", "put-function-concurrency", reserved_concurrent_executions="3", **own)
    assert run("lambda", "get-function-concurrency", **own)["ReservedConcurrentExecutions"] == 3
    run("lambda", "delete-function-concurrency", **own)
    kept = "provisioned-concurrency-config"
    run("lambda", f"put-{kept}", provisioned_concurrent_executions="1", **alias)
    assert run("lambda", f"get-{kept}", **alias)["RequestedProvisionedConcurrentExecutions"] == 1
    assert len(run("lambda", f"list-{kept}s", **own)["ProvisionedConcurrencyConfigs"]) == 1
    run("lambda", f"delete-{kept}", **alias)
    events = "function-event-invoke-config"
    run("lambda", f"put-{events}", maximum_retry_attempts="1", **alias)
    run("lambda", f"update-{events}", maximum_event_age_in_seconds="60", **alias)
    told = run("lambda", f"get-{events}", **alias)
    assert (told["MaximumRetryAttempts"], told["MaximumEventAgeInSeconds"]) == (1, 60), told
    assert len(run("lambda", f"list-{events}s", **own)["FunctionEventInvokeConfigs"]) == 1
    run("lambda", f"delete-{events}", **alias)
    may = {"statement_id": "other", "action": "lambda:InvokeFunction", "principal": os.environ["OTHER_ACCOUNT"]}
    run("lambda", "add-permission", **may, **own)
    assert "other" in run("lambda", "get-policy", **own)["Policy"]
    run("lambda", "remove-permission", statement_id="other", **own)
    url = "function-url-config"
    run("lambda", f"create-{url}", auth_type="AWS_IAM", **own)
    run("lambda", f"update-{url}", cors={"AllowOrigins": ["https://a.example"]}, **own)
    assert run("lambda", f"get-{url}", **own)["Cors"]["AllowOrigins"] == ["https://a.example"]
    assert len(run("lambda", f"list-{url}s", **own)["FunctionUrlConfigs"]) == 1
    run("lambda", f"delete-{url}", **own)
    tagged = {"resource": arn(name)}
    run("lambda", "tag-resource", tags="a=b", **tagged)
    assert run("lambda", "list-tags", **tagged)["Tags"] == {"a": "b"}
    run("lambda", "untag-resource", tag_keys="a", **tagged)
    assert "AccountLimit" in run("lambda", "get-account-settings")


def sources(name):
    queues = boto3.client(
        "sqs", endpoint_url=os.environ["SQS"], region_name=REGION, aws_access_key_id="any", aws_secret_access_key="any"
    )
    queues.create_queue(QueueName="typed", Attributes={"VisibilityTimeout": "60"})
    mapping = "event-source-mapping"
    queue = f"arn:aws:sqs:{REGION}:{ACCOUNT}:typed"
    made = run("lambda", f"create-{mapping}", event_source_arn=queue, function_name=name, no_enabled=True)
    own = {"uuid": made["UUID"]}
    run("lambda", f"update-{mapping}", batch_size="5", **own)
    assert run("lambda", f"get-{mapping}", **own)["BatchSize"] == 5
    assert len(run("lambda", f"list-{mapping}s", function_name=name)["EventSourceMappings"]) == 1
    run("lambda", f"delete-{mapping}", **own)


def layers():
    file = os.path.join(os.environ["SCRATCH"], "layer.zip")
    with open(file, "wb") as out:
        out.write(zipped(("words", "of a layer")))
    layer = {"layer_name": "typed"}
    made = run("lambda", "publish-layer-version", zip_file=f"fileb://{file}", **layer)
    assert len(run("lambda", "list-layers")["Layers"]) == 1
    assert len(run("lambda", "list-layer-versions", **layer)["LayerVersions"]) == 1
    first = {"version_number": "1", **layer}
    got = run("lambda", "get-layer-version", **first)
    by_arn = run("lambda", "get-layer-version-by-arn", arn=made["LayerVersionArn"])
    assert got["Content"]["CodeSha256"] == by_arn["Content"]["CodeSha256"] == made["Content"]["CodeSha256"]
    may = {"statement_id": "all", "action": "lambda:GetLayerVersion", "principal": "*"}
    run("lambda", "add-layer-version-permission", **may, **first)
    assert "all" in run("lambda", "get-layer-version-policy", **first)["Policy"]
    run("lambda", "remove-layer-version-permission", statement_id="all", **first)
    run("lambda", "delete-layer-version", **first)


def schedules(name):
    own = {"name": "typed"}
    when = {
        "schedule_expression": "cron(0 12 ? * MON-FRI *)",
        "flexible_time_window": {"Mode": "OFF"},
        "target": {"Arn": arn(name), "RoleArn": ROLE},
    }
    run("scheduler", "create-schedule", **when, **own)
    run("scheduler", "update-schedule", state="DISABLED", **when, **own)
    assert run("scheduler", "get-schedule", **own)["State"] == "DISABLED"
    assert len(run("scheduler", "list-schedules")["Schedules"]) == 1
    run("scheduler", "delete-schedule", **own)
    assert run("scheduler", "get-schedule-group", name="default")["State"] == "ACTIVE"
    assert len(run("scheduler", "list-schedule-groups")["ScheduleGroups"]) == 1


def logs(name):
    group = {"log_group_name": f"/aws/lambda/{name}"}
    found = run("logs", "describe-log-groups", log_group_name_prefix="/aws/lambda/")["logGroups"]
    assert group["log_group_name"] in [one["logGroupName"] for one in found], found
    streams = run("logs", "describe-log-streams", **group)["logStreams"]
    shown = until("a report", lambda: run("logs", "filter-log-events", filter_pattern="REPORT", **group)["events"])
    stream = shown[0]["logStreamName"]
    assert stream in [one["logStreamName"] for one in streams], streams
    events = run("logs", "get-log-events", log_stream_name=stream, **group)["events"]
    assert any("REPORT" in event["message"] for event in events), events


def every_operation():
    functions("typed")
    settings("typed")
    sources("typed")
    layers()
    schedules("typed")
    logs("typed")
    run("lambda", "delete-alias", function_name="typed", name="live")
    run("lambda", "delete-function", function_name="typed")
    # The CLI has no command for streams of events.
    assert called - {None} == served() - {"InvokeWithResponseStream"}, called ^ served()


if __name__ == "__main__":
    globals()[sys.argv[1]]()
