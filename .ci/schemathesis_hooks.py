"""What schemathesis has to be told of this API beyond its document."""

import datetime
import json
import os
import re
import urllib.request
import uuid

import schemathesis
from schemathesis.transport.serialization import Binary

MADE = json.loads(os.environ["MUSIQUE_FIXTURES"])
SAMPLE = open(MADE["sample"], "rb").read()


def operation_of(context):
    return (context.operation.definition.raw.get("operationId") or "").split("_")[0]


def fresh_token():
    body = json.dumps({"externalId": "fresh", "companyToken": MADE["companyToken"]}).encode()
    request = urllib.request.Request(MADE["api"] + "/auth", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)["data"]


@schemathesis.hook
def map_path_parameters(context, path_parameters):
    """Every other request is about something that there is, unless it takes it away."""
    if not path_parameters or context.operation.method.upper() == "DELETE":
        return path_parameters
    for name, value in path_parameters.items():
        if name in MADE and isinstance(value, str) and sum(map(ord, value)) % 2:
            path_parameters[name] = MADE[name]
    return path_parameters


@schemathesis.hook
def map_body(context, body):
    """A file is audio."""
    if operation_of(context) == "UploadAudio" and isinstance(body, dict) and isinstance(body.get("file"), Binary):
        body["file"] = Binary(SAMPLE)
    return body


def ahead(days):
    return datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=days)


def meet(name, value):
    """A value that means what the schema cannot say, in the place of one that the schema allows."""
    if not isinstance(value, str):
        return value
    if name == "companyToken" and value:
        return MADE["companyToken"]  # after 20 wrong ones the address is refused
    if name == "timezone":
        return "Europe/Berlin"
    if name == "scheduleAt" and re.fullmatch(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", value):
        return ahead(7).strftime("%Y-%m-%dT%H:%M:%SZ")
    if name == "localTime" and re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}", value):
        return ahead(7).strftime("%Y-%m-%dT%H:%M")
    return value


@schemathesis.hook
def before_call(context, case, kwargs):
    """Says what no schema can, and takes nothing away that the run itself needs: its token, its device and the device's location."""
    operation, body = operation_of(context), case.body
    if isinstance(body, dict):
        met = {name: meet(name, value) for name, value in body.items()}
        if operation == "SendAudio" and isinstance(body.get("scheduleAt"), str) and isinstance(body.get("localTime"), str):
            del met["localTime"]
        if operation == "RevokeToken" and MADE["tokenId"] == body.get("tokenId"):
            met["tokenId"] = fresh_token()["tokenId"]
        if met != body:
            case.body = met
    if case.query and re.fullmatch("[0-9A-Za-z_-]{1,1024}", str(case.query.get("cursor", ""))):
        del case.query["cursor"]  # one that the list did not give is refused
    if case.meta.phase.name.value == "stateful" and (case.headers or {}).get("Idempotency-Key"):
        case.headers["Idempotency-Key"] = str(uuid.uuid4())  # a repeat is answered as the first was, also when what it made is gone
    parameters = case.path_parameters or {}
    if operation == "RevokeToken" and (case.headers or {}).get("X-API-Key") == MADE["token"]:
        case.headers["X-API-Key"] = fresh_token()["token"]
    if operation == "RevokeTokenById" and parameters.get("tokenId") == MADE["tokenId"]:
        parameters["tokenId"] = fresh_token()["tokenId"]
    if operation == "DeleteLocation" and parameters.get("externalId") == MADE["externalId"]:
        parameters["externalId"] = "store_002"
    if operation in ("DeleteDevice", "RotateDeviceToken") and parameters.get("deviceId") == MADE["deviceId"]:
        parameters["deviceId"] = "dvc_0000000000000000000000"
