"""Creates the Lambda functions at the AWS emulator, with what starts them. What is there already is left or updated.

The bucket's events start verify, a schedule starts sweep, and ingest has a URL. The emulator has no engine to run them
with: that takes Docker.
"""

import json
import os
import pathlib

import boto3

NAME = "cirrolog"
REGION = "us-east-1"


def client(service):
    return boto3.client(
        service,
        endpoint_url=os.environ["AWS_URL"],
        region_name=REGION,
        aws_access_key_id="emulator",
        aws_secret_access_key="emulator",
    )


def role():
    iam, name = client("iam"), f"{NAME}-lambda"
    trust = {
        "Version": "2012-10-17",
        "Statement": [
            {"Effect": "Allow", "Principal": {"Service": "lambda.amazonaws.com"}, "Action": "sts:AssumeRole"}
        ],
    }
    try:
        return iam.get_role(RoleName=name)["Role"]["Arn"]
    except iam.exceptions.NoSuchEntityException:
        return iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(trust))["Role"]["Arn"]


def function(functions, role_arn, name, timeout, variables):
    """Returns the ARN of the function."""
    full = f"{NAME}-{name}"
    code = (pathlib.Path(os.environ["LAMBDA_ZIPS"]) / f"{name}.zip").read_bytes()
    try:
        functions.update_function_code(FunctionName=full, ZipFile=code)
        return functions.update_function_configuration(
            FunctionName=full, Timeout=timeout, Environment={"Variables": variables}
        )["FunctionArn"]
    except functions.exceptions.ResourceNotFoundException:
        return functions.create_function(
            FunctionName=full,
            Runtime="provided.al2023",
            Architectures=["arm64"],
            Handler="bootstrap",
            Role=role_arn,
            Timeout=timeout,
            MemorySize=512,
            Environment={"Variables": variables},
            Code={"ZipFile": code},
        )["FunctionArn"]


def permit(functions, name, principal, source):
    """Lets a service invoke the function."""
    try:
        functions.add_permission(
            FunctionName=f"{NAME}-{name}",
            StatementId=name,
            Action="lambda:InvokeFunction",
            Principal=principal,
            SourceArn=source,
        )
    except functions.exceptions.ResourceConflictException:
        pass


def main():
    functions, events, bucket = client("lambda"), client("events"), os.environ["BUCKET_URL"]
    arn = role()
    function(functions, arn, "ingest", 25, {"CIRROLOG_BROKERS": os.environ["BROKERS"]})
    try:
        functions.get_function_url_config(FunctionName=f"{NAME}-ingest")
    except functions.exceptions.ResourceNotFoundException:
        functions.create_function_url_config(FunctionName=f"{NAME}-ingest", AuthType="AWS_IAM")
    sweep = function(
        functions, arn, "sweep", 900, {"CIRROLOG_BUCKET": bucket, "CIRROLOG_METADATA": os.environ["METADATA_URL"]}
    )
    rule = events.put_rule(Name=f"{NAME}-sweep", ScheduleExpression="rate(1 hour)", State="ENABLED")["RuleArn"]
    events.put_targets(Rule=f"{NAME}-sweep", Targets=[{"Id": "sweep", "Arn": sweep}])
    permit(functions, "sweep", "events.amazonaws.com", rule)
    verify = function(functions, arn, "verify", 60, {"CIRROLOG_BUCKET": bucket})
    permit(functions, "verify", "s3.amazonaws.com", f"arn:aws:s3:::{NAME}")
    segments = {"Key": {"FilterRules": [{"Name": "prefix", "Value": "data/"}]}}
    client("s3").put_bucket_notification_configuration(
        Bucket=NAME,
        NotificationConfiguration={
            "LambdaFunctionConfigurations": [
                {"LambdaFunctionArn": verify, "Events": ["s3:ObjectCreated:*"], "Filter": segments}
            ]
        },
    )


main()
