"""A server that speaks S3, for tests. Says on one line of standard output how it is reached and by whom, and ends when
its standard input does.

    s3.py PORT [unconditional] [versioned]

`unconditional`: it takes no notice of `If-None-Match`, as some services do. `versioned`: the bucket keeps former versions.
"""

import json
import sys
import threading

import boto3
from moto import settings
from moto.core.authorization import ActionAuthenticatorMixin
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from moto.s3.responses import S3Response
from werkzeug.datastructures import Headers
from werkzeug.serving import make_server

BUCKET, PREFIX, REGION = "repository", "some/where", "eu-central-1"
port, features = int(sys.argv[1]), sys.argv[2:]


class Quiet(MotoRequestHandler):
    def log(self, *_):
        pass


application = DomainDispatcherApplication(create_backend_app)
one_write_at_a_time = threading.Lock()


def serve(environ, start_response):
    # Whether the object is there and writing it must be one step. The simulator has threads and locks nothing.
    if environ["REQUEST_METHOD"] not in ("PUT", "POST", "DELETE"):
        return application(environ, start_response)
    with one_write_at_a_time:
        return application(environ, start_response)


def put_object(response):
    # Once it has been authorized: what is signed cannot be left out before.
    response.headers = Headers(response.headers)
    response.headers.remove("If-None-Match")
    return conditional_put_object(response)


conditional_put_object = S3Response.put_object
if "unconditional" in features:
    S3Response.put_object = put_object

server = make_server("127.0.0.1", port, serve, threaded=True, request_handler=Quiet)
server.daemon_threads = True
threading.Thread(target=server.serve_forever, daemon=True).start()


def client(service):
    where = {"endpoint_url": f"http://127.0.0.1:{port}", "region_name": REGION}
    return boto3.client(service, aws_access_key_id="maker", aws_secret_access_key="maker", **where)


s3, iam = client("s3"), client("iam")
s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})
if "versioned" in features:
    s3.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
# No more than docs/operate/repository.md asks for.
policy = {
    "Version": "2012-10-17",
    "Statement": [
        {"Effect": "Allow", "Action": "s3:ListBucket", "Resource": f"arn:aws:s3:::{BUCKET}"},
        {
            "Effect": "Allow",
            "Action": ["s3:GetObject", "s3:PutObject", "s3:DeleteObject"],
            "Resource": f"arn:aws:s3:::{BUCKET}/{PREFIX}/*",
        },
    ],
}
iam.create_user(UserName="loomworks")
iam.put_user_policy(UserName="loomworks", PolicyName="repository", PolicyDocument=json.dumps(policy))
key = iam.create_access_key(UserName="loomworks")["AccessKey"]
# From here on every request must be signed by somebody who may make it.
settings.INITIAL_NO_AUTH_ACTION_COUNT = 0
ActionAuthenticatorMixin.request_count = 0

reached = {
    "location": f"s3://{BUCKET}/{PREFIX}",
    "aws_region": REGION,
    "aws_access_key_id": key["AccessKeyId"],
    "aws_secret_access_key": key["SecretAccessKey"],
}
print(json.dumps(reached), flush=True)
sys.stdin.read()
