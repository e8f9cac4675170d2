"""Functions' URLs: made by AWS's client, called as browsers and curl do:
`urls.py CASE`. It needs what `clients.py` needs, and `GATEWAY`, where services
are, functions' URLs among them.
"""

import base64
import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import time
import urllib.parse

import botocore.auth
import botocore.awsrequest
import botocore.credentials

from clients import ENDPOINT, REGION, arn, client, create, other, refused, run_by, runtime

NETLOC = os.environ["GATEWAY"]
API = urllib.parse.urlsplit(ENDPOINT).netloc
STREAM = "application/vnd.awslambda.http-integration-response"
# A runtime that answers what the request's path says.
HANDLER = runtime(
    """
body = event.get("body", "")
body = base64.b64decode(body) if event["isBase64Encoded"] else body.encode()
calls = globals().get("calls", 0) + 1
answer, path = json.dumps({"event": event, "calls": calls}).encode(), event["rawPath"]
if path == "/answer":
    answer = body
if path == "/large":
    answer = json.dumps("x" * ((6 << 20) + 200)).encode()
if path == "/fail":
    answer, way = b'{"errorType": "Failed", "errorMessage": "no"}', "error"
if path in ("/stream", "/endless"):
    headers = {"Lambda-Runtime-Function-Response-Mode": "streaming", "Transfer-Encoding": "chunked",
               "Content-Type": "application/vnd.awslambda.http-integration-response"}
    parts = [body, bytes(8), b"first", b"second"]
    def pieces():
        yield from parts
        while path == "/endless":
            time.sleep(0.05)
            yield b"."
    answer = pieces()
if path in ("/failing", "/crashing"):
    api.putrequest("POST", base + told["lambda-runtime-aws-request-id"] + "/response")
    api.putheader("Lambda-Runtime-Function-Response-Mode", "streaming")
    api.putheader("Transfer-Encoding", "chunked")
    api.endheaders(b"5\\r\\nfirst\\r\\n")
    time.sleep(0.3)
    if path == "/crashing":
        os._exit(3)
    api.send(b"0\\r\\nLambda-Runtime-Function-Error-Type: Its.Own\\r\\n\\r\\n")
    api.getresponse().read()
    continue
if path == "/plain":
    headers = {"Lambda-Runtime-Function-Response-Mode": "streaming", "Transfer-Encoding": "chunked",
               "Content-Type": "text/x-plain"}
    answer = iter([b"a", b"b"])
"""
)
URL_FUNCTION = run_by(HANDLER)
OPEN = {"StatementId": "open", "Action": "lambda:InvokeFunctionUrl", "Principal": "*", "FunctionUrlAuthType": "NONE"}


def host_of(url):
    return urllib.parse.urlsplit(url).netloc


def broken_off(url, path):
    """What stands behind an answer's head, until the connection ends."""
    with socket.create_connection(NETLOC.split(":"), timeout=120) as stream:
        head = f"GET {path} HTTP/1.1\r\nHost: {host_of(url)}\r\nTE: trailers\r\nConnection: TE\r\n\r\n"
        stream.sendall(head.encode())
        told = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := stream.recv(4096):
                told += piece
    head, rest = told.split(b"\r\n\r\n", 1)
    assert b" 200 " in head and b"x-amz-function-error" not in told.lower(), told
    return rest


def ask(url, path="/", method="GET", body=None, headers=(), by_path=False):
    """A request to a URL by its host, or by its path: the reply, and its body."""
    host = host_of(url)
    connection = http.client.HTTPConnection(API if host == API else NETLOC, timeout=120)
    if by_path:
        host, path = NETLOC, "/skiff/url/" + host.split(".")[0] + path
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    connection.putheader("Host", host)
    for name, value in headers:
        connection.putheader(name, value)
    if body is not None:
        connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body)
    reply = connection.getresponse()
    return reply, reply.read()


def answered(url, answer, **more):
    """What a URL makes of a function's answer."""
    answer = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    return ask(url, "/answer", "POST", answer, **more)


def opened(aws, name, **more):
    aws.add_permission(FunctionName=name, **OPEN)
    return aws.create_function_url_config(FunctionName=name, AuthType="NONE", **more)["FunctionUrl"]


def configs():
    """Made once, looked at, changed, listed and deleted; gone with what they are of."""
    aws = client()
    create(aws, "named")
    with refused("ResourceNotFoundException", 404):
        aws.get_function_url_config(FunctionName="named")
    with refused("ResourceNotFoundException", 404):
        aws.create_function_url_config(FunctionName="nothing", AuthType="NONE")
    cors = {"AllowOrigins": ["https://a.test"], "AllowMethods": ["GET"], "MaxAge": 5, "AllowCredentials": True}
    made = aws.create_function_url_config(FunctionName="named", AuthType="NONE", Cors=cors)
    assert made["Cors"] == cors and made["InvokeMode"] == "BUFFERED" and made["FunctionArn"] == arn("named"), made
    id, label, region = host_of(made["FunctionUrl"]).split(".")[:3]
    assert len(id) == 32 and label == "lambda-url" and region == REGION, made
    with refused("ResourceConflictException", 409):
        aws.create_function_url_config(FunctionName="named", AuthType="AWS_IAM")
    got = aws.get_function_url_config(FunctionName=arn("named"))
    assert got["FunctionUrl"] == made["FunctionUrl"] and got["AuthType"] == "NONE", got
    changed = aws.update_function_url_config(FunctionName="named", AuthType="AWS_IAM", InvokeMode="RESPONSE_STREAM")
    assert changed["FunctionUrl"] == made["FunctionUrl"] and changed["Cors"] == cors, changed
    assert (changed["AuthType"], changed["InvokeMode"]) == ("AWS_IAM", "RESPONSE_STREAM"), changed
    assert "Cors" not in aws.update_function_url_config(FunctionName="named", Cors={})
    with refused("InvalidParameterValueException", 400, "AllowMethods"):
        aws.update_function_url_config(FunctionName="named", Cors={"AllowMethods": ["TRACE"]})

    with refused("ResourceNotFoundException", 404):
        aws.create_function_url_config(FunctionName="named", Qualifier="live", AuthType="NONE")
    aws.publish_version(FunctionName="named")
    aws.create_alias(FunctionName="named", Name="live", FunctionVersion="1")
    live = aws.create_function_url_config(FunctionName="named", Qualifier="live", AuthType="NONE")
    assert live["FunctionArn"] == arn("named", "live") and live["FunctionUrl"] != made["FunctionUrl"], live
    with refused("InvalidParameterValueException", 400):
        aws.get_function_url_config(FunctionName="named:1")
    pages = aws.get_paginator("list_function_url_configs").paginate(
        FunctionName="named", PaginationConfig={"PageSize": 1}
    )
    listed = [config["FunctionUrl"] for page in pages for config in page["FunctionUrlConfigs"]]
    assert listed == [made["FunctionUrl"], live["FunctionUrl"]], listed
    aws.delete_alias(FunctionName="named", Name="live")
    assert ask(live["FunctionUrl"])[0].status == 403
    aws.delete_function_url_config(FunctionName="named")
    with refused("ResourceNotFoundException", 404):
        aws.delete_function_url_config(FunctionName="named")
    again = aws.create_function_url_config(FunctionName="named", AuthType="NONE")
    assert again["FunctionUrl"] != made["FunctionUrl"], again
    aws.add_permission(FunctionName="named", **OPEN)
    aws.delete_function(FunctionName="named")
    reply, body = ask(again["FunctionUrl"])
    assert reply.status == 403 and json.loads(body) == {"Message": None}, body
    create(aws, "named")
    with refused("ResourceNotFoundException", 404):
        aws.get_function_url_config(FunctionName="named")


def requests():
    """HTTP as an event, the answer as HTTP, and what is neither."""
    aws = client()
    create(aws, "web", **URL_FUNCTION)
    url = aws.create_function_url_config(FunctionName="web", AuthType="NONE")["FunctionUrl"]
    # AWS: a policy has to open what needs no signature.
    reply, body = ask(url)
    assert reply.status == 403 and json.loads(body) == {"Message": "Forbidden"}, body
    aws.add_permission(FunctionName="web", StatementId="other", Action="lambda:InvokeFunction", Principal="*")
    assert ask(url)[0].status == 403
    aws.add_permission(FunctionName="web", **{**OPEN, "StatementId": "signed", "FunctionUrlAuthType": "AWS_IAM"})
    assert ask(url)[0].status == 403
    added = json.loads(aws.add_permission(FunctionName="web", **OPEN)["Statement"])
    assert added["Condition"] == {"StringEquals": {"lambda:FunctionUrlAuthType": "NONE"}}, added
    with refused("InvalidParameterValueException", 400, "FunctionUrlAuthType"):
        aws.add_permission(FunctionName="web", **{**OPEN, "StatementId": "x", "Action": "lambda:InvokeFunction"})

    headers = [("X-Many", "1"), ("X-Many", "2"), ("Cookie", "a=1; b=2"), ("User-Agent", "test"), ("X-Forwarded-For", "6.6.6.6")]
    for by_path in (False, True):
        reply, body = ask(url, "/a%20b/c?x=1&x=2&y=%2B", headers=headers, by_path=by_path)
        event = json.loads(body)["event"]
        assert reply.status == 200 and reply.headers["content-type"] == "application/json", body
        assert (event["version"], event["routeKey"]) == ("2.0", "$default"), event
        assert (event["rawPath"], event["rawQueryString"]) == ("/a%20b/c", "x=1&x=2&y=%2B"), event
        assert event["queryStringParameters"] == {"x": "1,2", "y": "+"}, event
        assert event["headers"]["x-many"] == "1,2" and event["cookies"] == ["a=1", "b=2"], event
        told, port = event["headers"], (NETLOC if by_path else host_of(url)).split(":")[1]
        assert (told["x-forwarded-for"], told["x-forwarded-proto"]) == ("127.0.0.1", "http"), told
        assert told["x-forwarded-port"] == port and told["x-amzn-trace-id"].startswith("Root=1-"), told
        context = event["requestContext"]
        assert context["http"] == {
            "method": "GET", "path": "/a%20b/c", "protocol": "HTTP/1.1", "sourceIp": "127.0.0.1", "userAgent": "test",
        }, context
        assert context["domainName"] == host_of(url).split(":")[0] and context["accountId"] == "anonymous", context
        assert context["apiId"] == context["domainPrefix"] == host_of(url).split(".")[0], context
        assert context["requestId"] == reply.headers["x-amzn-requestid"] and context["timeEpoch"] > 0, context
        assert "body" not in event and event["isBase64Encoded"] is False, event
    proxied = [("X-Forwarded-Proto", "https"), ("X-Amzn-Trace-Id", "Root=1-2-3")]
    # The gateway believes no proxy that it does not know of.
    for place, scheme in [(url, "http"), (f"http://{API}/skiff/url/{host_of(url).split('.')[0]}", "https")]:
        told = json.loads(ask(place, urllib.parse.urlsplit(place).path, headers=proxied)[1])["event"]["headers"]
        assert (told["x-forwarded-proto"], told["x-amzn-trace-id"]) == (scheme, "Root=1-2-3"), told
        assert not {"forwarded", "x-forwarded-host"} & set(told), told
    text = [("Content-Type", "text/plain; charset=utf-8")]
    event = json.loads(ask(url, "/", "POST", "ä".encode(), text)[1])["event"]
    assert event["body"] == "ä" and not event["isBase64Encoded"], event
    event = json.loads(ask(url, "/", "PUT", b"\0\xff")[1])["event"]
    assert base64.b64decode(event["body"]) == b"\0\xff" and event["isBase64Encoded"], event

    answer = {"statusCode": 201, "headers": {"Content-Type": "text/html", "X-Own": "y"}, "cookies": ["a=1", "b=2"]}
    reply, body = answered(url, {**answer, "body": base64.b64encode(b"\0").decode(), "isBase64Encoded": True})
    assert reply.status == 201 and body == b"\0" and reply.headers["x-own"] == "y", body
    assert reply.headers["content-type"] == "text/html" and reply.headers.get_all("set-cookie") == ["a=1", "b=2"]
    assert answered(url, {"statusCode": 204})[0].status == 204
    reply, body = answered(url, [1, 2])
    assert (reply.status, body, reply.headers["content-type"]) == (200, b"[1, 2]", "application/json"), body
    assert answered(url, "plain")[1] == b"plain"
    for bad in [b"{", {"statusCode": "no"}, {"statusCode": 200, "headers": {"a b": "c"}}]:
        reply, body = answered(url, bad)
        assert reply.status == 502 and json.loads(body) == {"Message": "Internal Server Error"}, (bad, body)
    assert ask(url, "/fail")[0].status == 502
    before = json.loads(ask(url)[1])["calls"]
    assert ask(url, "/large")[0].status == 502
    assert json.loads(ask(url)[1])["calls"] == before + 2, "its runtime has ended"
    assert ask(url, "/", "POST", bytes(5 << 20))[0].status == 413
    reply, body = ask(url, "/", "POST", b"x" * (3 << 20), text)
    assert reply.status == 200, (reply.status, reply.headers.items(), body[:200])

    # As a person does it; curl knows what *.localhost is.
    curl = ["curl", "--noproxy", "*", "-sS", "-w", "%{http_code}", url + "answer", "-d", '{"statusCode":418,"body":"tea"}']
    told = subprocess.run(curl, capture_output=True, text=True, timeout=120)
    assert told.stdout == "tea418", told

    aws.put_function_concurrency(FunctionName="web", ReservedConcurrentExecutions=0)
    assert ask(url)[0].status == 429
    aws.delete_function_concurrency(FunctionName="web")
    aws.remove_permission(FunctionName="web", StatementId="open")
    assert ask(url)[0].status == 403
    assert ask("http://" + "a" * 32 + ".lambda-url.us-east-1.x/")[0].status == 403


def origins():
    """Other origins' pages may do what the configuration says, whatever the function does."""
    aws = client()
    create(aws, "pages", **URL_FUNCTION)
    cors = {"AllowOrigins": ["https://a.test"], "AllowMethods": ["PUT"], "AllowHeaders": ["X-Asked"], "MaxAge": 60}
    url = opened(aws, "pages", Cors=cors)
    preflight = [("Origin", "https://a.test"), ("Access-Control-Request-Method", "PUT")]
    reply, body = ask(url, "/fail", "OPTIONS", headers=preflight)
    told = {name.lower(): value for name, value in reply.headers.items()}
    assert reply.status == 200 and body == b"", body
    assert told["access-control-allow-origin"] == "https://a.test", told
    assert told["access-control-allow-methods"] == "PUT" and told["access-control-max-age"] == "60", told
    assert told["access-control-allow-headers"] == "X-Asked", told
    reply, _ = ask(url, "/fail", "OPTIONS", headers=[("Origin", "https://b.test"), preflight[1]])
    assert reply.status == 200 and "access-control-allow-origin" not in reply.headers, reply.headers.items()
    says = {"statusCode": 200, "headers": {"Access-Control-Allow-Origin": "*"}}
    reply, _ = answered(url, says, headers=[preflight[0]])
    assert reply.headers.get_all("access-control-allow-origin") == ["https://a.test"], reply.headers.items()
    # Browsers sign no preflight, and read why they were not let in.
    aws.update_function_url_config(FunctionName="pages", AuthType="AWS_IAM")
    assert ask(url, "/fail", "OPTIONS", headers=preflight)[0].status == 200
    reply, _ = ask(url, headers=[preflight[0]])
    assert (reply.status, reply.headers["access-control-allow-origin"]) == (403, "https://a.test"), reply.headers.items()
    aws.update_function_url_config(FunctionName="pages", AuthType="NONE", Cors={})
    reply, _ = answered(url, says, headers=[preflight[0]])
    assert reply.headers.get_all("access-control-allow-origin") == ["*"], reply.headers.items()
    assert ask(url, "/fail", "OPTIONS", headers=preflight)[0].status == 502


def signed(url, path="/", method="GET", body=b"", stranger=False, signer=botocore.auth.SigV4Auth, service="lambda"):
    names = ("OTHER_ACCESS_KEY_ID", "OTHER_SECRET_ACCESS_KEY") if stranger else ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    credentials = botocore.credentials.Credentials(*(os.environ[name] for name in names))
    request = botocore.awsrequest.AWSRequest(method, url.rstrip("/") + path, data=body)
    signer(credentials, service, REGION).add_auth(request)
    request = request.prepare()
    parts = urllib.parse.urlsplit(request.url)
    target = parts.path + ("?" + parts.query if parts.query else "")
    headers = [(name, value) for name, value in request.headers.items() if name.lower() != "content-length"]
    return ask(url, target, method, body, headers)


def signatures():
    """With AWS_IAM only what is signed by who may call comes through."""
    aws = client()
    create(aws, "closed", **URL_FUNCTION)
    aws.publish_version(FunctionName="closed")
    aws.create_alias(FunctionName="closed", Name="live", FunctionVersion="1")
    url = aws.create_function_url_config(FunctionName="closed", Qualifier="live", AuthType="AWS_IAM")["FunctionUrl"]
    reply, body = ask(url)
    assert reply.status == 403 and json.loads(body) == {"Message": "Forbidden"}, body
    aws.add_permission(FunctionName="closed", Qualifier="live", **OPEN)
    assert ask(url)[0].status == 403
    reply, body = signed(url, "/schedules/a?b=c", "POST", b"x")
    assert reply.status == 200, body
    event = json.loads(body)["event"]
    iam = event["requestContext"]["authorizer"]["iam"]
    assert iam["accessKey"] == os.environ["AWS_ACCESS_KEY_ID"] and iam["accountId"] == "000000000001", iam
    assert "authorization" not in event["headers"] and event["rawPath"] == "/schedules/a", event
    assert signed(url, signer=botocore.auth.SigV4QueryAuth)[0].status == 200
    assert signed(url, service="scheduler")[0].status == 403
    # By its path, and at the API's own address.
    for place in [f"http://{NETLOC}", ENDPOINT]:
        own = place + "/skiff/url/" + host_of(url).split(".")[0]
        assert signed(own, "/p")[0].status == 200, place

    assert signed(url, stranger=True)[0].status == 403
    them = {"StatementId": "them", "Principal": os.environ["OTHER_ACCOUNT"], "FunctionUrlAuthType": "AWS_IAM"}
    aws.add_permission(FunctionName="closed", Action="lambda:InvokeFunctionUrl", **them)
    assert signed(url, stranger=True)[0].status == 403
    aws.add_permission(FunctionName="closed", Qualifier="live", Action="lambda:InvokeFunctionUrl", **them)
    reply, body = signed(url, stranger=True)
    assert reply.status == 200, body
    assert json.loads(body)["event"]["requestContext"]["accountId"] == os.environ["OTHER_ACCOUNT"], body
    # A permission for URLs is none for invocations.
    with refused("AccessDeniedException", 403):
        other().invoke(FunctionName=arn("closed", "live"))
    via = {"StatementId": "via", "Principal": os.environ["OTHER_ACCOUNT"], "InvokedViaFunctionUrl": True}
    aws.add_permission(FunctionName="closed", Qualifier="live", Action="lambda:InvokeFunction", **via)
    with refused("AccessDeniedException", 403):
        other().invoke(FunctionName=arn("closed", "live"))


def streams():
    """With RESPONSE_STREAM an answer comes as it is made."""
    aws = client()
    create(aws, "flows", **URL_FUNCTION)
    url = opened(aws, "flows", InvokeMode="RESPONSE_STREAM")
    head = json.dumps({"statusCode": 418, "headers": {"X-Own": "y"}, "cookies": ["a=1"]}).encode()
    reply, body = ask(url, "/stream", "POST", head)
    assert (reply.status, body) == (418, b"firstsecond"), (reply.status, body)
    assert reply.headers["x-own"] == "y" and reply.headers["set-cookie"] == "a=1", reply.headers.items()
    assert reply.headers["content-type"] == "application/octet-stream", reply.headers.items()
    reply, body = ask(url, "/plain")
    assert (reply.status, body, reply.headers["content-type"]) == (200, b"ab", "text/x-plain"), body
    assert "event" in json.loads(ask(url, "/")[1])
    assert ask(url, "/fail")[0].status == 502
    # There is no other way to tell a client of HTTP.
    for path in ["/failing", "/crashing"]:
        assert broken_off(url, path) == b"5\r\nfirst\r\n", path
    for bad in [b"no", b'{"statusCode": 1}', b" " * (200 << 10)]:
        assert ask(url, "/stream", "POST", bad)[0].status == 502, bad[:20]

    # It never ends: what comes of it has come before its end.
    aws.put_function_concurrency(FunctionName="flows", ReservedConcurrentExecutions=1)
    connection = http.client.HTTPConnection(NETLOC, timeout=120)
    connection.request("POST", "/endless", b"{}", {"Host": host_of(url)})
    reply = connection.getresponse()
    assert (reply.status, reply.read(13)) == (200, b"firstsecond.."), reply.status
    connection.close()
    # It goes on, and nobody else gets in before its time is over.
    assert ask(url, "/plain")[0].status == 429


def crowds():
    """Bodies that never end keep no others out."""
    aws = client()
    create(aws, "calm", **URL_FUNCTION)
    url = opened(aws, "calm")
    assert ask(url)[0].status == 200
    crowd = []
    for _ in range(50):
        connection = http.client.HTTPConnection(NETLOC, timeout=120)
        connection.putrequest("POST", "/", skip_host=True)
        connection.putheader("Host", host_of(url))
        connection.putheader("Transfer-Encoding", "chunked")
        connection.endheaders(b"1\r\n{\r\n")
        crowd.append(connection)
    begun = time.monotonic()
    reply, body = answered(url, {"statusCode": 200, "body": "x" * (4 << 20)})
    assert (reply.status, len(body)) == (200, 4 << 20), reply.status
    # They have half a minute.
    assert time.monotonic() - begun < 20, "it was waited for"
    for connection in crowd:
        connection.close()


def before_the_crash():
    """A URL that is open."""
    aws = client()
    create(aws, "lasting", **URL_FUNCTION)
    url = opened(aws, "lasting", Cors={"AllowOrigins": ["*"]})
    with open(os.path.join(os.environ["SCRATCH"], "url"), "w") as file:
        file.write(url)
    assert ask(url)[0].status == 200


def after_the_crash():
    """It is where it was, whatever port the server listens on now."""
    with open(os.path.join(os.environ["SCRATCH"], "url")) as file:
        url = file.read()
    now = client().get_function_url_config(FunctionName="lasting")
    assert host_of(now["FunctionUrl"]).split(":")[0] == host_of(url).split(":")[0], now
    assert now["Cors"] == {"AllowOrigins": ["*"]}, now
    reply, body = ask(url, headers=[("X-Forwarded-Proto", "https"), ("X-Forwarded-For", "203.0.113.9")])
    told = json.loads(body)["event"]
    assert told["headers"]["x-forwarded-proto"] == "https", told
    assert told["requestContext"]["http"]["sourceIp"] == "127.0.0.1", told


def after_its_service():
    """`skiff rm` has ended it with its function."""
    with open(os.path.join(os.environ["SCRATCH"], "url")) as file:
        assert ask(file.read())[0].status == 403


if __name__ == "__main__":
    globals()[sys.argv[1]]()
