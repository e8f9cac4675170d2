"""Functions from zip files, as AWS's own clients see them: `zips.py CASE`.

Beside what `clients.py` needs, `BOOTSTRAP` is a static runtime's file, and
`S3` the URL of an S3-compatible store that the server fetches code from.
"""

import base64
import hashlib
import io
import json
import os
import random
import sys
import time
import urllib.error
import urllib.request
import zipfile

import boto3
from botocore.config import Config

from clients import ACCOUNT, ROLE, ask, client, other, refused, subprocess, updated

# Its awslambdaric is in the runtime's image.
HANDLER = """
import os
def handler(event, context):
    return {"said": SAID, "event": event, "handler": os.environ["_HANDLER"], "name": context.function_name,
            "cwd": os.getcwd(), "runtime": os.environ.get("AWS_EXECUTION_ENV")}
other = lambda event, context: "other"
"""


def handler(said):
    return f"SAID = {said!r}\n{HANDLER}"


def zipped(*files, links=()):
    """A zip file of files, each (name, content) or (name, content, mode)."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as zip:
        for name, content, *mode in files:
            info = zipfile.ZipInfo(name, (2026, 1, 2, 3, 4, 6))
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = (0o100000 | (mode or [0o644])[0]) << 16
            zip.writestr(info, content)
        for name, target in links:
            info = zipfile.ZipInfo(name)
            info.create_system = 3
            info.external_attr = 0o120777 << 16
            zip.writestr(info, target)
    return out.getvalue()


def sha256(zip):
    return base64.b64encode(hashlib.sha256(zip).digest()).decode()


def python(said):
    return zipped(("mine.py", handler(said)), ("pkg/data.txt", "data"))


def own_bootstrap(*more):
    with open(os.environ["BOOTSTRAP"], "rb") as file:
        return zipped(("bootstrap", file.read(), 0o755), *more)


PYTHON = {"Role": ROLE, "Runtime": "python3.12", "Handler": "mine.handler", "Timeout": 60}
OWN = {"Role": ROLE, "Runtime": "provided.al2023", "Handler": "any", "Timeout": 60}


def active(aws, name):
    aws.get_waiter("function_active_v2").wait(FunctionName=name, WaiterConfig={"Delay": 1})


def scratch():
    """`/tmp` is as large as AWS has it, whatever the memory is."""
    aws = client()
    code = """
import os
def handler(event, context):
    with open("/tmp/file", "wb") as file:
        # Written out as it goes: its size is what is looked at.
        for _ in range(event // 10):
            file.write(bytes(10000000))
            os.fsync(file)
    size = os.stat("/tmp/file").st_size
    os.remove("/tmp/file")
    of = os.statvfs("/tmp")
    return [size, of.f_blocks * of.f_frsize >> 20]
"""
    made = aws.create_function(FunctionName="scratch", Code={"ZipFile": zipped(("mine.py", code))}, **PYTHON)
    assert made["EphemeralStorage"] == {"Size": 512}, made
    active(aws, "scratch")
    size, whole = ask(aws, "scratch", 500)[1]
    assert size == 500000000 and 480 < whole <= 512, (size, whole)
    reply, told = ask(aws, "scratch", 600)
    assert told["errorType"] == "OSError" and "No space left" in told["errorMessage"], told
    # botocore knows the least, and not the most.
    with refused("InvalidParameterValueException", 400, "512 to 10240"):
        aws.update_function_configuration(FunctionName="scratch", EphemeralStorage={"Size": 10241})
    changed = aws.update_function_configuration(FunctionName="scratch", EphemeralStorage={"Size": 1024})
    assert changed["EphemeralStorage"] == {"Size": 1024}, changed
    updated(aws, "scratch")
    assert 970 < ask(aws, "scratch", 10)[1][1] <= 1024
    aws.delete_function(FunctionName="scratch")


def zips():
    """Made, invoked, changed, published, looked at and deleted."""
    aws = client()
    one, two = python("one"), python("two")
    made = aws.create_function(FunctionName="zip", Code={"ZipFile": one}, **PYTHON)
    assert made["State"] == "Pending" and made["PackageType"] == "Zip", made
    assert made["CodeSha256"] == sha256(one) and made["CodeSize"] == len(one), made
    assert (made["Runtime"], made["Handler"]) == ("python3.12", "mine.handler"), made
    active(aws, "zip")
    config = aws.get_function_configuration(FunctionName="zip")
    assert "::runtime:" in config["RuntimeVersionConfig"]["RuntimeVersionArn"], config
    answer = ask(aws, "zip", 7)[1]
    expected = {"said": "one", "event": 7, "handler": "mine.handler", "name": "zip", "cwd": "/var/task"}
    assert {**answer, **expected} == answer, answer
    assert answer["runtime"] == "AWS_Lambda_python3.12", answer

    dry = aws.update_function_code(FunctionName="zip", ZipFile=two, DryRun=True)
    assert dry["CodeSha256"] == sha256(two), dry
    assert ask(aws, "zip")[1]["said"] == "one"
    with refused("PreconditionFailedException", 412):
        aws.update_function_code(FunctionName="zip", ZipFile=two, RevisionId="other")
    with refused("InvalidParameterValueException", 400, "CodeSha256"):
        aws.publish_version(FunctionName="zip", CodeSha256=sha256(two))
    aws.publish_version(FunctionName="zip", CodeSha256=sha256(one))
    published = aws.update_function_code(FunctionName="zip", ZipFile=two, Publish=True)
    assert published["Version"] == "2" and published["CodeSha256"] == sha256(two), published
    assert published["State"] == "Pending", published
    aws.get_waiter("published_version_active").wait(FunctionName="zip", Qualifier="2", WaiterConfig={"Delay": 1})
    for qualifier, said in [("1", "one"), ("2", "two"), ("$LATEST", "two")]:
        assert ask(aws, "zip", Qualifier=qualifier)[1]["said"] == said, qualifier
    first = aws.get_function(FunctionName="zip", Qualifier="1")
    assert first["Configuration"]["CodeSha256"] == sha256(one), first
    location = first["Code"]["Location"]
    with urllib.request.urlopen(location) as reply:
        assert reply.read() == one
    for wrong in [location.replace("X-Amz-Expires=600", "X-Amz-Expires=900"), location.split("?")[0]]:
        try:
            urllib.request.urlopen(wrong)
        except urllib.error.HTTPError as error:
            assert error.code == 403, error
        else:
            raise AssertionError(wrong)

    aws.update_function_configuration(FunctionName="zip", Handler="mine.other")
    updated(aws, "zip")
    assert ask(aws, "zip")[1] == "other"
    listed = [found for found in aws.list_functions()["Functions"] if found["FunctionName"] == "zip"]
    assert listed[0]["Handler"] == "mine.other" and listed[0]["CodeSize"] == len(two), listed
    aws.delete_function(FunctionName="zip")


def bootstraps():
    """A static program over nothing, and over an image."""
    aws = client()
    aws.create_function(FunctionName="own", Code={"ZipFile": own_bootstrap(("lib/a", "a"))}, **OWN)
    active(aws, "own")
    answer = ask(aws, "own", {"a": [1]})[1]
    assert answer["event"] == {"a": [1]} and answer["program"] == "/var/task/bootstrap", answer
    assert answer["handler"] == "any" and answer["task"] == "bootstrap,lib", answer
    assert answer["cwd"] == answer["root"] == "/var/task", answer
    aws.update_function_configuration(FunctionName="own", Runtime="provided.al2")
    updated(aws, "own")
    assert ask(aws, "own", 1)[1]["event"] == 1
    aws.delete_function(FunctionName="own")


def layers():
    """Shared below /opt, in order; used after they are deleted; of other projects."""
    aws = client()

    def publish(name, *files, **more):
        return aws.publish_layer_version(LayerName=name, Content={"ZipFile": zipped(*files)}, **more)

    low = publish("low", ("said", "low"), ("only-low", ""), CompatibleRuntimes=["provided.al2023"], Description="one")
    assert low["Version"] == 1 and low["LayerVersionArn"] == low["LayerArn"] + ":1", low
    assert low["Content"]["CodeSha256"] == sha256(zipped(("said", "low"), ("only-low", ""))), low
    with urllib.request.urlopen(low["Content"]["Location"]) as reply:
        assert len(reply.read()) == low["Content"]["CodeSize"]
    high = publish("high", ("said", "high"), CompatibleArchitectures=["x86_64"])
    arns = [low["LayerVersionArn"], high["LayerVersionArn"]]
    made = aws.create_function(FunctionName="layered", Code={"ZipFile": own_bootstrap()}, Layers=arns, **OWN)
    assert [layer["Arn"] for layer in made["Layers"]] == arns, made
    active(aws, "layered")
    answer = ask(aws, "layered", 1)[1]
    assert answer["said"] == "high" and answer["opt"] == "only-low,said", answer
    aws.update_function_configuration(FunctionName="layered", Layers=arns[::-1])
    updated(aws, "layered")
    assert ask(aws, "layered", 1)[1]["said"] == "low"

    again = publish("low", ("said", "again"))
    assert again["Version"] == 2, again
    versions = aws.list_layer_versions(LayerName="low")["LayerVersions"]
    assert [version["Version"] for version in versions] == [2, 1], versions
    assert aws.list_layer_versions(LayerName="low", MaxItems=1)["NextMarker"]
    fitting = aws.list_layers(CompatibleRuntime="provided.al2023")["Layers"]
    assert [layer["LatestMatchingVersion"]["Version"] for layer in fitting] == [1], fitting
    assert {layer["LayerName"] for layer in aws.list_layers()["Layers"]} >= {"low", "high"}
    assert aws.get_layer_version(LayerName="low", VersionNumber=1)["Description"] == "one"
    assert aws.get_layer_version_by_arn(Arn=arns[0])["Version"] == 1
    aws.delete_layer_version(LayerName="low", VersionNumber=1)
    aws.delete_layer_version(LayerName="low", VersionNumber=1)
    with refused("ResourceNotFoundException", 404):
        aws.get_layer_version_by_arn(Arn=arns[0])
    # The function goes on with what is deleted, in another configuration, too.
    aws.update_function_configuration(FunctionName="layered", Handler="changed")
    updated(aws, "layered")
    answer = ask(aws, "layered", 1)[1]
    assert (answer["said"], answer["handler"]) == ("low", "changed"), answer
    with refused("ResourceNotFoundException", 404):
        aws.update_function_configuration(FunctionName="layered", Layers=arns)

    with open(os.environ["BOOTSTRAP"], "rb") as file:
        runtime = publish("runtime", ("bootstrap", file.read(), 0o755))["LayerVersionArn"]
    aws.update_function_configuration(FunctionName="layered", Layers=[runtime])
    updated(aws, "layered")
    aws.update_function_code(FunctionName="layered", ZipFile=zipped(("x", "x")))
    updated(aws, "layered")
    assert ask(aws, "layered", 1)[1]["program"] == "/opt/bootstrap"

    wrong = "InvalidParameterValueException"
    arm = publish("arm", ("x", "x"), CompatibleArchitectures=["arm64"])["LayerVersionArn"]
    large = publish("large", *[(f"{number}", bytes(2**20)) for number in range(249)])["LayerVersionArn"]
    half = publish("half", ("x", bytes(2**21)))["LayerVersionArn"]
    for named, part in [
        ([arm], "x86_64"),
        ([runtime, runtime], "twice"),
        ([runtime, large, half], "maximum allowed size"),
        ([runtime[:-2]], "version"),
        ([f"{runtime[:-1]}{number}" for number in range(6)], "at most 5"),
    ]:
        with refused(wrong, 400, part):
            aws.update_function_configuration(FunctionName="layered", Layers=named)
    with refused(wrong, 400, "Could not unzip"):
        publish_wrong = {"LayerName": "wrong", "Content": {"ZipFile": b"no"}}
        aws.publish_layer_version(**publish_wrong)

    theirs = other()
    use = {"FunctionName": "theirs", "Code": {"ZipFile": zipped(("x", "x"))}, "Layers": [runtime], **OWN}
    with refused("AccessDeniedException", 403):
        theirs.create_function(**use)
    allow = {"LayerName": "runtime", "VersionNumber": 1, "StatementId": "them", "Action": "lambda:GetLayerVersion"}
    aws.add_layer_version_permission(Principal=os.environ["OTHER_ACCOUNT"], **allow)
    with refused("ResourceConflictException", 409):
        aws.add_layer_version_permission(Principal="*", **allow)
    policy = aws.get_layer_version_policy(LayerName="runtime", VersionNumber=1)
    assert json.loads(policy["Policy"])["Statement"][0]["Sid"] == "them", policy
    theirs.create_function(**use)
    active(theirs, "theirs")
    assert ask(theirs, "theirs", 2)[1]["event"] == 2
    named = {"LayerName": "runtime", "VersionNumber": 1}
    aws.remove_layer_version_permission(StatementId="them", **named)
    with refused("AccessDeniedException", 403):
        theirs.get_layer_version_by_arn(Arn=runtime)
    with refused("ResourceNotFoundException", 404):
        aws.get_layer_version_policy(**named)
    theirs.delete_function(FunctionName="theirs")
    aws.delete_function(FunctionName="layered")


def roles():
    """Credentials of the project's own roles, and of no others."""
    aws = client()

    def given(aws, name, role, **more):
        aws.create_function(FunctionName=name, Code={"ZipFile": own_bootstrap()}, **{**OWN, "Role": role}, **more)
        active(aws, name)
        reply, answer = ask(aws, name, 1, LogType="Tail")
        log = base64.b64decode(reply["LogResult"]).decode()
        assert "hidden" not in log, log
        return answer["key"], answer["endpoint"], "WARN no credentials" in log

    mapped = f"arn:aws:iam::{ACCOUNT}:role/app"
    assert given(aws, "role", mapped) == ("AKIDAPP", "https://s3.example", False)
    assert given(aws, "none", ROLE) == ("", "", True)
    own = {"Environment": {"Variables": {"AWS_ENDPOINT_URL_S3": "https://own.example"}}}
    assert given(aws, "mine", mapped, **own) == ("AKIDAPP", "https://own.example", False)
    assert given(other(), "theirs", mapped) == ("", "", True)
    assert "hidden" not in json.dumps(aws.get_function(FunctionName="role"), default=str)
    aws.update_function_configuration(FunctionName="role", Role=ROLE)
    updated(aws, "role")
    assert ask(aws, "role", 1)[1]["key"] == ""


def refusals():
    """What no function is made of."""
    aws = client()
    code = {"ZipFile": python("x")}

    def made(code=code, **more):
        return aws.create_function(FunctionName="not", **{**PYTHON, "Code": code, **more})

    wrong = "InvalidParameterValueException"
    with refused(wrong, 400, '"java8" = "IMAGE"` below [lambda.runtimes]'):
        made(Runtime="java8")
    with refused(wrong, 400, "mandatory"):
        aws.create_function(FunctionName="not", Role=ROLE, Code=code)
    with refused(wrong, 400, "Handler"):
        made(Handler="x y")
    with refused(wrong, 400, "bootstrap"):
        made(Runtime="provided.al2023")
    with refused(wrong, 400, "Architectures"):
        made(Architectures=["arm64"])
    with refused(wrong, 400, "ImageConfig"):
        made(ImageConfig={"Command": ["x"]})
    with refused(wrong, 400, "PackageType"):
        made(PackageType="other")
    with refused(wrong, 400, "non-empty"):
        made({"ZipFile": b""})
    for zip, part in [
        (b"not a zip", "Could not unzip"),
        (zipped(("../x", "x")), ".. in its path"),
        (zipped(("/etc/passwd", "x")), "absolute"),
        (zipped((".wh.x", "x")), ".wh."),
        (zipped(("mine.py", "x"), links=[("out", "../../etc/passwd")]), "leads out"),
        (zipped(("mine.py", "x"), ("./mine.py", "y")), "twice"),
        (zipped(*[(f"{number}", bytes(2**20)) for number in range(251)]), "smaller than 262144000"),
        (zipped(), "no file in it"),
    ]:
        with refused(wrong, 400, part):
            made({"ZipFile": zip})
    with refused("RequestTooLargeException", 413):
        made({"ZipFile": random.Random(1).randbytes(50 * 2**20 + 1)})
    with refused(wrong, 400, "source"):
        made({"ZipFile": python("x"), "ImageUri": "hello-python:1"})
    with refused("ResourceNotFoundException", 404):
        aws.get_function(FunctionName="not")
    aws.create_function(FunctionName="not", Code={"ZipFile": own_bootstrap()}, **OWN)
    active(aws, "not")
    with refused(wrong, 400, "ImageUri"):
        aws.update_function_code(FunctionName="not", ImageUri="hello-python:1")
    with refused(wrong, 400, "bootstrap"):
        aws.update_function_code(FunctionName="not", ZipFile=python("x"))
    assert ask(aws, "not", 1)[1]["event"] == 1
    aws.delete_function(FunctionName="not")


def large():
    """As much as a body may bring."""
    aws = client()
    ballast = random.Random(2).randbytes(48 * 2**20)
    aws.create_function(FunctionName="large", Code={"ZipFile": own_bootstrap(("ballast", ballast))}, **OWN)
    active(aws, "large")
    assert ask(aws, "large", 1)[1]["task"] == "ballast,bootstrap"
    with urllib.request.urlopen(aws.get_function(FunctionName="large")["Code"]["Location"]) as reply:
        assert len(reply.read()) > len(ballast)
    aws.delete_function(FunctionName="large")


def no_objects():
    """Without a store of objects."""
    with refused("InvalidParameterValueException", 400, "lambda.s3.endpoint"):
        client().create_function(FunctionName="not", Code={"S3Bucket": "bucket", "S3Key": "k"}, **PYTHON)


def objects():
    """Code from an S3-compatible store."""
    aws = client()
    config = Config(s3={"addressing_style": "path"})
    s3 = boto3.client("s3", endpoint_url=os.environ["S3"], aws_access_key_id="id", aws_secret_access_key="secret", config=config)
    s3.create_bucket(Bucket="code")
    s3.put_bucket_versioning(Bucket="code", VersioningConfiguration={"Status": "Enabled"})
    first = s3.put_object(Bucket="code", Key="a/b.zip", Body=python("first"))["VersionId"]
    s3.put_object(Bucket="code", Key="a/b.zip", Body=python("second"))
    named = {"S3Bucket": "code", "S3Key": "a/b.zip"}
    made = aws.create_function(FunctionName="object", Code=named, **PYTHON)
    assert made["CodeSha256"] == sha256(python("second")), made
    active(aws, "object")
    assert ask(aws, "object")[1]["said"] == "second"
    aws.update_function_code(FunctionName="object", **named, S3ObjectVersion=first)
    updated(aws, "object")
    assert ask(aws, "object")[1]["said"] == "first"
    for missing in [{"S3Key": "none"}, {"S3Bucket": "none"}]:
        with refused("InvalidParameterValueException", 400, "S3 Error Code: NoSuchKey"):
            aws.update_function_code(FunctionName="object", **{**named, **missing})
    with refused("InvalidParameterValueException", 400, "InvalidBucketName"):
        aws.update_function_code(FunctionName="object", S3Bucket="a/../b", S3Key="x")
    aws.delete_function(FunctionName="object")


def before_the_crash():
    """Two versions, and one change that is under way."""
    aws = client()
    aws.create_function(FunctionName="kept", Code={"ZipFile": python("one")}, Publish=True, **PYTHON)
    aws.get_waiter("published_version_active").wait(FunctionName="kept", Qualifier="1", WaiterConfig={"Delay": 1})
    aws.update_function_code(FunctionName="kept", ZipFile=python("two"))
    updated(aws, "kept")
    hangs = zipped(("mine.py", "import time\ntime.sleep(99999)"))
    aws.update_function_code(FunctionName="kept", ZipFile=hangs)


def after_the_crash():
    """Code is there as long as something runs it, and can be changed."""
    aws = client()
    for qualifier, said in [("1", "one"), ("$LATEST", "two")]:
        assert ask(aws, "kept", Qualifier=qualifier)[1]["said"] == said, qualifier
    # What was under way is kept, although nothing runs it: another handler
    # makes something of it.
    aws.update_function_configuration(FunctionName="kept", Handler="mine.other")
    aws.get_function_configuration(FunctionName="kept")
    settled(aws, "kept")
    aws.update_function_code(FunctionName="kept", ZipFile=python("three"))
    updated(aws, "kept")
    assert ask(aws, "kept")[1] == "other"
    assert ask(aws, "kept", Qualifier="1")[1]["said"] == "one"


def settled(aws, name):
    """Waits for the end of a change that fails."""
    deadline = time.monotonic() + 120
    while True:
        status = aws.get_function_configuration(FunctionName=name)
        if status["LastUpdateStatus"] != "InProgress":
            assert status["LastUpdateStatus"] == "Failed", status
            return
        assert time.monotonic() < deadline, status
        time.sleep(0.5)


def cli():
    """The AWS CLI with a zip file."""
    path = os.path.join(os.environ["SCRATCH"], "code.zip")
    with open(path, "wb") as file:
        file.write(own_bootstrap())
    aws = os.path.join(os.path.dirname(sys.executable), "aws")

    def run(*words):
        done = subprocess.run([aws, "lambda", *words], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout) if done.stdout.strip() else None

    run("create-function", "--function-name", "typed-zip", "--runtime", "provided.al2023", "--handler", "x",
        "--role", ROLE, "--zip-file", f"fileb://{path}")
    run("wait", "function-active-v2", "--function-name", "typed-zip")
    out = os.path.join(os.environ["SCRATCH"], "typed-zip.json")
    told = run("invoke", "--function-name", "typed-zip", "--payload", '{"a": 1}', out)
    assert told["StatusCode"] == 200, told
    with open(out) as file:
        assert json.load(file)["event"] == {"a": 1}
    run("delete-function", "--function-name", "typed-zip")


if __name__ == "__main__":
    globals()[sys.argv[1]]()
