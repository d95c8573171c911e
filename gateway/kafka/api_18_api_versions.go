package kafka

import (
	"context"
	"sort"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// ApiVersions 0-4. Lists what table() serves. A version that is not served is
// answered in the form of v0 with UNSUPPORTED_VERSION, so that the client can
// choose another (KIP-511); the response header never has tags. A client name
// or version that Kafka refuses is INVALID_REQUEST. Produce is
// listed from 0 although 0-2 are refused, because librdkafka's feature
// detection needs it (KAFKA-18659). No features are finalized: there are no
// transactions and no consumer groups of KIP-848 yet.
func (s *Server) apiAPIVersions() api {
	return api{key: 18, min: 0, max: 4, name: "ApiVersions", handle: s.apiVersions}
}

var errUnsupportedVersion = kerr.UnsupportedVersion.Code

func (s *Server) apiVersions(_ context.Context, _ *conn, req kmsg.Request) (kmsg.Response, error) {
	r := req.(*kmsg.ApiVersionsRequest)
	if r.Version >= 3 && !(softwareName(r.ClientSoftwareName) && softwareName(r.ClientSoftwareVersion)) {
		return s.apiVersionsResponse(r.Version, kerr.InvalidRequest.Code), nil
	}
	return s.apiVersionsResponse(r.Version, 0), nil
}

// softwareName checks a client's name or version as Kafka does (KIP-511):
// letters and digits, between them also '-' and '.'.
func softwareName(s string) bool {
	for i := range len(s) {
		c := s[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case (c == '-' || c == '.') && i > 0 && i < len(s)-1:
		default:
			return false
		}
	}
	return s != ""
}

func (s *Server) apiVersionsResponse(version, code int16) kmsg.Response {
	resp := kmsg.NewPtrApiVersionsResponse()
	resp.Version = version
	resp.ErrorCode = code
	for _, a := range s.apis {
		k := kmsg.NewApiVersionsResponseApiKey()
		k.ApiKey, k.MinVersion, k.MaxVersion = a.key, a.min, a.max
		resp.ApiKeys = append(resp.ApiKeys, k)
	}
	sort.Slice(resp.ApiKeys, func(i, j int) bool { return resp.ApiKeys[i].ApiKey < resp.ApiKeys[j].ApiKey })
	return resp
}
