// Provider is a stand-in for Terraform's AWS provider (hashicorp/aws), for machines that can't have that one: no
// registry of providers in reach, nor its module. localstack.sh hands it to OpenTofu as a development override, which
// every run of OpenTofu says.
//
// It knows the published schema (schema.json) of the resources that terraform/ uses, so `validate`, `plan` and `test`
// find what the real one's schema would find. It creates buckets and tables by the same calls of the AWS SDK, at the
// endpoints that its configuration names and nowhere else: it never talks to AWS. What it does not carry out it
// refuses in the plan; it skips nothing in silence.
package main

import (
	"log"

	"github.com/hashicorp/terraform-plugin-go/tfprotov6"
	"github.com/hashicorp/terraform-plugin-go/tfprotov6/tf6server"
)

func main() {
	p, err := newProvider()
	if err != nil {
		log.Fatal(err)
	}
	err = tf6server.Serve("registry.terraform.io/hashicorp/aws", func() tfprotov6.ProviderServer { return p })
	if err != nil {
		log.Fatal(err)
	}
}
