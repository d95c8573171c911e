package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/hashicorp/terraform-plugin-go/tfprotov6"
	"github.com/hashicorp/terraform-plugin-go/tftypes"
)

// resource is one kind of resource as it is carried out. The functions get its values and set those of fills.
type resource struct {
	does    []string // paths of the arguments that are carried out
	fills   []string // attributes that creation fills
	replace []string // arguments whose change makes a new one

	create, update func(context.Context, *clients, object) error
	read           func(context.Context, *clients, object) (found bool, err error)
	remove         func(context.Context, *clients, object) error
}

// clients of the endpoints that the provider's configuration names.
type clients struct {
	region string
	s3     *s3.Client
	dynamo *dynamodb.Client
}

var errNoEndpoint = errors.New("the provider's configuration names no endpoint of this service, and the stand-in does not talk to AWS")

// provider implements what OpenTofu and Terraform call of tfprotov6.ProviderServer; the embedded interface is nil
// and stands for what they only call for kinds that the schema does not have (data sources, functions, …).
type provider struct {
	tfprotov6.ProviderServer
	schemas   *schemas
	resources map[string]*resource
	clients   *clients
}

func newProvider() (*provider, error) {
	s, err := readSchemas()
	return &provider{schemas: s, resources: map[string]*resource{
		"aws_s3_bucket":                                      s3Bucket(),
		"aws_s3_bucket_versioning":                           s3Versioning(),
		"aws_s3_bucket_public_access_block":                  s3PublicAccessBlock(),
		"aws_s3_bucket_ownership_controls":                   s3Ownership(),
		"aws_s3_bucket_server_side_encryption_configuration": s3Encryption(),
		"aws_s3_bucket_lifecycle_configuration":              s3Lifecycle(),
		"aws_s3_bucket_policy":                               s3Policy(),
		"aws_dynamodb_table":                                 dynamoTable(),
	}}, err
}

func (p *provider) GetMetadata(context.Context, *tfprotov6.GetMetadataRequest) (*tfprotov6.GetMetadataResponse, error) {
	out := &tfprotov6.GetMetadataResponse{ServerCapabilities: &tfprotov6.ServerCapabilities{}}
	for name := range p.schemas.Resources {
		out.Resources = append(out.Resources, tfprotov6.ResourceMetadata{TypeName: name})
	}
	return out, nil
}

func (p *provider) GetProviderSchema(context.Context, *tfprotov6.GetProviderSchemaRequest) (*tfprotov6.GetProviderSchemaResponse, error) {
	out := &tfprotov6.GetProviderSchemaResponse{
		Provider: &tfprotov6.Schema{Block: p.schemas.Provider.schema(false)}, ResourceSchemas: map[string]*tfprotov6.Schema{},
	}
	for name, b := range p.schemas.Resources {
		out.ResourceSchemas[name] = &tfprotov6.Schema{Block: b.schema(true)}
	}
	return out, nil
}

func (p *provider) GetResourceIdentitySchemas(context.Context, *tfprotov6.GetResourceIdentitySchemasRequest) (*tfprotov6.GetResourceIdentitySchemasResponse, error) {
	return &tfprotov6.GetResourceIdentitySchemasResponse{}, nil
}

func (p *provider) ValidateProviderConfig(_ context.Context, r *tfprotov6.ValidateProviderConfigRequest) (*tfprotov6.ValidateProviderConfigResponse, error) {
	return &tfprotov6.ValidateProviderConfigResponse{PreparedConfig: r.Config}, nil
}

func (p *provider) ValidateResourceConfig(context.Context, *tfprotov6.ValidateResourceConfigRequest) (*tfprotov6.ValidateResourceConfigResponse, error) {
	return &tfprotov6.ValidateResourceConfigResponse{}, nil
}

func (p *provider) StopProvider(context.Context, *tfprotov6.StopProviderRequest) (*tfprotov6.StopProviderResponse, error) {
	return &tfprotov6.StopProviderResponse{}, nil
}

func (p *provider) ImportResourceState(context.Context, *tfprotov6.ImportResourceStateRequest) (*tfprotov6.ImportResourceStateResponse, error) {
	return &tfprotov6.ImportResourceStateResponse{Diagnostics: failed(errors.New("the stand-in imports nothing"))}, nil
}

// configured are the arguments of the provider that are carried out, or that switch off what is not done anyway.
var configured = []string{
	"region", "access_key", "secret_key", "s3_use_path_style", "skip_credentials_validation", "skip_metadata_api_check",
	"skip_region_validation", "skip_requesting_account_id", "endpoints", "endpoints.s3", "endpoints.dynamodb",
}

func (p *provider) ConfigureProvider(_ context.Context, r *tfprotov6.ConfigureProviderRequest) (*tfprotov6.ConfigureProviderResponse, error) {
	out := &tfprotov6.ConfigureProviderResponse{}
	c, err := p.decode(r.Config, p.schemas.Provider)
	if err != nil {
		out.Diagnostics = failed(err)
		return out, nil
	}
	if out.Diagnostics = refused(given(c, p.schemas.Provider), configured); out.Diagnostics != nil {
		return out, nil
	}
	where := first(c, "endpoints")
	cfg := aws.Config{Region: text(c, "region"), Credentials: credentials.NewStaticCredentialsProvider(text(c, "access_key"), text(c, "secret_key"), "")}
	p.clients = &clients{region: cfg.Region}
	if url := text(where, "s3"); url != "" {
		p.clients.s3 = s3.NewFromConfig(cfg, func(o *s3.Options) { o.BaseEndpoint, o.UsePathStyle = &url, flag(c, "s3_use_path_style") })
	}
	if url := text(where, "dynamodb"); url != "" {
		p.clients.dynamo = dynamodb.NewFromConfig(cfg, func(o *dynamodb.Options) { o.BaseEndpoint = &url })
	}
	return out, nil
}

func (p *provider) UpgradeResourceState(_ context.Context, r *tfprotov6.UpgradeResourceStateRequest) (*tfprotov6.UpgradeResourceStateResponse, error) {
	t := p.schemas.Resources[r.TypeName].schema(true).ValueType()
	v, err := r.RawState.Unmarshal(t)
	if err != nil {
		return &tfprotov6.UpgradeResourceStateResponse{Diagnostics: failed(err)}, nil
	}
	dv, err := tfprotov6.NewDynamicValue(t, v)
	return &tfprotov6.UpgradeResourceStateResponse{UpgradedState: &dv, Diagnostics: failed(err)}, nil
}

func (p *provider) ReadResource(ctx context.Context, r *tfprotov6.ReadResourceRequest) (*tfprotov6.ReadResourceResponse, error) {
	b := p.schemas.Resources[r.TypeName]
	res, v, err := p.open(r.TypeName, r.CurrentState)
	found := false
	if err == nil {
		found, err = res.read(ctx, p.clients, v)
	}
	if err != nil {
		return &tfprotov6.ReadResourceResponse{NewState: r.CurrentState, Diagnostics: failed(err)}, nil
	}
	if !found {
		v = nil
	}
	state, err := encode(b, v)
	return &tfprotov6.ReadResourceResponse{NewState: state, Diagnostics: failed(err)}, nil
}

// PlanResourceChange refuses what is not carried out, and says which values come with the creation.
func (p *provider) PlanResourceChange(_ context.Context, r *tfprotov6.PlanResourceChangeRequest) (*tfprotov6.PlanResourceChangeResponse, error) {
	out := &tfprotov6.PlanResourceChangeResponse{PlannedState: r.ProposedNewState}
	b := p.schemas.Resources[r.TypeName]
	res, v, err := p.open(r.TypeName, r.ProposedNewState)
	prior, err2 := p.decode(r.PriorState, b)
	config, err3 := p.decode(r.Config, b)
	if err := errors.Join(err, err2, err3); err != nil {
		out.Diagnostics = failed(err)
		return out, nil
	}
	if v == nil { // it is to be destroyed
		return out, nil
	}
	if out.Diagnostics = refused(given(config, b), res.does); out.Diagnostics != nil {
		return out, nil
	}
	for _, name := range res.fills {
		switch {
		case name == "tags_all":
			v[name] = v["tags"]
		case prior == nil && v[name] == nil:
			v[name] = unknown{}
		}
	}
	for _, name := range res.replace {
		if prior != nil && fmt.Sprint(prior[name]) != fmt.Sprint(v[name]) {
			out.RequiresReplace = append(out.RequiresReplace, tftypes.NewAttributePath().WithAttributeName(name))
		}
	}
	out.PlannedState, err = encode(b, v)
	out.Diagnostics = failed(err)
	return out, nil
}

func (p *provider) ApplyResourceChange(ctx context.Context, r *tfprotov6.ApplyResourceChangeRequest) (*tfprotov6.ApplyResourceChangeResponse, error) {
	b := p.schemas.Resources[r.TypeName]
	res, v, err := p.open(r.TypeName, r.PlannedState)
	prior, err2 := p.decode(r.PriorState, b)
	if err = errors.Join(err, err2); err == nil {
		switch {
		case v == nil:
			err = res.remove(ctx, p.clients, prior)
		case prior == nil:
			err = res.create(ctx, p.clients, v)
		default:
			err = res.update(ctx, p.clients, v)
		}
	}
	if err != nil {
		return &tfprotov6.ApplyResourceChangeResponse{NewState: r.PriorState, Diagnostics: failed(err)}, nil
	}
	state, err := encode(b, v)
	return &tfprotov6.ApplyResourceChangeResponse{NewState: state, Diagnostics: failed(err)}, nil
}

// open finds the kind and reads its values; nil are those of none.
func (p *provider) open(kind string, dv *tfprotov6.DynamicValue) (*resource, object, error) {
	res := p.resources[kind]
	if res == nil {
		return nil, nil, fmt.Errorf("the stand-in for the AWS provider knows the schema of %s, and can't create one: use the real provider", kind)
	}
	v, err := p.decode(dv, p.schemas.Resources[kind])
	return res, v, err
}

func (p *provider) decode(dv *tfprotov6.DynamicValue, b *block) (object, error) {
	v, err := dv.Unmarshal(b.schema(true).ValueType())
	if err != nil {
		return nil, err
	}
	o, err := plain(v)
	if err != nil {
		return nil, err
	}
	out, _ := o.(object)
	return out, nil
}

func encode(b *block, v object) (*tfprotov6.DynamicValue, error) {
	t := b.schema(true).ValueType()
	value := tftypes.NewValue(t, nil)
	if v != nil {
		value = wrap(t, v, b.Blocks)
	}
	dv, err := tfprotov6.NewDynamicValue(t, value)
	return &dv, err
}

// refused names the arguments that are not carried out.
func refused(given, does []string) []*tfprotov6.Diagnostic {
	var out []*tfprotov6.Diagnostic
	slices.Sort(given)
	for _, path := range slices.Compact(given) {
		if !slices.Contains(does, path) {
			at := tftypes.NewAttributePath().WithAttributeName(strings.Split(path, ".")[0])
			out = append(out, &tfprotov6.Diagnostic{Severity: tfprotov6.DiagnosticSeverityError, Attribute: at,
				Summary: "the stand-in for the AWS provider does not carry out " + path + ": use the real provider"})
		}
	}
	return out
}

func failed(err error) []*tfprotov6.Diagnostic {
	if err == nil {
		return nil
	}
	return []*tfprotov6.Diagnostic{{Severity: tfprotov6.DiagnosticSeverityError, Summary: err.Error()}}
}
